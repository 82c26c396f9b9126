use uuid::Uuid;

use super::*;
use crate::bed::installed;
use crate::fixture::saga_id;

/// A message of a choreographed order: id, milliseconds, service, type, step, how it ended, cause.
type Told =
    (&'static str, u64, &'static str, &'static str, &'static str, Answer, Option<&'static str>);

fn entry((id, millis, service, message_type, step, outcome, cause): Told) -> Entry {
    Entry {
        message_id: id.to_owned(),
        at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + millis),
        topic: service.to_owned(),
        source: format!("/{service}"),
        message_type: message_type.to_owned(),
        definition: "create-order/1".to_owned(),
        step: step.to_owned(),
        operation: match message_type {
            "credit.released" => Operation::Compensation,
            _ => Operation::Action,
        },
        outcome: Some(outcome),
        cause: cause.map(str::to_owned),
    }
}

fn refused_order() -> Vec<Entry> {
    [
        ("m4", 1_250, "customers", "credit.released", "reserve-credit", Answer::Done, Some("m3")),
        // The clock of the warehouse is slow.
        ("m3", 5, "warehouse", "stock.refused", "allocate-stock", Answer::Refused, Some("m2")),
        ("m2", 20, "customers", "credit.reserved", "reserve-credit", Answer::Done, Some("m1")),
        ("m1", 0, "orders", "order.placed", "place-order", Answer::Done, None),
    ]
    .map(entry)
    .to_vec()
}

#[test]
fn no_message_is_told_before_the_one_that_caused_it() {
    let expected = "\
saga 00000000-0000-0000-0000-000000000007 (create-order/1)
after    from        message          step                 outcome
0.000 s  /orders     order.placed     place-order          done
0.020 s  /customers  credit.reserved  reserve-credit       done
0.005 s  /warehouse  stock.refused    allocate-stock       refused
1.250 s  /customers  credit.released  undo reserve-credit  done
";

    assert_eq!(Timeline::new(saga_id(), refused_order()).text(), expected);
}

#[test]
fn a_story_is_drawn_as_who_told_whom() {
    let expected = "\
sequenceDiagram
    participant s0 as /orders
    participant s1 as /customers
    participant s2 as /warehouse
    s0-)s1: order.placed
    s1-)s2: credit.reserved
    s2-)s1: stock.refused (refused)
    Note over s1: credit.released
";

    assert_eq!(Timeline::new(saga_id(), refused_order()).sequence(), expected);
}

#[test]
fn what_caused_itself_is_told_too() {
    let circle = [
        ("m1", 0, "orders", "order.placed", "place-order", Answer::Done, Some("m2")),
        ("m2", 1, "orders", "order.placed", "place-order", Answer::Done, Some("m1")),
    ];

    assert_eq!(Timeline::new(saga_id(), circle.map(entry).to_vec()).entries().len(), 2);
}

#[tokio::test]
async fn a_story_is_kept_once_and_read_by_its_saga() {
    let bed = installed("story").await;
    let story: Vec<(SagaId, Entry)> =
        refused_order().into_iter().map(|entry| (saga_id(), entry)).collect();
    let other = SagaId::from_uuid(Uuid::from_u128(8));

    let mut tx = bed.begin().await;
    keep(&mut tx, &story).await.unwrap();
    keep(&mut tx, &story).await.unwrap();

    let read = timeline(&mut tx, saga_id()).await.unwrap();
    assert_eq!(read, Timeline::new(saga_id(), refused_order()));
    let unknown = timeline(&mut tx, other).await.unwrap();
    assert!(unknown.entries().is_empty() && unknown.text().contains("nothing is known"));
}
