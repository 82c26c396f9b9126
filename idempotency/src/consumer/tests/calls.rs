//! Effects outside Postgres: a provider that fails, hangs, holds its answers back, and knows idempotency keys.

use std::collections::HashSet;
use std::sync::Mutex;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;
use crate::breaker::Breaker;
use crate::call::{Answer, CallCx};
use crate::circuit::{BreakerState, SlidingWindow};
use crate::inbox;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Well,
    Fails,
    /// Neither effect nor answer.
    Hangs,
    /// The effect, and no answer until the mode is another one.
    Holds,
}

/// What was asked of the provider, or what it did.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Charge {
    idempotency_key: String,
    key: String,
    number: i64,
}

/// A service behind TCP that has one effect per idempotency key.
struct Provider {
    address: std::net::SocketAddr,
    mode: watch::Sender<Mode>,
    asked: Mutex<Vec<Charge>>,
    effects: Mutex<Vec<Charge>>,
}

impl Provider {
    async fn start(mode: Mode) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let provider = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            mode: watch::Sender::new(mode),
            asked: Mutex::default(),
            effects: Mutex::default(),
        });
        let serving = Arc::clone(&provider);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&serving).serve(stream));
            }
        });
        provider
    }

    async fn serve(self: Arc<Self>, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let mut words = line.split_whitespace().map(str::to_owned);
        let mut word = || words.next().unwrap();
        let charge =
            Charge { idempotency_key: word(), key: word(), number: word().parse().unwrap() };
        self.asked.lock().unwrap().push(charge.clone());
        let mode = *self.mode.borrow();
        if matches!(mode, Mode::Well | Mode::Holds) {
            let mut effects = self.effects.lock().unwrap();
            if effects.iter().all(|done| done.idempotency_key != charge.idempotency_key) {
                effects.push(charge);
            }
        }
        if matches!(mode, Mode::Hangs | Mode::Holds) {
            drop(self.mode.subscribe().wait_for(|now| *now != mode).await);
        }
        let answer: &[u8] = if mode == Mode::Fails { b"failed\n" } else { b"done\n" };
        if mode != Mode::Hangs {
            stream.write_all(answer).await?;
        }
        Ok(())
    }

    fn asked(&self) -> Vec<Charge> {
        self.asked.lock().unwrap().clone()
    }

    fn effects(&self) -> Vec<Charge> {
        self.effects.lock().unwrap().clone()
    }
}

#[derive(Serialize, Deserialize)]
struct Intent {
    key: String,
    number: i64,
}

async fn prepare<S>(cx: Cx<'_, S>, message: Numbered) -> Result<Prepared<Intent>, BoxError> {
    let key = cx.meta.key().and_then(|key| str::from_utf8(key).ok()).unwrap_or_default();
    sqlx::query("INSERT INTO prepared (message_id) VALUES ($1)")
        .bind(cx.meta.message_id().as_uuid())
        .execute(cx.conn)
        .await?;
    Ok(Prepared::Call(Intent { key: key.to_owned(), number: message.number }))
}

async fn charge(cx: CallCx<'_, Arc<Provider>>, intent: Intent) -> Result<Answer<String>, BoxError> {
    let mut stream = BufReader::new(TcpStream::connect(cx.state.address).await?);
    let Intent { key, number } = intent;
    stream.write_all(format!("{} {key} {number}\n", cx.key).as_bytes()).await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    if answer == "done\n" { Ok(Answer::Done(answer)) } else { Err("the provider failed".into()) }
}

async fn record<S>(cx: Cx<'_, S>, intent: Intent, answer: String) -> Result<(), BoxError> {
    assert_eq!(answer, "done\n");
    effect(cx, Numbered { number: intent.number }).await?;
    Ok(())
}

async fn called_bed(name: &str) -> Bed {
    let bed = bed(name).await;
    bed.execute("CREATE TABLE prepared (message_id uuid PRIMARY KEY)").await;
    bed
}

fn paying(bed: &Bed, topic: &str, provider: &Arc<Provider>) -> Config<Arc<Provider>> {
    let short = Duration::from_millis(50);
    Config::new(topic, bed.brokers(), bed.pool.clone())
        .parked_wait(short, short)
        .attempts_max(10_000)
        .state(Arc::clone(provider))
}

const CALLING: &str = "SELECT count(*) FROM tailrace.parked_message WHERE state = 'calling'";
const PARKED: &str = "SELECT count(*) FROM tailrace.parked_message";
const EFFECTS: &str = "SELECT count(*) FROM effect";

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_fails_and_hangs_is_left_alone_and_everything_happens_once_in_order() {
    let bed = called_bed("calls_breaker").await;
    let topic = bed.topic("calls_breaker", 1).await;
    let provider = Provider::start(Mode::Fails).await;
    let time_out = Duration::from_millis(400);
    let breaker = Breaker::new()
        .sliding_window(SlidingWindow::CountBased(8))
        .minimum_number_of_calls(4)
        .slow_call_duration_threshold(time_out)
        .wait_duration_in_open_state(Duration::from_millis(200))
        .permitted_number_of_calls_in_half_open_state(2);
    produce(bed.brokers(), &topic, &records(60, 12));

    let call = Call::new(prepare, charge, record).time_out(time_out).breaker(breaker.clone());
    let config =
        paying(&bed, &topic, &provider).calls_max(4).parked_keys_max(4).batch_records_max(2);
    let running = start(Consumer::new(config).topic(&topic).on_call("numbered.v1", call));
    until(async || breaker.state() == BreakerState::Open).await;
    provider.mode.send_replace(Mode::Hangs);
    let openings = running.counters.report().breaker_openings;
    until(async || running.counters.report().breaker_openings >= openings + 2).await;
    // Four to open it and those that ran beside the last of them, then two for each wait.
    let asked = provider.asked().len() as u64;
    let Report { breaker_openings, applied, .. } = running.counters.report();
    assert!(asked <= 8 + 2 * breaker_openings, "{asked} calls, {breaker_openings} openings");
    assert_eq!(applied, 0);
    // What is not called is not taken from Kafka either: a batch more at most.
    assert!(bed.count("SELECT count(DISTINCT key) FROM tailrace.parked_message").await < 4 + 2);

    provider.mode.send_replace(Mode::Well);
    running.applied(60).await;
    let report = running.stop().await.unwrap();

    assert_eq!(breaker.state(), BreakerState::Closed);
    assert_eq!((report.applied, report.dead_lettered, bed.count(PARKED).await), (60, 0, 0));
    assert!(report.failed_calls >= 6 && report.slow_calls >= 1, "{report:?}");
    assert_eq!(report.calls, 60 + report.failed_calls);
    assert_eq!(bed.count("SELECT count(*) FROM prepared").await, 60);
    assert_eq!((bed.count(EFFECTS).await, bed.count(DOUBLE_EFFECTS).await), (60, 0));
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
    let effects = provider.effects();
    assert_eq!(effects.len(), 60);
    for key in effects.iter().map(|done| &done.key).collect::<HashSet<_>>() {
        assert!(
            effects.iter().filter(|done| done.key == *key).is_sorted_by_key(|done| done.number)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_after_its_call_has_it_repeated_with_the_same_key_and_intent() {
    let bed = called_bed("calls_crash").await;
    let topic = bed.topic("calls_crash", 1).await;
    let provider = Provider::start(Mode::Holds).await;
    produce(bed.brokers(), &topic, &records(6, 2));
    let consumer = || {
        let call = Call::new(prepare, charge, record);
        Consumer::new(paying(&bed, &topic, &provider)).topic(&topic).on_call("numbered.v1", call)
    };

    let dies = start(consumer());
    until(async || provider.effects().len() == 2).await;
    let open = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
    until(async || bed.count(open).await == 0).await;
    assert_eq!((bed.count(CALLING).await, bed.count(PARKED).await), (2, 6));
    dies.task.abort();
    // The provider goes on holding back what nobody waits for any more.
    let running = start(consumer());
    until(async || provider.asked().len() == 4).await;
    provider.mode.send_replace(Mode::Well);
    running.applied(6).await;
    running.stop().await.unwrap();

    let asked = provider.asked();
    assert_eq!(asked.len(), 8);
    assert_eq!(asked.iter().collect::<HashSet<_>>().len(), 6);
    assert_eq!(provider.effects().len(), 6);
    assert_eq!(bed.count("SELECT count(*) FROM prepared").await, 6);
    assert_eq!((bed.count(EFFECTS).await, bed.count(DOUBLE_EFFECTS).await), (6, 0));
    assert_eq!((bed.count(ORDER_VIOLATIONS).await, bed.count(PARKED).await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_waits_for_the_calls_that_are_being_made_and_records_them() {
    let bed = called_bed("calls_shutdown").await;
    let topic = bed.topic("calls_shutdown", 1).await;
    let provider = Provider::start(Mode::Holds).await;
    produce(bed.brokers(), &topic, &records(9, 3));

    let call = Call::new(prepare, charge, record).time_out(DEADLINE);
    let consumer = Consumer::new(paying(&bed, &topic, &provider));
    let running = start(consumer.topic(&topic).on_call("numbered.v1", call));
    until(async || provider.effects().len() == 3).await;
    running.stop.send(()).unwrap();
    provider.mode.send_replace(Mode::Well);
    let report = tokio::time::timeout(DEADLINE, running.task).await.unwrap().unwrap().unwrap();

    let applied = i64::try_from(report.applied).unwrap();
    assert!(applied >= 3, "{report:?}");
    assert_eq!(provider.asked().len(), provider.effects().len());
    assert_eq!((bed.count(EFFECTS).await, bed.count(CALLING).await), (applied, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_may_give_up_what_an_open_breaker_holds_back_and_not_what_is_being_called() {
    let bed = called_bed("calls_person").await;
    let topic = bed.topic("calls_person", 1).await;
    let provider = Provider::start(Mode::Fails).await;
    let breaker = Breaker::new()
        .minimum_number_of_calls(1)
        .permitted_number_of_calls_in_half_open_state(1)
        .wait_duration_in_open_state(DEADLINE * 10);
    produce(bed.brokers(), &topic, &records(2, 2));
    let person = inbox::By::new("anna");
    let entry = async |offset| {
        let (consumer, topic) = (topic.clone(), topic.clone());
        let place = inbox::Place::Parked { consumer, topic, partition: 0, offset };
        inbox::get(&mut bed.pool.acquire().await.unwrap(), &place).await.unwrap()
    };

    let consumer = |breaker: &Breaker| {
        let call = Call::new(prepare, charge, record).breaker(breaker.clone());
        Consumer::new(paying(&bed, &topic, &provider).calls_max(1).attempts_max(1))
            .topic(&topic)
            .on_call("numbered.v1", call)
    };
    let running = start(consumer(&breaker));
    until(async || breaker.state() == BreakerState::Open && bed.count(CALLING).await == 0).await;
    let (failed, held_back) = (entry(0).await, entry(1).await);
    assert_eq!((failed.state, failed.attempts), (inbox::State::Stuck, 1));
    assert_eq!((held_back.state, held_back.attempts), (inbox::State::Waiting, 0));

    let mut conn = bed.pool.acquire().await.unwrap();
    let edited = inbox::edit(&mut conn, &failed, b"{}", &person).await.unwrap_err();
    inbox::discard(&mut conn, &held_back, &person).await.unwrap();
    until(async || running.counters.report().dead_lettered == 1).await;
    running.stop().await.unwrap();
    assert_eq!(edited.kind(), Kind::Conflict);
    assert!(edited.to_string().contains("prepared already"), "{edited}");

    provider.mode.send_replace(Mode::Holds);
    inbox::retry(&mut conn, &failed, 3, &person).await.unwrap();
    let running = start(consumer(&Breaker::new()));
    until(async || provider.effects().len() == 1).await;
    let called = entry(0).await;
    let refused = inbox::discard(&mut conn, &called, &person).await.unwrap_err();
    // What it has done by then is recorded all the same.
    inbox::force_discard(&mut conn, &called, &person).await.unwrap();
    provider.mode.send_replace(Mode::Well);
    running.applied(1).await;
    running.stop().await.unwrap();

    assert_eq!((called.state, refused.kind()), (inbox::State::Calling, Kind::Conflict));
    assert!(refused.to_string().contains("its call is being made"), "{refused}");
    assert_eq!((bed.count(EFFECTS).await, bed.count(PARKED).await), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_takes_its_process_along_is_stuck_in_the_end_and_the_others_are_made() {
    type Fatal = tokio::sync::Notify;
    async fn fatal(cx: CallCx<'_, Arc<Fatal>>, intent: Intent) -> Result<Answer<String>, BoxError> {
        if intent.number == 0 {
            cx.state.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(Answer::Done("done\n".to_owned()))
    }
    let bed = called_bed("calls_fatal").await;
    let topic = bed.topic("calls_fatal", 1).await;
    let died = Arc::new(Fatal::new());
    let short = Duration::from_millis(50);
    let consumer = || {
        let config = Config::new(&topic, bed.brokers(), bed.pool.clone())
            .parked_wait(short, short)
            .attempts_max(3)
            .state(Arc::clone(&died));
        let call = Call::new(prepare, fatal, record).time_out(DEADLINE * 10);
        Consumer::new(config).topic(&topic).on_call("numbered.v1", call)
    };
    let place = || inbox::Place::Parked {
        consumer: topic.clone(),
        topic: topic.clone(),
        partition: 0,
        offset: 0,
    };
    let mut conn = bed.pool.acquire().await.unwrap();
    produce(bed.brokers(), &topic, &records(9, 3));

    for attempts in 1..=3 {
        let dies = start(consumer());
        tokio::time::timeout(DEADLINE, died.notified()).await.expect("the call is made");
        // Calls of the other keys that were under way would have their attempt counted too.
        until(async || bed.count(EFFECTS).await == 6).await;
        dies.task.abort();
        drop(dies.task.await);
        let broken_off = inbox::get(&mut conn, &place()).await.unwrap();
        assert_eq!((broken_off.state, broken_off.attempts), (inbox::State::Calling, attempts));
    }
    let running = start(consumer());
    let is_stuck = "SELECT count(*) FROM tailrace.parked_message WHERE state = 'stuck'";
    until(async || bed.count(is_stuck).await == 1).await;
    let stuck = inbox::get(&mut conn, &place()).await.unwrap();
    inbox::discard(&mut conn, &stuck, &inbox::By::new("anna")).await.unwrap();
    until(async || bed.count(EFFECTS).await == 8).await;
    let report = running.stop().await.unwrap();

    assert_eq!((stuck.reason.as_deref(), stuck.attempts), (Some("broken_off"), 3));
    assert!(stuck.detail.unwrap().contains("how it ended is not known"));
    assert_eq!((report.dead_lettered, bed.count(PARKED).await), (1, 0));
    assert_eq!((bed.count(ORDER_VIOLATIONS).await, bed.count(DOUBLE_EFFECTS).await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_record_always_meets_a_transient_fault_counts_once_each_time() {
    async fn locked(cx: Cx<'_, Arc<Provider>>, _: Intent, _: String) -> Result<(), BoxError> {
        sqlx::query("DO $$ BEGIN RAISE SQLSTATE '55P03'; END $$").execute(cx.conn).await?;
        Ok(())
    }
    let bed = called_bed("calls_counted").await;
    let topic = bed.topic("calls_counted", 1).await;
    let provider = Provider::start(Mode::Well).await;
    produce(bed.brokers(), &topic, &records(1, 1));

    let config = paying(&bed, &topic, &provider).attempts_max(3);
    let call = Call::new(prepare, charge, locked);
    let running = start(Consumer::new(config).topic(&topic).on_call("numbered.v1", call));
    let is_stuck = "SELECT count(*) FROM tailrace.parked_message WHERE state = 'stuck'";
    until(async || bed.count(is_stuck).await == 1).await;
    running.stop().await.unwrap();

    assert_eq!(bed.count("SELECT attempts::bigint FROM tailrace.parked_message").await, 3);
    assert_eq!((provider.asked().len(), provider.effects().len()), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_process_was_calling_is_given_up_or_tried_again_by_force() {
    let bed = called_bed("calls_force").await;
    let topic = bed.topic("calls_force", 1).await;
    let provider = Provider::start(Mode::Hangs).await;
    let person = inbox::By::new("anna");
    let entry = async |offset| {
        let (consumer, topic) = (topic.clone(), topic.clone());
        let place = inbox::Place::Parked { consumer, topic, partition: 0, offset };
        inbox::get(&mut bed.pool.acquire().await.unwrap(), &place).await.unwrap()
    };
    let consumer = |time_out| {
        let call = Call::new(prepare, charge, record).time_out(time_out);
        Consumer::new(paying(&bed, &topic, &provider)).topic(&topic).on_call("numbered.v1", call)
    };
    produce(bed.brokers(), &topic, &records(3, 3));
    let dies = start(consumer(DEADLINE));
    until(async || provider.asked().len() == 3).await;
    dies.task.abort();
    drop(dies.task.await);

    let mut conn = bed.pool.acquire().await.unwrap();
    let (given_up, retried) = (entry(0).await, entry(1).await);
    for refused in [
        inbox::discard(&mut conn, &given_up, &person).await.unwrap_err(),
        inbox::retry(&mut conn, &retried, inbox::RETRIES_MAX, &person).await.unwrap_err(),
    ] {
        assert!(refused.to_string().contains("broken off with the process"), "{refused}");
    }
    inbox::force_discard(&mut conn, &given_up, &person).await.unwrap();
    inbox::retry(&mut conn, &retried, u32::MAX, &person).await.unwrap();
    let running = start(consumer(Duration::from_secs(1)));
    until(async || provider.asked().len() == 5).await;
    // The other one is given up while it hangs, and not tried again when its time is up.
    inbox::force_discard(&mut conn, &entry(2).await, &person).await.unwrap();
    until(async || running.counters.report().dead_lettered == 2).await;
    provider.mode.send_replace(Mode::Well);
    running.applied(1).await;
    running.stop().await.unwrap();

    let letters = "SELECT string_agg(\"offset\" || reason, ' ' ORDER BY \"offset\") FROM tailrace.dead_letter";
    let letters: String = sqlx::query_scalar(letters).fetch_one(&bed.pool).await.unwrap();
    assert_eq!(letters, "0discarded 2discarded");
    assert_eq!(provider.asked().iter().filter(|asked| asked.number == 0).count(), 1);
    assert_eq!((bed.count(EFFECTS).await, bed.count(PARKED).await), (1, 0));
}

/// Says how steps end by the number of their message; each of these ways once.
#[derive(Default)]
struct Script {
    told: Mutex<HashSet<i64>>,
    keys: Mutex<Vec<(i64, String)>>,
}

impl Script {
    fn first(&self, number: i64) -> bool {
        self.told.lock().unwrap().insert(number)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_of_a_call_may_end_it_or_put_it_off_and_its_key_keeps_its_order() {
    async fn scripted(
        cx: Cx<'_, Arc<Script>>,
        message: Numbered,
    ) -> Result<Prepared<Intent>, BoxError> {
        match message.number {
            1 => return Ok(Outcome::reject("not for us").into()),
            2 if cx.state.first(2) => return Err("planted".into()),
            _ => {}
        }
        prepare(cx, message).await
    }
    async fn made(cx: CallCx<'_, Arc<Script>>, intent: Intent) -> Result<Answer<String>, BoxError> {
        cx.state.keys.lock().unwrap().push((intent.number, cx.key.to_string()));
        match intent.number {
            3 => Ok(Answer::reject("the provider never takes it")),
            4 if cx.state.first(4) => Ok(Answer::retry(Duration::from_millis(20))),
            5 if cx.state.first(5) => panic!("planted"),
            _ => Ok(Answer::Done("done\n".to_owned())),
        }
    }
    async fn recorded(
        cx: Cx<'_, Arc<Script>>,
        intent: Intent,
        answer: String,
    ) -> Result<(), BoxError> {
        let fails = intent.number == 6 && cx.state.first(6);
        record(cx, intent, answer).await?;
        if fails { Err("planted".into()) } else { Ok(()) }
    }
    let bed = called_bed("calls_script").await;
    let topic = bed.topic("calls_script", 1).await;
    let script = Arc::new(Script::default());
    // What makes no call stands between those that do.
    let plain = |number| numbered("k", number).with("ce_type", "plain.v1");
    let mut sent: Vec<Outgoing> = (1..=6).map(|number| numbered("k", number)).collect();
    sent.extend([plain(7), plain(8), numbered("k", 9), plain(10)]);
    produce(bed.brokers(), &topic, &sent);
    produce(bed.brokers(), &topic, &sent);

    let short = Duration::from_millis(50);
    let config = Config::new(&topic, bed.brokers(), bed.pool.clone())
        .parked_wait(short, short)
        .state(Arc::clone(&script));
    let running = start(
        Consumer::new(config)
            .topic(&topic)
            .on_call("numbered.v1", Call::new(scripted, made, recorded))
            .on("plain.v1", effect),
    );
    running.applied(8).await;
    until(async || running.counters.report().duplicates == 10).await;
    let report = running.stop().await.unwrap();

    let order = "SELECT string_agg(number::text, ' ' ORDER BY n) FROM effect";
    let order: String = sqlx::query_scalar(order).fetch_one(&bed.pool).await.unwrap();
    assert_eq!(order, "2 4 5 6 7 8 9 10");
    assert_eq!((report.dead_lettered, report.rejected, report.applied), (2, 2, 8));
    assert_eq!(report.failed_calls, 1);
    let keys = script.keys.lock().unwrap().clone();
    let numbers: Vec<i64> = keys.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [2, 3, 4, 4, 5, 5, 6, 6, 9]);
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), 6);
    assert_eq!(bed.count("SELECT count(*) FROM prepared").await, 6);
    assert_eq!(bed.count(PARKED).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_several_keys_are_prepared_together_and_recorded_together() {
    let bed = called_bed("calls_together").await;
    // Behind a savepoint a row has the id of a subtransaction.
    bed.execute("ALTER TABLE effect ADD COLUMN written_in xid8 DEFAULT pg_current_xact_id()").await;
    let topic = bed.topic("calls_together", 1).await;
    let provider = Provider::start(Mode::Holds).await;
    produce(bed.brokers(), &topic, &records(24, 12));

    let call = Call::new(prepare, charge, record).time_out(DEADLINE);
    let config = paying(&bed, &topic, &provider).batch_wait(Duration::from_secs(1));
    let running = start(Consumer::new(config).topic(&topic).on_call("numbered.v1", call));
    until(async || provider.effects().len() == 12).await;
    let prepared = "SELECT count(DISTINCT xmin::text) FROM prepared";
    assert_eq!(bed.count(prepared).await, 1);
    provider.mode.send_replace(Mode::Well);
    running.applied(24).await;
    running.stop().await.unwrap();

    // The answers of twelve calls come at once; how many are found together is the machine's.
    let recorded = "SELECT count(DISTINCT written_in) FROM effect";
    assert!(bed.count(recorded).await < 24, "each was recorded by itself");
    assert_eq!((provider.asked().len(), bed.count(EFFECTS).await), (24, 24));
    assert_eq!((bed.count(ORDER_VIOLATIONS).await, bed.count(PARKED).await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_calls_that_share_a_transaction_only_the_one_that_fails_is_made_again() {
    async fn prepared(
        cx: Cx<'_, Arc<Script>>,
        message: Numbered,
    ) -> Result<Prepared<Intent>, BoxError> {
        let (number, first) = (message.number, cx.state.first(message.number));
        let conn = &mut *cx.conn;
        match number {
            2 => return Ok(Prepared::End(Outcome::Done)),
            3 if first => {
                sqlx::query("SELECT 1 / 0").execute(conn).await?;
            }
            4 if first => {
                sqlx::query("DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$").execute(conn).await?;
            }
            5 => return Ok(Prepared::End(Outcome::reject("not for us"))),
            _ => {}
        }
        prepare(cx, message).await
    }
    async fn made(cx: CallCx<'_, Arc<Script>>, intent: Intent) -> Result<Answer<String>, BoxError> {
        cx.state.keys.lock().unwrap().push((intent.number, cx.key.to_string()));
        Ok(Answer::Done("done\n".to_owned()))
    }
    async fn recorded(
        cx: Cx<'_, Arc<Script>>,
        intent: Intent,
        answer: String,
    ) -> Result<(), BoxError> {
        let fails = intent.number == 7 && cx.state.first(107);
        record(cx, intent, answer).await?;
        if fails { Err("planted".into()) } else { Ok(()) }
    }
    let bed = called_bed("calls_company").await;
    let topic = bed.topic("calls_company", 1).await;
    let script = Arc::new(Script::default());
    let short = Duration::from_millis(50);
    produce(bed.brokers(), &topic, &records(40, 20));

    let config = Config::new(&topic, bed.brokers(), bed.pool.clone())
        .parked_wait(short, short)
        .state(Arc::clone(&script));
    let call = Call::new(prepared, made, recorded);
    let running = start(Consumer::new(config).topic(&topic).on_call("numbered.v1", call));
    running.applied(39).await;
    until(async || running.counters.report().dead_lettered == 1).await;
    running.stop().await.unwrap();

    let mut asked: Vec<i64> =
        script.keys.lock().unwrap().iter().map(|(number, _)| *number).collect();
    asked.sort_unstable();
    let expected: Vec<i64> = (0..=7).chain(7..40).filter(|n| ![2, 5].contains(n)).collect();
    assert_eq!(asked, expected);
    assert_eq!((bed.count(EFFECTS).await, bed.count(DOUBLE_EFFECTS).await), (38, 0));
    assert_eq!((bed.count(ORDER_VIOLATIONS).await, bed.count(PARKED).await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_is_put_back_waits_for_the_call_of_its_key() {
    async fn later(
        cx: Cx<'_, Arc<Provider>>,
        message: Numbered,
    ) -> Result<Prepared<Intent>, BoxError> {
        let open: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT FROM gate)").fetch_one(&mut *cx.conn).await?;
        if !open && message.number < 2 {
            return Ok(Prepared::End(Outcome::reject("not yet")));
        }
        prepare(cx, message).await
    }
    let bed = called_bed("calls_put_back").await;
    bed.execute("CREATE TABLE gate (open bool)").await;
    let topic = bed.topic("calls_put_back", 1).await;
    let provider = Provider::start(Mode::Holds).await;
    produce(
        bed.brokers(),
        &topic,
        &[numbered("a", 0), numbered("b", 1), numbered("a", 2), numbered("a", 3)],
    );
    let call = Call::new(later, charge, record).time_out(DEADLINE);
    let consumer = Consumer::new(paying(&bed, &topic, &provider));
    let running = start(consumer.topic(&topic).on_call("numbered.v1", call));
    running.delivered(2).await;
    until(async || provider.effects().len() == 1).await;

    bed.execute("INSERT INTO gate VALUES (true)").await;
    let mut conn = bed.pool.acquire().await.unwrap();
    for id in ["dead:1", "dead:2"] {
        let letter = inbox::get(&mut conn, &id.parse().unwrap()).await.unwrap();
        let by = inbox::By::new("anna");
        inbox::retry(&mut conn, &letter, inbox::RETRIES_MAX, &by).await.unwrap();
    }
    // The look that finds the letter of the other key finds both.
    until(async || provider.effects().len() == 2).await;
    let calling = bed.count(CALLING).await;
    provider.mode.send_replace(Mode::Well);
    running.applied(4).await;
    running.stop().await.unwrap();

    assert_eq!(calling, 2);
    let order = "SELECT string_agg(number::text, ' ' ORDER BY n) FROM effect WHERE key = 'a'";
    let order: String = sqlx::query_scalar(order).fetch_one(&bed.pool).await.unwrap();
    assert_eq!(order, "2 0 3");
    assert_eq!((provider.asked().len(), bed.count(PARKED).await), (4, 0));
}
