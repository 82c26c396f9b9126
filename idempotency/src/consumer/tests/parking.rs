//! What becomes of messages that fail: parked, replayed, dead letters.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use sqlx::Connection as _;

use super::*;
use crate::handler::{BatchCx, Item};
use crate::inbox::{self, By};
use crate::retry::{OnFailure, OutOfHorizon};

/// Parked messages are tried again soon.
fn config(bed: &Bed, topic: &str) -> Config {
    let short = Duration::from_millis(50);
    Config::new(topic, bed.brokers(), bed.pool.clone()).parked_wait(short, short)
}

/// Messages with these numbers fail until they are let through.
#[derive(Default)]
struct Poison {
    numbers: Mutex<HashSet<i64>>,
    calls: AtomicI64,
}

impl Poison {
    fn of(numbers: impl IntoIterator<Item = i64>) -> Arc<Self> {
        let numbers = Mutex::new(numbers.into_iter().collect());
        Arc::new(Self { numbers, calls: AtomicI64::new(0) })
    }

    fn cure(&self) {
        self.numbers.lock().unwrap().clear();
    }

    fn holds(&self, number: i64) -> bool {
        self.numbers.lock().unwrap().contains(&number)
    }
}

async fn poisoned(cx: Cx<'_, Arc<Poison>>, message: Numbered) -> Result<Outcome, BoxError> {
    let (poison, number) = (cx.state, message.number);
    poison.calls.fetch_add(1, Ordering::Relaxed);
    effect(Cx { conn: cx.conn, meta: cx.meta, state: &() }, message).await?;
    if poison.holds(number) { Err("planted".into()) } else { Ok(Outcome::Done) }
}

const PARKED: &str = "SELECT count(*) FROM tailrace.parked_message";
const LETTERS: &str = "SELECT count(*) FROM tailrace.dead_letter";
const EFFECTS: &str = "SELECT count(*) FROM effect";

async fn text(bed: &Bed, query: &'static str) -> String {
    sqlx::query_scalar(query).fetch_one(&bed.pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_message_holds_back_its_own_key_alone_and_the_key_keeps_its_order() {
    let bed = bed("parking_order").await;
    let topic = bed.topic("parking_order", 1).await;
    let poison = Poison::of([13]);
    produce(bed.brokers(), &topic, &records(100, 10));

    let running = start(
        Consumer::new(config(&bed, &topic).state(Arc::clone(&poison)))
            .topic(&topic)
            .on("numbered.v1", poisoned),
    );
    running.delivered(100).await;
    produce(bed.brokers(), &topic, &records(100, 10)[..50]);
    running.delivered(150).await;

    // Of the key that failed the first message went before, and the others wait in order.
    assert_eq!(bed.count("SELECT count(*) FROM effect WHERE key = 'key-3'").await, 1);
    assert_eq!(bed.count("SELECT count(*) FROM effect WHERE key <> 'key-3'").await, 135);
    let states =
        "SELECT string_agg(CASE state WHEN 'waiting' THEN 'w' WHEN 'queued' THEN 'q' END, ''
                      ORDER BY \"offset\") FROM tailrace.parked_message";
    assert_eq!(text(&bed, states).await, format!("w{}", "q".repeat(13)));
    let why =
        "SELECT reason || ': ' || detail FROM tailrace.parked_message WHERE state = 'waiting'";
    assert_eq!(text(&bed, why).await, "failed: the handler of numbered.v1 failed: planted");

    poison.cure();
    running.applied(150).await;
    let report = running.stop().await.unwrap();
    assert_eq!((report.applied, report.parked, report.replayed), (150, 14, 14));
    assert_eq!(bed.count(PARKED).await, 0);
    assert_eq!(bed.count(EFFECTS).await, 150);
    assert_eq!(bed.count(ORDER_VIOLATIONS_BY_OFFSET).await, 0);
}

/// Effects have no offset; the time of minting is in the id, and records were made in order.
const ORDER_VIOLATIONS_BY_OFFSET: &str = "SELECT count(*) FROM (
    SELECT message_id < lag(message_id) OVER (PARTITION BY key ORDER BY n) AS late FROM effect) AS pairs WHERE late";

#[tokio::test(flavor = "multi_thread")]
async fn two_failing_records_of_one_partition_are_neither_lost_and_a_restart_replays_them() {
    let bed = bed("parking_two").await;
    let topic = bed.topic("parking_two", 1).await;
    let poison = Poison::of([3, 4]);
    produce(bed.brokers(), &topic, &records(20, 20));
    let consumer = || {
        Consumer::new(config(&bed, &topic).state(Arc::clone(&poison)))
            .topic(&topic)
            .on("numbered.v1", poisoned)
    };

    let running = start(consumer());
    running.delivered(20).await;
    running.stop().await.unwrap();
    assert_eq!((bed.count(EFFECTS).await, bed.count(PARKED).await), (18, 2));
    poison.cure();
    let running = start(consumer());
    running.applied(2).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.delivered, report.replayed), (0, 2));
    assert_eq!((bed.count(EFFECTS).await, bed.count(PARKED).await), (20, 0));
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_that_raises_23505_inside_a_handler_does_not_freeze_the_partition() {
    let bed = bed("parking_unique").await;
    // One constraint speaks at once, the other one at the commit.
    bed.execute(
        "ALTER TABLE effect ADD UNIQUE (number);
         ALTER TABLE effect ADD UNIQUE (key) DEFERRABLE INITIALLY DEFERRED",
    )
    .await;
    let topic = bed.topic("parking_unique", 1).await;
    let records =
        [numbered("a", 1), numbered("b", 2), numbered("c", 1), numbered("a", 3), numbered("d", 4)];
    produce(bed.brokers(), &topic, &records);

    let running = start(
        Consumer::new(config(&bed, &topic).on_failure(OnFailure::DeadLetter))
            .topic(&topic)
            .on("numbered.v1", effect),
    );
    running.delivered(5).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.dead_lettered), (3, 2));
    let numbers = "SELECT string_agg(number::text, ' ' ORDER BY number) FROM effect";
    assert_eq!(text(&bed, numbers).await, "1 2 4");
    let letters = "SELECT string_agg(\"offset\" || ' ' || reason || ' ' || substring(detail FROM 'SQLSTATE.*'),
                       ', ' ORDER BY \"offset\") FROM tailrace.dead_letter";
    assert_eq!(
        text(&bed, letters).await,
        "2 failed SQLSTATE 23505 of the constraint effect_number_key, \
         3 failed SQLSTATE 23505 of the constraint effect_key_key"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_tried_often_enough_is_stuck_until_a_person_retries_or_discards_it() {
    let bed = bed("parking_stuck").await;
    let topic = bed.topic("parking_stuck", 1).await;
    let poison = Poison::of([0, 2]);
    produce(bed.brokers(), &topic, &records(6, 2));

    let config = config(&bed, &topic).attempts_max(4).state(Arc::clone(&poison));
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", poisoned));
    let stuck =
        "SELECT count(*) FROM tailrace.parked_message WHERE state = 'stuck' AND attempts = 4";
    until(async || bed.count(stuck).await == 1).await;
    assert_eq!(bed.count(EFFECTS).await, 3);

    // The first is given up, the second of its key fails too and is retried in the end.
    bed.execute("UPDATE tailrace.parked_message SET state = 'discard' WHERE state = 'stuck'").await;
    until(async || bed.count(stuck).await == 1 && bed.count(LETTERS).await == 1).await;
    poison.cure();
    bed.execute(
        "UPDATE tailrace.parked_message SET state = 'waiting', retry_at = now() WHERE state = 'stuck'",
    )
    .await;
    running.applied(5).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.replayed, report.dead_lettered), (5, 2, 1));
    assert_eq!((bed.count(EFFECTS).await, bed.count(PARKED).await), (5, 0));
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
    assert_eq!(
        text(&bed, "SELECT reason || ' ' || attempts FROM tailrace.dead_letter").await,
        "discarded 4"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_retry_reject_and_what_does_not_decode_end_as_they_say() {
    async fn picky(cx: Cx<'_, AtomicBool>, message: Numbered) -> Result<Outcome, BoxError> {
        let (state, number) = (cx.state, message.number);
        effect(Cx { conn: cx.conn, meta: cx.meta, state: &() }, message).await?;
        Ok(match number {
            1 if !state.swap(true, Ordering::Relaxed) => Outcome::retry(Duration::from_millis(20)),
            2 => Outcome::reject("no such article"),
            _ => Outcome::Done,
        })
    }
    let bed = bed("parking_outcomes").await;
    let topic = bed.topic("parking_outcomes", 1).await;
    let bad = Outgoing { payload: "top secret".to_owned(), ..numbered("key-1", 3) };
    let foreign = numbered("key-2", 5).with("ce_type", "foreign.v1");
    let records = [numbered("key-1", 1), numbered("key-2", 2), bad, numbered("key-1", 4), foreign];
    produce(bed.brokers(), &topic, &records);

    let running = start(
        Consumer::new(config(&bed, &topic).state(AtomicBool::new(false)))
            .topic(&topic)
            .on("numbered.v1", picky)
            .unhandled(Unhandled::DeadLetter),
    );
    until(async || running.counters.report().dead_lettered == 3).await;
    running.applied(2).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.dead_lettered, report.rejected), (2, 3, 1));
    assert_eq!(
        text(&bed, "SELECT string_agg(number::text, ' ' ORDER BY n) FROM effect").await,
        "1 4"
    );
    let letters = "SELECT string_agg(\"offset\" || ' ' || reason || coalesce(': ' || detail, ''), ', ' ORDER BY \"offset\")
                   FROM tailrace.dead_letter";
    assert_eq!(
        text(&bed, letters).await,
        "1 rejected: no such article, \
         2 undecodable: the payload is not JSON (line 1, column 2), 4 unhandled"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_which_one_message_fails_is_halved_until_it_stands_alone() {
    async fn all(
        cx: BatchCx<'_, Arc<Poison>>,
        items: Vec<Item<'_, Numbered>>,
    ) -> Result<Outcome, BoxError> {
        let poison = cx.state;
        for item in &items {
            let row = Numbered { number: item.message.number };
            effect(Cx { conn: &mut *cx.conn, meta: item.meta, state: &() }, row).await?;
        }
        match items.iter().any(|item| poison.holds(item.message.number)) {
            true => Err("planted".into()),
            false => Ok(Outcome::Done),
        }
    }
    let bed = bed("parking_bisect").await;
    let topic = bed.topic("parking_bisect", 1).await;
    let poison = Poison::of([37]);
    produce(bed.brokers(), &topic, &records(100, 100));

    let running = start(
        Consumer::new(config(&bed, &topic).state(Arc::clone(&poison)))
            .topic(&topic)
            .on_batch("numbered.v1", all),
    );
    running.delivered(100).await;
    assert_eq!((bed.count(EFFECTS).await, bed.count(PARKED).await), (99, 1));
    poison.cure();
    running.applied(100).await;
    running.stop().await.unwrap();

    assert_eq!((bed.count(EFFECTS).await, bed.count(PARKED).await), (100, 0));
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_parked_keys_stop_the_intake_until_fewer_are() {
    let bed = bed("parking_full").await;
    let topic = bed.topic("parking_full", 1).await;
    let poison = Poison::of(0..40);
    produce(bed.brokers(), &topic, &records(40, 40));

    let config =
        config(&bed, &topic).batch_records_max(5).parked_keys_max(10).attempts_max(u32::MAX);
    let config = config.state(Arc::clone(&poison));
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", poisoned));
    until(async || bed.count(PARKED).await >= 10).await;
    // Each is called again meanwhile.
    let before = poison.calls.load(Ordering::Relaxed);
    until(async || poison.calls.load(Ordering::Relaxed) > before + 100).await;
    assert_eq!((bed.count(PARKED).await, bed.count(EFFECTS).await), (10, 0));
    until(async || running.health.faults().join("; ").contains("too many keys of")).await;
    poison.cure();
    running.applied(40).await;
    running.stop().await.unwrap();

    assert_eq!((bed.count(EFFECTS).await, bed.count(PARKED).await), (40, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_keeps_a_failed_statement_to_itself_is_found_and_others_go_on() {
    async fn swallows(cx: Cx<'_>, message: Numbered) -> Result<Outcome, BoxError> {
        if message.number == 4 {
            drop(sqlx::query("SELECT 1 / 0").execute(cx.conn).await);
            return Ok(Outcome::Done);
        }
        effect(cx, message).await
    }
    let bed = bed("parking_swallow").await;
    let topic = bed.topic("parking_swallow", 1).await;
    produce(bed.brokers(), &topic, &records(9, 9));

    let config = config(&bed, &topic).on_failure(OnFailure::DeadLetter);
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", swallows));
    running.delivered(9).await;
    running.stop().await.unwrap();

    assert_eq!((bed.count(EFFECTS).await, bed.count(LETTERS).await), (8, 1));
    assert_eq!(bed.count("SELECT \"offset\" FROM tailrace.dead_letter").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn older_types_are_upcast_and_ids_are_found_where_they_are_said_to_be() {
    #[derive(Deserialize)]
    struct Older {
        n: i64,
    }
    let bed = bed("parking_upcast").await;
    let topic = bed.topic("parking_upcast", 1).await;
    let older = Outgoing { payload: r#"{"n":7}"#.to_owned(), ..numbered("k", 0) };
    let foreign = numbered("k", 8).without("ce_id").with("id", "invoice 2026/4711");
    let records = [older.with("ce_type", "numbered.v0"), foreign.clone(), foreign];
    produce(bed.brokers(), &topic, &records);

    let running = start(
        consumer(&bed, &topic, &topic)
            .upcast("numbered.v0", |older: Older| Numbered { number: older.n })
            .id_from(crate::IdFrom::header("id")),
    );
    running.delivered(3).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.duplicates), (2, 1));
    assert_eq!(
        text(&bed, "SELECT string_agg(number::text, ' ' ORDER BY n) FROM effect").await,
        "7 8"
    );
}

#[tokio::test]
async fn an_upcast_to_what_no_handler_takes_is_told_before_anything_starts() {
    let pool = PgPool::connect_lazy("postgres://127.0.0.1:1/none").unwrap();
    let config = || Config::new("c", "b:1", pool.clone());
    let wrong = Consumer::new(config()).topic("t").on("numbered.v1", effect);
    let wrong = wrong.upcast("numbered.v0", |number: i64| number);
    let early = Consumer::<()>::new(config()).topic("t");
    let early = early.upcast("numbered.v0", |number: i64| Numbered { number });

    let wrong = wrong.run(std::future::pending()).await.unwrap_err().to_string();
    let early = early.run(std::future::pending()).await.unwrap_err().to_string();

    assert!(wrong.contains("does not make what the handler before it takes"), "{wrong}");
    assert!(early.contains("stands before any handler"), "{early}");
}

/// An id of the day that lies so many days ahead.
fn day(ahead: i64) -> String {
    let day = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64 / 86_400 + ahead;
    let [.., a, b, c, d, e, f] = (day * 86_400_000).to_be_bytes();
    format!("{a:02x}{b:02x}{c:02x}{d:02x}-{e:02x}{f:02x}-7000-8000-{:012x}", ahead + 1000)
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_outside_the_horizon_end_as_configured_and_are_counted() {
    let records = [
        numbered("old", 1).with("ce_id", &day(-500)),
        numbered("future", 2).with("ce_id", &day(3)),
        numbered("old", 3),
        numbered("future", 4),
    ];
    let bed = bed("parking_horizon").await;
    for (policy, effects, parked, letters) in [
        (OutOfHorizon::Reject, 2, 0, "future too_old"),
        (OutOfHorizon::Park, 0, 4, ""),
        (OutOfHorizon::Process, 4, 0, ""),
    ] {
        let topic = bed.topic("parking_horizon", 1).await;
        produce(bed.brokers(), &topic, &records);
        let config = config(&bed, &topic).out_of_horizon(policy);
        let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", effect));
        running.delivered(4).await;
        let report = running.stop().await.unwrap();

        let outside = if policy == OutOfHorizon::Process { 0 } else { 2 };
        assert_eq!(report.out_of_horizon, outside, "{policy:?}");
        assert_eq!(
            (bed.count(EFFECTS).await, bed.count(PARKED).await),
            (effects, parked),
            "{policy:?}"
        );
        let reasons = "SELECT coalesce(string_agg(reason, ' ' ORDER BY reason), '') FROM tailrace.dead_letter";
        assert_eq!(text(&bed, reasons).await, letters, "{policy:?}");
        let stuck = "SELECT count(*) FROM tailrace.parked_message WHERE state = 'stuck'";
        assert_eq!(bed.count(stuck).await, parked / 2, "{policy:?}");
        bed.execute("TRUNCATE effect, tailrace.parked_message, tailrace.dead_letter").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_outside_the_horizon_is_set_aside_once_and_has_one_effect_when_it_is_retried() {
    let records = [("old", -500), ("soon", 3), ("next year", 450)]
        .map(|(key, ahead)| numbered(key, ahead).with("ce_id", &day(ahead)));
    let bed = bed("parking_outside").await;
    for policy in [OutOfHorizon::Reject, OutOfHorizon::Park] {
        let topic = bed.topic("parking_outside", 1).await;
        let config = config(&bed, &topic).out_of_horizon(policy);
        produce(bed.brokers(), &topic, &[records.clone(), records.clone()].concat());
        let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", effect));
        running.delivered(6).await;
        produce(bed.brokers(), &topic, &records);
        running.delivered(9).await;

        let mut conn = bed.pool.acquire().await.unwrap();
        let filter = inbox::Filter::default().consumer(&topic);
        let entries = inbox::list(&mut conn, &filter, 100).await.unwrap();
        for entry in &entries {
            let by = By::new("anna");
            inbox::retry(&mut conn, entry, inbox::RETRIES_MAX, &by).await.unwrap();
        }
        running.applied(3).await;
        produce(bed.brokers(), &topic, &records);
        until(async || running.counters.report().duplicates == 9).await;
        let report = running.stop().await.unwrap();

        assert_eq!((entries.len(), report.applied, report.out_of_horizon), (3, 3, 3), "{policy:?}");
        assert_eq!((bed.count(EFFECTS).await, bed.count(DOUBLE_EFFECTS).await), (3, 0));
        assert_eq!((bed.count(PARKED).await, bed.count(LETTERS).await), (0, 0));
        bed.execute("TRUNCATE effect").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_asks_for_a_time_without_end_gets_a_year_and_others_go_on() {
    async fn never(cx: Cx<'_>, message: Numbered) -> Result<Outcome, BoxError> {
        match message.number {
            0 => Ok(Outcome::retry(Duration::MAX)),
            _ => effect(cx, message).await,
        }
    }
    let bed = bed("parking_year").await;
    let topic = bed.topic("parking_year", 1).await;
    produce(bed.brokers(), &topic, &[numbered("a", 0), numbered("b", 1)]);

    let running = start(Consumer::new(config(&bed, &topic)).topic(&topic).on("numbered.v1", never));
    running.delivered(2).await;
    running.stop().await.unwrap();

    let year = "SELECT count(*) FROM tailrace.parked_message
                WHERE reason = 'later' AND retry_at - now() BETWEEN '364 days' AND '365 days'";
    assert_eq!((bed.count(EFFECTS).await, bed.count(year).await), (1, 1));
}

/// How often a message was handed in, and whether what it waits for is there.
#[derive(Default)]
struct Other {
    asked: AtomicI64,
    is_there: AtomicBool,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_waits_for_another_one_is_never_stuck_and_says_why_it_waits() {
    async fn after_other(cx: Cx<'_, Arc<Other>>, message: Numbered) -> Result<Outcome, BoxError> {
        cx.state.asked.fetch_add(1, Ordering::Relaxed);
        if message.number == 1 && !cx.state.is_there.load(Ordering::Relaxed) {
            return Ok(Outcome::wait("the other one is not there"));
        }
        effect(Cx { conn: cx.conn, meta: cx.meta, state: &() }, message).await
    }
    let bed = bed("parking_waits").await;
    let topic = bed.topic("parking_waits", 1).await;
    produce(bed.brokers(), &topic, &[numbered("a", 1), numbered("b", 2), numbered("a", 3)]);
    let other = Arc::new(Other::default());
    let short = Duration::from_millis(10);
    let config = config(&bed, &topic).parked_wait(short, short).state(Arc::clone(&other));

    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", after_other));
    // More often than a failing message is tried by default.
    until(async || other.asked.load(Ordering::Relaxed) > 30).await;
    let mut conn = bed.pool.acquire().await.unwrap();
    let parked = inbox::list(&mut conn, &inbox::Filter::default(), 9).await.unwrap();
    other.is_there.store(true, Ordering::Relaxed);
    running.applied(3).await;
    let report = running.stop().await.unwrap();

    let [waits, behind] = &parked[..] else { panic!("{parked:?}") };
    assert_eq!((waits.state, waits.attempts), (inbox::State::Waiting, 0));
    assert_eq!(waits.reason.as_deref(), Some("waits"));
    assert_eq!(waits.detail.as_deref(), Some("the other one is not there"));
    assert_eq!(behind.state, inbox::State::Queued);
    assert_eq!((report.failed_attempts, report.replayed), (0, 2));
    assert_eq!((bed.count(PARKED).await, bed.count(ORDER_VIOLATIONS).await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_message_that_always_meets_a_transient_fault_is_stuck_and_each_attempt_counts() {
    async fn later(_: Cx<'_>, _: Numbered) -> Result<Outcome, BoxError> {
        Ok(Outcome::retry(Duration::ZERO))
    }
    async fn cancelled(cx: Cx<'_>, _: Numbered) -> Result<Outcome, BoxError> {
        sqlx::query("DO $$ BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '57014'; END $$")
            .execute(cx.conn)
            .await?;
        Ok(Outcome::Done)
    }
    let bed = bed("parking_cancelled").await;
    let topic = bed.topic("parking_cancelled", 1).await;
    produce(bed.brokers(), &topic, &[numbered("a", 1)]);
    let consumer =
        |attempts| Consumer::new(config(&bed, &topic).attempts_max(attempts)).topic(&topic);
    let stuck = "SELECT count(*) FROM tailrace.parked_message WHERE state = 'stuck'";

    let running = start(consumer(1).on("numbered.v1", later));
    until(async || bed.count(stuck).await == 1).await;
    running.stop().await.unwrap();
    bed.execute("UPDATE tailrace.parked_message SET state = 'waiting', retry_at = now()").await;
    let running = start(consumer(4).on("numbered.v1", cancelled));
    until(async || bed.count(stuck).await == 1).await;
    let report = running.stop().await.unwrap();

    assert_eq!(bed.count("SELECT attempts::bigint FROM tailrace.parked_message").await, 4);
    assert_eq!(report.failed_attempts, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_between_the_rows_of_two_consumers_halves_batches_and_loses_nothing() {
    type Crossing = (Arc<tokio::sync::Barrier>, AtomicBool);
    async fn crossing(cx: Cx<'_, Crossing>, message: Numbered) -> Result<Outcome, BoxError> {
        let key = cx.meta.key().and_then(|key| str::from_utf8(key).ok());
        sqlx::query("UPDATE account SET total = total + $2 WHERE name = $1")
            .bind(key)
            .bind(message.number)
            .execute(&mut *cx.conn)
            .await?;
        let (both, met) = cx.state;
        // Each holds its first row before either asks for its second.
        if !met.swap(true, Ordering::Relaxed) {
            both.wait().await;
        }
        Ok(Outcome::Done)
    }
    let bed = bed("parking_deadlock").await;
    bed.execute(
        "CREATE TABLE account (name text PRIMARY KEY, total bigint NOT NULL);
         INSERT INTO account VALUES ('a', 0), ('b', 0)",
    )
    .await;
    let both = Arc::new(tokio::sync::Barrier::new(2));
    let mut running = Vec::new();
    for keys in [["a", "b"], ["b", "a"]] {
        let topic = bed.topic("parking_deadlock", 1).await;
        let records: Vec<_> = (0..40).map(|n| numbered(keys[usize::from(n % 2 == 1)], 1)).collect();
        produce(bed.brokers(), &topic, &records);
        let state = (Arc::clone(&both), AtomicBool::new(false));
        let config = config(&bed, &topic).batch_wait(Duration::from_secs(1)).state(state);
        running.push(start(Consumer::new(config).topic(&topic).on("numbered.v1", crossing)));
    }
    let mut retried = 0;
    for running in running {
        running.applied(40).await;
        let report = running.stop().await.unwrap();
        assert_eq!((report.applied, report.parked), (40, 0));
        retried += report.retried_batches;
    }

    assert!(retried >= 1, "no deadlock came about");
    assert_eq!(text(&bed, "SELECT string_agg(total::text, ' ') FROM account").await, "40 40");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_longer_than_the_poll_interval_keeps_the_consumer_in_the_group() {
    /// Longer than the interval, which is no shorter than the session.
    const BLOCKED: Duration = Duration::from_secs(4);
    async fn blocked(
        cx: Cx<'_, std::time::Instant>,
        message: Numbered,
    ) -> Result<Outcome, BoxError> {
        if cx.state.elapsed() < BLOCKED {
            sqlx::query("DO $$ BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '55P03'; END $$")
                .execute(&mut *cx.conn)
                .await?;
        }
        effect(Cx { conn: cx.conn, meta: cx.meta, state: &() }, message).await
    }
    let bed = bed("parking_interval").await;
    let topic = bed.topic("parking_interval", 1).await;
    produce(bed.brokers(), &topic, &records(5, 5));
    let config = config(&bed, &topic)
        .kafka_property("session.timeout.ms", "3000")
        .kafka_property("heartbeat.interval.ms", "300")
        .kafka_property("max.poll.interval.ms", "3000")
        .state(std::time::Instant::now());

    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", blocked));
    running.applied(5).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.fenced, report.duplicates), (0, 0));
    assert_eq!(bed.count("SELECT epoch FROM tailrace.consumer_progress").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_ends_within_a_replay_leaves_the_message_to_the_next_owner() {
    struct Hang {
        replaying: Semaphore,
        calls: AtomicI64,
    }
    async fn hangs(cx: Cx<'_, Arc<Hang>>, message: Numbered) -> Result<Outcome, BoxError> {
        effect(Cx { conn: &mut *cx.conn, meta: cx.meta, state: &() }, message).await?;
        if cx.state.calls.fetch_add(1, Ordering::Relaxed) < 2 {
            return Err("planted".into());
        }
        cx.state.replaying.add_permits(1);
        std::future::pending().await
    }
    let bed = bed("parking_killed").await;
    let topic = bed.topic("parking_killed", 1).await;
    produce(bed.brokers(), &topic, &records(3, 1));
    let hang = Arc::new(Hang { replaying: Semaphore::new(0), calls: AtomicI64::new(0) });

    let config = config(&bed, &topic).state(Arc::clone(&hang));
    let hanging = start(Consumer::new(config).topic(&topic).on("numbered.v1", hangs));
    hang.replaying.acquire().await.unwrap().forget();
    hanging.task.abort();
    let running = start(consumer(&bed, &topic, &topic));
    running.applied(3).await;
    let report = running.stop().await.unwrap();

    assert_eq!(report.replayed, 3);
    assert_eq!((bed.count(EFFECTS).await, bed.count(PARKED).await), (3, 0));
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_the_database_that_one_message_always_meets_holds_back_its_key_alone() {
    async fn locked(cx: Cx<'_>, message: Numbered) -> Result<Outcome, BoxError> {
        if message.number == 2 {
            sqlx::query("DO $$ BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '55P03'; END $$")
                .execute(&mut *cx.conn)
                .await?;
        }
        effect(cx, message).await
    }
    let bed = bed("parking_locked").await;
    let topic = bed.topic("parking_locked", 1).await;
    produce(bed.brokers(), &topic, &records(8, 4));

    let config = config(&bed, &topic).retry_for(Duration::from_millis(300)).attempts_max(3);
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", locked));
    let stuck =
        "SELECT count(*) FROM tailrace.parked_message WHERE state = 'stuck' AND attempts = 3";
    until(async || bed.count(stuck).await == 1 && bed.count(EFFECTS).await == 6).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.parked), (6, 2));
    assert_eq!(bed.count("SELECT count(*) FROM effect WHERE key = 'key-2'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_is_put_back_is_applied_by_the_consumer_that_runs() {
    let bed = bed("parking_put_back").await;
    let topic = bed.topic("parking_put_back", 1).await;
    let poison = Poison::of([1]);
    let config = config(&bed, &topic).on_failure(OnFailure::DeadLetter);
    let running = start(
        Consumer::new(config.state(Arc::clone(&poison))).topic(&topic).on("numbered.v1", poisoned),
    );
    produce(bed.brokers(), &topic, &records(3, 3));
    running.delivered(3).await;
    poison.cure();

    let mut conn = bed.pool.acquire().await.unwrap();
    let letter = inbox::get(&mut conn, &"dead:1".parse().unwrap()).await.unwrap();
    inbox::retry(&mut conn, &letter, inbox::RETRIES_MAX, &By::new("anna")).await.unwrap();
    running.applied(3).await;
    running.stop().await.unwrap();

    assert_eq!((bed.count(PARKED).await, bed.count(LETTERS).await), (0, 0));
    assert_eq!(bed.count(EFFECTS).await, 3);
}

/// MassTransit#4299: a transaction was held open across waits.
#[tokio::test(flavor = "multi_thread")]
async fn no_transaction_is_open_while_a_message_waits_for_its_next_attempt() {
    #[derive(Default)]
    struct Waits {
        is_well: AtomicBool,
        transactions: Mutex<Vec<String>>,
    }
    async fn fails(cx: Cx<'_, Arc<Waits>>, message: Numbered) -> Result<Outcome, BoxError> {
        effect(Cx { conn: &mut *cx.conn, meta: cx.meta, state: &() }, message).await?;
        let current = sqlx::query_scalar("SELECT pg_current_xact_id()::text");
        let current = current.fetch_one(&mut *cx.conn).await?;
        cx.state.transactions.lock().unwrap().push(current);
        if !cx.state.is_well.load(Ordering::Relaxed) {
            // Nobody's fault: the lane waits and repeats the batch. Without the savepoint it is Postgres that aborts the
            // transaction.
            let mut savepoint = cx.conn.begin().await?;
            let raise = sqlx::query("DO $$ BEGIN RAISE SQLSTATE '55P03'; END $$");
            let raised = raise.execute(&mut *savepoint).await;
            savepoint.rollback().await?;
            raised?;
        }
        Ok(Outcome::retry(DEADLINE * 60))
    }
    let waits = Arc::new(Waits::default());
    let bed = bed("parking_waits").await;
    let topic = bed.topic("parking_waits", 1).await;
    produce(bed.brokers(), &topic, &records(1, 1));
    let config = config(&bed, &topic).retry_for(DEADLINE * 60).state(Arc::clone(&waits));
    let consumer = Consumer::new(config).topic(&topic).on("numbered.v1", fails);
    let is_parked = "SELECT count(*) FROM tailrace.parked_message WHERE state = 'waiting'";
    let open = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()
                  AND backend_type = 'client backend' AND xact_start IS NOT NULL";

    let running = start(consumer);
    // Waits that are longer than a look; each is counted when it begins.
    for attempt in 5..9 {
        until(async || running.counters.report().retried_batches > attempt).await;
        let attempt = usize::try_from(attempt).unwrap();
        let before = waits.transactions.lock().unwrap()[attempt].clone();
        let status = sqlx::query_scalar("SELECT pg_xact_status($1::text::xid8)").bind(&before);
        let status: String = status.fetch_one(&bed.pool).await.unwrap();
        assert_eq!(status, "aborted");
    }
    assert_eq!(bed.count(is_parked).await, 0);
    waits.is_well.store(true, Ordering::Relaxed);
    until(async || bed.count(is_parked).await == 1).await;
    // No attempt comes for an hour.
    until(async || bed.count(open).await == 0).await;
    running.stop().await.unwrap();
}
