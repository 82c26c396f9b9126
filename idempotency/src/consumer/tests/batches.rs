//! Handlers that take many messages at once.

use super::*;
use crate::handler::{Apart, BatchCx, Item};

/// One statement for all, with how many it was given at once.
async fn together(cx: BatchCx<'_>, items: Vec<Item<'_, Numbered>>) -> Result<Outcome, BoxError> {
    let ids: Vec<_> = items.iter().map(|item| *item.meta.message_id().as_uuid()).collect();
    let keys: Vec<_> =
        items.iter().map(|item| item.meta.key().and_then(|key| str::from_utf8(key).ok())).collect();
    let numbers: Vec<_> = items.iter().map(|item| item.message.number).collect();
    sqlx::query(
        "INSERT INTO effect (message_id, key, number, partition)
         SELECT id, key, number, $4 FROM unnest($1::uuid[], $2::text[], $3::bigint[])
             WITH ORDINALITY AS given (id, key, number, place) ORDER BY place",
    )
    .bind(ids)
    .bind(keys)
    .bind(numbers)
    .bind(i32::try_from(items.len())?)
    .execute(cx.conn)
    .await?;
    Ok(Outcome::Done)
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_type_are_applied_together_once_in_order() {
    let bed = bed("batch_once").await;
    let topic = bed.topic("batch_once", 1).await;
    // The second of each ten is of the other type, and every record is delivered twice.
    let records: Vec<Outgoing> = records(1000, 17)
        .into_iter()
        .enumerate()
        .map(|(at, record)| if at % 10 == 1 { record.with("ce_type", "single.v1") } else { record })
        .collect();
    let twice: Vec<Outgoing> =
        records.chunks(7).flat_map(|chunk| chunk.iter().chain(chunk)).cloned().collect();
    produce(bed.brokers(), &topic, &twice);

    let running = start(
        Consumer::new(Config::new(&topic, bed.brokers(), bed.pool.clone()))
            .topic(&topic)
            .on_batch("numbered.v1", together)
            .on("single.v1", effect),
    );
    running.delivered(2000).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.duplicates), (1000, 1000));
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 1000);
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
    // What stands between two of the other type is given at once, and nothing more.
    let most = "SELECT max(partition)::bigint FROM effect";
    assert_eq!(bed.count(most).await, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_does_not_decode_is_named_among_many_and_nothing_is_applied() {
    let bed = bed("batch_payload").await;
    let topic = bed.topic("batch_payload", 1).await;
    let mut records = records(20, 3);
    records[13].payload = "{".to_owned();
    produce(bed.brokers(), &topic, &records);

    let config = Config::new(&topic, bed.brokers(), bed.pool.clone())
        .on_failure(crate::retry::OnFailure::Halt)
        .batch_records_max(20);
    let running = start(Consumer::new(config).topic(&topic).on_batch("numbered.v1", together));
    let error = running.end().await;

    assert_eq!((error.kind(), error.message_id()), (Kind::Payload, Some(records[13].id())));
    assert_eq!(error.position().unwrap().offset.get(), 13);
    let progress =
        bed.count("SELECT coalesce(max(next_offset), 0) FROM tailrace.consumer_progress");
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, progress.await);
}

/// Refuses the message with number 13 by its place.
async fn all_but_the_thirteenth(
    cx: BatchCx<'_>,
    items: Vec<Item<'_, Numbered>>,
) -> Result<Outcome, BoxError> {
    let named = items.iter().position(|item| item.message.number == 13);
    together(cx, items).await?;
    match named {
        Some(place) => Err(Apart::one(place, Ok(Outcome::reject("unlucky"))).into()),
        None => Ok(Outcome::Done),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_a_handler_of_batches_names_is_given_up_alone_and_nothing_is_halved() {
    let bed = bed("batch_named").await;
    let topic = bed.topic("batch_named", 1).await;
    let mut records = records(20, 20);
    // The handler does not see it, so that places in its batch are not those in the transaction.
    records[3].payload = "{".to_owned();
    produce(bed.brokers(), &topic, &records);

    let config = Config::new(&topic, bed.brokers(), bed.pool.clone());
    let running =
        start(Consumer::new(config).topic(&topic).on_batch("numbered.v1", all_but_the_thirteenth));
    until(async || running.counters.report().applied >= 18).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.dead_lettered, report.failed_attempts), (18, 2, 1));
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 18);
    assert_eq!(bed.count("SELECT count(*) FROM effect WHERE number = 13").await, 0);
    let letters = "SELECT count(*) FROM tailrace.dead_letter WHERE \"offset\" IN (3, 13)";
    assert_eq!(bed.count(letters).await, 2);
}

/// Does its work, and asks for its messages once more as often as that is still left.
async fn reconsidered(
    cx: BatchCx<'_, std::sync::atomic::AtomicU32>,
    items: Vec<Item<'_, Numbered>>,
) -> Result<Outcome, BoxError> {
    use std::sync::atomic::Ordering::Relaxed;
    let state = cx.state;
    let plain = BatchCx { conn: cx.conn, state: &() };
    together(plain, items).await?;
    match state.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)) {
        Ok(_) => Err(Apart::again().into()),
        Err(_) => Ok(Outcome::Done),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_a_handler_wants_once_more_leave_nothing_of_the_first_time() {
    let bed = bed("batch_again").await;
    let topic = bed.topic("batch_again", 1).await;
    produce(bed.brokers(), &topic, &records(20, 3));

    let config = Config::new(&topic, bed.brokers(), bed.pool.clone());
    // Once without a savepoint, and once behind one.
    let config = config.state(std::sync::atomic::AtomicU32::new(2));
    let running = start(Consumer::new(config).topic(&topic).on_batch("numbered.v1", reconsidered));
    running.applied(20).await;
    let report = running.stop().await.unwrap();

    assert_eq!((report.applied, report.failed_attempts, report.retried_batches), (20, 0, 0));
    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 20);
    assert_eq!(bed.count(DOUBLE_EFFECTS).await, 0);
    assert_eq!(bed.count(ORDER_VIOLATIONS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_wants_its_messages_again_and_again_is_blamed_for_them() {
    let bed = bed("batch_for_ever").await;
    let topic = bed.topic("batch_for_ever", 1).await;
    produce(bed.brokers(), &topic, &records(1, 1));

    let config = Config::new(&topic, bed.brokers(), bed.pool.clone())
        .on_failure(crate::retry::OnFailure::DeadLetter);
    let config = config.state(std::sync::atomic::AtomicU32::new(u32::MAX));
    let running = start(Consumer::new(config).topic(&topic).on_batch("numbered.v1", reconsidered));
    until(async || running.counters.report().dead_lettered == 1).await;
    running.stop().await.unwrap();

    assert_eq!(bed.count("SELECT count(*) FROM effect").await, 0);
}
