//! What becomes of messages that fail: parked, replayed, dead letters.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use super::*;
use crate::handler::{BatchCx, Item};
use crate::retry::OnFailure;

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
        config(&bed, &topic).batch_records_max(5).parked_keys_max(10).state(Arc::clone(&poison));
    let running = start(Consumer::new(config).topic(&topic).on("numbered.v1", poisoned));
    until(async || bed.count(PARKED).await >= 10).await;
    // Each is called again meanwhile.
    let before = poison.calls.load(Ordering::Relaxed);
    until(async || poison.calls.load(Ordering::Relaxed) > before + 100).await;
    assert_eq!((bed.count(PARKED).await, bed.count(EFFECTS).await), (10, 0));
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
