//! Handlers that take too long: cut off, or found out by the session that they have lost.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tailrace_stack::Proxy;

use super::*;
use crate::call::{Answer, CallCx};
use crate::handler::{BatchCx, Item};
use crate::retry::OnFailure;

/// Longer than a handler takes that does its work, on a busy machine.
const TIME_OUT: Duration = Duration::from_secs(1);

/// How long a session may stand idle inside a transaction: longer than a test stands still on a busy machine.
const IDLE_MAX: Duration = Duration::from_secs(2);

fn config(bed: &Bed, topic: &str) -> Config {
    let short = Duration::from_millis(50);
    let config = Config::new(topic, bed.brokers(), bed.pool.clone()).parked_wait(short, short);
    config.batch_wait(Duration::from_secs(1)).handler_time_out(TIME_OUT)
}

const EFFECTS: &str = "SELECT count(*) FROM effect";
const PARKED: &str = "SELECT count(*) FROM tailrace.parked_message";
/// As a person has them tried again.
const HURRY: &str = "UPDATE tailrace.parked_message SET retry_at = now() WHERE state = 'waiting' AND retry_at > now()";

async fn numbers(bed: &Bed) -> String {
    let numbers = "SELECT string_agg(number::text, ' ' ORDER BY number) FROM effect";
    sqlx::query_scalar(numbers).fetch_one(&bed.pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_does_not_end_is_cut_off_and_parked_with_its_key_alone() {
    async fn hangs(cx: Cx<'_, Arc<AtomicBool>>, message: Numbered) -> Result<Outcome, BoxError> {
        let (cured, number) = (cx.state.load(Ordering::Relaxed), message.number);
        effect(Cx { conn: &mut *cx.conn, meta: cx.meta, state: &() }, message).await?;
        match number {
            1 if !cured => std::future::pending().await,
            // With the row of its progress locked, whoever waits for the answer.
            3 if !cured => {
                sqlx::query("SELECT pg_sleep(600)").execute(cx.conn).await?;
            }
            _ => {}
        }
        Ok(Outcome::Done)
    }
    let bed = bed("overrun_hangs").await;
    let topic = bed.topic("overrun_hangs", 1).await;
    produce(bed.brokers(), &topic, &records(8, 5));

    let state = Arc::new(AtomicBool::new(false));
    let config = config(&bed, &topic).batch_records_max(8).state(Arc::clone(&state));
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", hangs));
    running.delivered(8).await;

    assert_eq!(numbers(&bed).await, "0 2 4 5 7");
    let named = "SELECT count(*) FROM tailrace.parked_message WHERE state = 'waiting' AND attempts > 0
         AND detail LIKE 'the handler of numbered.v1 did not end within the handler_time_out of 1 s%'";
    assert_eq!((bed.count(named).await, bed.count(PARKED).await), (2, 3));
    // Their lane stands still at each replay: that comes ten times as late as a handler has time.
    let late = "SELECT count(*) FROM tailrace.parked_message WHERE attempts > 0 AND retry_at > now() + '5 s'";
    assert_eq!(bed.count(late).await, 2);
    let attempts = "SELECT sum(attempts)::bigint FROM tailrace.parked_message";
    let before = bed.count(attempts).await;
    bed.execute(HURRY).await;
    until(async || bed.count(attempts).await == before + 2 && bed.count(late).await == 2).await;

    state.store(true, Ordering::Relaxed);
    bed.execute(HURRY).await;
    running.applied(8).await;
    running.stop().await.unwrap();
    assert_eq!((bed.count(EFFECTS).await, bed.count(PARKED).await), (8, 0));
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_cut_off_is_halved_until_the_message_stands_alone() {
    async fn hangs(cx: BatchCx<'_>, items: Vec<Item<'_, Numbered>>) -> Result<Outcome, BoxError> {
        let hangs = items.iter().any(|item| item.message.number == 5);
        for Item { meta, message, .. } in items {
            effect(Cx { conn: &mut *cx.conn, meta, state: &() }, message).await?;
        }
        if hangs { std::future::pending().await } else { Ok(Outcome::Done) }
    }
    let bed = bed("overrun_batch").await;
    let topic = bed.topic("overrun_batch", 1).await;
    produce(bed.brokers(), &topic, &records(8, 8));

    let config = config(&bed, &topic).batch_records_max(8).on_failure(OnFailure::DeadLetter);
    let running = start(Consumer::new(config).topic(&topic).on_batch("numbered.v1", hangs));
    running.delivered(8).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.dead_lettered), (7, 1));
    assert_eq!(numbers(&bed).await, "0 1 2 3 4 6 7");
}

/// Sees to it that Postgres ends the session: nothing but time could.
async fn idle(conn: &mut sqlx::PgConnection, pool: &PgPool) -> Result<(), BoxError> {
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(conn).await?;
    until(async || {
        let lives = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)";
        let lives: bool = sqlx::query_scalar(lives).bind(pid).fetch_one(pool).await.unwrap();
        !lives
    })
    .await;
    Ok(())
}

async fn idles(cx: Cx<'_, PgPool>, message: Numbered) -> Result<Outcome, BoxError> {
    let number = message.number;
    effect(Cx { conn: &mut *cx.conn, meta: cx.meta, state: &() }, message).await?;
    if number == 2 || number == 8 {
        idle(cx.conn, cx.state).await?;
    }
    Ok(Outcome::Done)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_a_session_gone_is_not_given_up_for_it_also_where_nothing_is_tried_again() {
    let bed = bed("overrun_finds").await;
    let topic = bed.topic("overrun_finds", 1).await;
    produce(bed.brokers(), &topic, &records(4, 4));

    let config = config(&bed, &topic).batch_records_max(4).retries(0);
    let config = config.on_failure(OnFailure::DeadLetter).handler_time_out(DEADLINE);
    let config = config.rebalance_deadline(IDLE_MAX).state(bed.pool.clone());
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", idles));
    running.delivered(4).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.dead_lettered), (3, 1));
    assert_eq!(numbers(&bed).await, "0 1 3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_idles_its_session_away_is_blamed_and_not_who_finds_it_gone() {
    let bed = bed("overrun_idles").await;
    let topic = bed.topic("overrun_idles", 1).await;
    produce(bed.brokers(), &topic, &records(8, 8));

    let config = config(&bed, &topic).batch_records_max(8).attempts_max(3);
    let config = config.handler_time_out(DEADLINE).rebalance_deadline(IDLE_MAX);
    let config = config.state(bed.pool.clone());
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", idles));
    running.delivered(8).await;
    // The last one is alone in its batch.
    produce(bed.brokers(), &topic, &[numbered("key-2", 10), numbered("alone", 8)]);
    running.delivered(10).await;

    assert_eq!(numbers(&bed).await, "0 1 3 4 5 6 7");
    let stuck = "SELECT count(*) FROM tailrace.parked_message WHERE state = 'stuck' AND detail LIKE
         'the handler of numbered.v1 left its transaction idle for longer than the rebalance_deadline of 2 s%'";
    until(async || {
        bed.execute(HURRY).await;
        bed.count(stuck).await == 2
    })
    .await;
    running.stop().await.unwrap();
    assert_eq!(bed.count(PARKED).await, 3);
}

/// Takes less than a fifth of what its session may idle, and has the session idle meanwhile.
async fn ponders(cx: Cx<'_, AtomicBool>, message: Numbered) -> Result<Outcome, BoxError> {
    if message.number == 0 && !cx.state.swap(true, Ordering::Relaxed) {
        return Ok(Outcome::retry(Duration::ZERO));
    }
    tokio::time::sleep(IDLE_MAX * 3 / 20).await;
    Ok(Outcome::Done)
}

/// Eight of them lose their session together.
async fn pondering(bed: &Bed, topic: &str, count: i64, keys: i64, is_waited_for: bool) -> Report {
    produce(bed.brokers(), topic, &records(count, keys));
    let config = config(bed, topic).batch_records_max(16).retries(0);
    let config = config.on_failure(OnFailure::DeadLetter).handler_time_out(DEADLINE);
    let config = config.rebalance_deadline(IDLE_MAX).state(AtomicBool::new(!is_waited_for));
    let running = start(Consumer::new(config).topic(topic).on("numbered.v1", ponders));
    running.applied(count.unsigned_abs()).await;
    running.stop().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_that_idle_their_session_away_together_are_fewer_the_next_time_and_none_is_blamed()
{
    let bed = bed("overrun_together").await;
    let topic = bed.topic("overrun_together", 1).await;

    let report = pondering(&bed, &topic, 8, 8, false).await;

    assert!(report.retried_batches > 0, "no session was lost: {report:?}");
    assert_eq!((report.applied, report.dead_lettered), (8, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_messages_that_idle_their_session_away_together_are_fewer_the_next_time() {
    let bed = bed("overrun_replayed").await;
    let topic = bed.topic("overrun_replayed", 1).await;

    let report = pondering(&bed, &topic, 9, 1, true).await;

    assert!(report.retried_batches > 0, "no session was lost: {report:?}");
    assert_eq!((report.replayed, report.dead_lettered), (9, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_halting_consumer_names_the_message_and_the_time_out_of_its_handler() {
    async fn hangs(_: Cx<'_>, _: Numbered) -> Result<Outcome, BoxError> {
        std::future::pending().await
    }
    let bed = bed("overrun_halts").await;
    let topic = bed.topic("overrun_halts", 1).await;
    produce(bed.brokers(), &topic, &records(1, 1));

    let config = config(&bed, &topic).on_failure(OnFailure::Halt);
    let error = start(Consumer::new(config).topic(&topic).on("numbered.v1", hangs)).end().await;

    assert_eq!((error.kind(), error.position().unwrap().offset.get()), (Kind::Handler, 0));
    assert!(error.to_string().contains("handler_time_out of 1 s"), "{error}");
}

/// Counts how often the first message is prepared, which never ends.
async fn never_prepared(
    cx: Cx<'_, Arc<AtomicU64>>,
    message: Numbered,
) -> Result<Prepared<i64>, BoxError> {
    if message.number == 0 {
        cx.state.fetch_add(1, Ordering::Relaxed);
        std::future::pending::<()>().await;
    }
    Ok(Prepared::Call(message.number))
}

async fn calls<S>(_: CallCx<'_, S>, number: i64) -> Result<Answer<()>, BoxError> {
    debug_assert!(number >= 0);
    Ok(Answer::Done(()))
}

async fn records_call<S>(cx: Cx<'_, S>, number: i64, (): ()) -> Result<(), BoxError> {
    effect(cx, Numbered { number }).await?;
    Ok(())
}

fn calling(bed: &Bed, topic: &str, on_failure: OnFailure) -> (Started, Arc<AtomicU64>) {
    let prepared = Arc::new(AtomicU64::new(0));
    let config = config(bed, topic).on_failure(on_failure).state(Arc::clone(&prepared));
    let call = Call::new(never_prepared, calls, records_call);
    (start(Consumer::new(config).topic(topic).on_call("numbered.v1", call)), prepared)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_preparation_does_not_end_is_given_up_where_failures_are() {
    let bed = bed("overrun_prepares").await;
    let topic = bed.topic("overrun_prepares", 1).await;
    produce(bed.brokers(), &topic, &records(4, 3));

    let (running, prepared) = calling(&bed, &topic, OnFailure::DeadLetter);
    running.applied(3).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.dead_lettered, numbers(&bed).await.as_str()), (1, "1 2 3"));
    // In company, and alone.
    assert_eq!((prepared.load(Ordering::Relaxed), bed.count(PARKED).await), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_preparation_does_not_end_halts_where_failures_do() {
    let bed = bed("overrun_prepare_halts").await;
    let topic = bed.topic("overrun_prepare_halts", 1).await;
    produce(bed.brokers(), &topic, &records(4, 3));

    let error = calling(&bed, &topic, OnFailure::Halt).0.end().await;

    assert_eq!((error.kind(), error.position().unwrap().offset.get()), (Kind::Handler, 0));
    assert!(error.to_string().contains("handler_time_out of 1 s"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_waits_for_one_preparation_that_does_not_end_and_not_for_all() {
    let bed = bed("overrun_shutdown").await;
    let topic = bed.topic("overrun_shutdown", 1).await;
    let never: Vec<Outgoing> = (0..6).map(|key| numbered(&format!("key-{key}"), 0)).collect();
    produce(bed.brokers(), &topic, &never);

    let (running, prepared) = calling(&bed, &topic, OnFailure::Park);
    until(async || prepared.load(Ordering::Relaxed) == 2).await;
    running.stop().await.unwrap();

    assert!(prepared.load(Ordering::Relaxed) <= 3, "{prepared:?}");
}

/// The first message is put off once, and what is behind it with it; the second never ends.
async fn put_off(cx: Cx<'_, AtomicBool>, message: Numbered) -> Result<Outcome, BoxError> {
    match message.number {
        0 if !cx.state.swap(true, Ordering::Relaxed) => return Ok(Outcome::retry(Duration::ZERO)),
        1 => std::future::pending().await,
        _ => {}
    }
    effect(Cx { conn: cx.conn, meta: cx.meta, state: &() }, message).await
}

fn putting_off(bed: &Bed, topic: &str, on_failure: OnFailure) -> Started {
    produce(bed.brokers(), topic, &records(3, 1));
    let config = config(bed, topic).on_failure(on_failure).state(AtomicBool::new(false));
    start(Consumer::new(config).topic(topic).on("numbered.v1", put_off))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_message_whose_handler_does_not_end_is_given_up_where_failures_are_and_no_other() {
    let bed = bed("overrun_parked").await;
    let topic = bed.topic("overrun_parked", 1).await;

    let running = putting_off(&bed, &topic, OnFailure::DeadLetter);
    running.applied(2).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.dead_lettered, numbers(&bed).await.as_str()), (1, "0 2"));
    assert_eq!(bed.count(PARKED).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_message_whose_handler_does_not_end_halts_where_failures_do() {
    let bed = bed("overrun_parked_halts").await;
    let topic = bed.topic("overrun_parked_halts", 1).await;

    let error = putting_off(&bed, &topic, OnFailure::Halt).end().await;

    assert_eq!((error.kind(), error.position().unwrap().offset.get()), (Kind::Handler, 1));
    assert!(error.to_string().contains("handler_time_out of 1 s"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_halts_a_consumer_for_the_time_it_took_is_tried_once_more() {
    async fn hangs_once(cx: Cx<'_, AtomicBool>, message: Numbered) -> Result<Outcome, BoxError> {
        if !cx.state.swap(true, Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        effect(Cx { conn: cx.conn, meta: cx.meta, state: &() }, message).await
    }
    let bed = bed("overrun_spared").await;
    let topic = bed.topic("overrun_spared", 1).await;
    produce(bed.brokers(), &topic, &records(1, 1));

    let config = config(&bed, &topic).on_failure(OnFailure::Halt).state(AtomicBool::new(false));
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", hangs_once));
    running.applied(1).await;

    running.stop().await.unwrap();
}

/// A Postgres that stands still for a while, from when a handler runs for the first time.
struct Still {
    proxy: Proxy,
    time: Duration,
    sessions: Mutex<Vec<i32>>,
}

async fn meets(cx: Cx<'_, Arc<Still>>, message: Numbered) -> Result<Outcome, BoxError> {
    let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *cx.conn).await?;
    let is_first = {
        let mut sessions = cx.state.sessions.lock().unwrap();
        sessions.push(pid);
        sessions.len() == 1
    };
    if is_first {
        let still = Arc::clone(cx.state);
        still.proxy.hold();
        tokio::spawn(async move {
            tokio::time::sleep(still.time).await;
            still.proxy.pass();
        });
    }
    effect(Cx { conn: cx.conn, meta: cx.meta, state: &() }, message).await
}

/// The sessions in which the handler ran, after its message was applied: it is given up where it is blamed once.
async fn standing_still(name: &str, time: Duration, idle_max: Duration) -> Vec<i32> {
    let bed = bed(name).await;
    let topic = bed.topic(name, 1).await;
    produce(bed.brokers(), &topic, &records(1, 1));
    let proxy = bed.stack.postgres().proxy().unwrap();
    let pool = PgPoolOptions::new().max_connections(1);
    let pool = pool.connect_lazy(&proxy.url(bed.database.url())).unwrap();
    let still = Arc::new(Still { proxy, time, sessions: Mutex::default() });

    let config = Config::new(&topic, bed.brokers(), pool).handler_time_out(TIME_OUT).retries(0);
    let config = config.on_failure(OnFailure::DeadLetter).rebalance_deadline(idle_max);
    let config = config.state(Arc::clone(&still));
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", meets));
    running.delivered(1).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.dead_lettered), (1, 0));
    still.sessions.lock().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_met_a_postgres_which_stood_still_is_not_blamed() {
    let sessions = standing_still("overrun_still", TIME_OUT * 4, TIME_OUT).await;

    assert!(sessions.len() > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_of_a_handler_that_a_silent_postgres_broke_off_is_not_used_again() {
    let sessions = standing_still("overrun_silent", TIME_OUT * 7, DEADLINE).await;

    assert!(sessions.len() > 1 && sessions[1..].iter().all(|pid| *pid != sessions[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_is_cut_off_by_a_connection_of_the_pool_where_no_other_can_be_had() {
    async fn sleeps(cx: Cx<'_>, _: Numbered) -> Result<Outcome, BoxError> {
        sqlx::query("SELECT pg_sleep(600)").execute(cx.conn).await?;
        Ok(Outcome::Done)
    }
    let bed = bed("overrun_full").await;
    let topic = bed.topic("overrun_full", 1).await;
    produce(bed.brokers(), &topic, &records(1, 1));
    let pool = PgPoolOptions::new().min_connections(6).max_connections(6);
    let pool = pool.connect(bed.database.url()).await.unwrap();
    until(async || pool.num_idle() == 6).await;
    // There is no way to another one from here on.
    pool.set_connect_options(pool.connect_options().as_ref().clone().host("127.0.0.1").port(1));

    let mut config = config(&bed, &topic).attempts_max(2);
    config.options.pool = pool;
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", sleeps));
    running.delivered(1).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.parked, report.outages), (1, 0));
    let sleep = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'active' AND query = 'SELECT pg_sleep(600)'";
    until(async || bed.count(sleep).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_of_a_handler_that_blocks_its_thread() {
    type Blocked = Mutex<mpsc::Receiver<()>>;
    async fn blocks(cx: Cx<'_, Blocked>, message: Numbered) -> Result<Outcome, BoxError> {
        tokio::task::block_in_place(|| cx.state.lock().unwrap().recv_timeout(DEADLINE))?;
        effect(Cx { conn: cx.conn, meta: cx.meta, state: &() }, message).await?;
        Ok(Outcome::Done)
    }
    let bed = bed("overrun_blocks").await;
    let topic = bed.topic("overrun_blocks", 1).await;
    produce(bed.brokers(), &topic, &records(1, 1));

    let (go, blocked) = mpsc::channel();
    let config = config(&bed, &topic).handler_time_out(Duration::from_millis(200));
    let config = config.rebalance_deadline(DEADLINE).state(Mutex::new(blocked));
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", blocks));
    let told = format!("with topic {topic} partition 0 offset 0");
    let health = running.health.clone();
    until(async || health.faults().iter().any(|fault| fault.ends_with(&told))).await;
    // What comes after the wait is cut off, and the message tried again.
    for _ in 0..20 {
        go.send(()).unwrap();
    }

    running.applied(1).await;
    assert!(running.health.faults().is_empty());
    running.stop().await.unwrap();
}
