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

/// An orchestrated order, as its participants and its journal tell it. The clock of the participant is fast.
fn orchestrated() -> (Vec<Entry>, Vec<Noted>) {
    let message = |id, millis, source: &str, outcome, operation, cause: Option<&str>| Entry {
        source: source.to_owned(),
        message_type: if source == "/orders" { "credit.reserve" } else { "reply" }.to_owned(),
        outcome,
        operation,
        cause: cause.map(str::to_owned),
        ..entry((id, millis, "customers", "", "reserve-credit", Answer::Done, None))
    };
    let (action, undo) = (Operation::Action, Operation::Compensation);
    let messages = vec![
        message("m1", 2, "/orders", None, action, None),
        message("m2", 9_000, "/customers", Some(Answer::Done), action, Some("m1")),
        message("m3", 30, "/orders", None, undo, Some("m2")),
        message("m4", 9_020, "/customers", Some(Answer::Done), undo, Some("m3")),
    ];
    let journal = r#"[
        {"at":1700000000000000,"step":null,"what":"started"},
        {"at":1700000000000000,"step":"place-order","what":"asked","operation":"action","epoch":1,"attempt":1},
        {"at":1700000000000000,"step":"place-order","what":"answered","operation":"action","epoch":1,"answer":"done","verdict":"applied"},
        {"at":1700000000001000,"step":"reserve-credit","what":"asked","operation":"action","epoch":1,"attempt":1},
        {"at":1700000000020000,"step":"reserve-credit","what":"answered","operation":"action","epoch":1,"answer":"done","verdict":"applied"},
        {"at":1700000000020000,"step":"check","what":"answered","operation":"action","epoch":1,"answer":"refused","verdict":"applied"},
        {"at":1700000000020000,"step":null,"what":"compensating","cause":{"because":"refused","step":"check"}},
        {"at":1700000000030000,"step":"reserve-credit","what":"asked","operation":"compensation","epoch":2,"attempt":1},
        {"at":1700000000040000,"step":"reserve-credit","what":"answered","operation":"compensation","epoch":2,"answer":"done","verdict":"applied"},
        {"at":1700000000040000,"step":"place-order","what":"answered","operation":"compensation","epoch":2,"answer":"done","verdict":"applied"},
        {"at":1700000000041000,"step":null,"what":"compensated"}]"#;
    (messages, serde_json::from_str(journal).unwrap())
}

#[test]
fn what_an_orchestrator_does_without_a_message_stands_between_its_messages() {
    let (messages, journal) = orchestrated();
    let story = Timeline::new(saga_id(), messages).with(&journal);
    let expected = "\
saga 00000000-0000-0000-0000-000000000007 (create-order/1)
after    from        message         step                 outcome
0.000 s  /orders     (begins)
0.000 s  /orders     (does)          place-order          done
0.002 s  /orders     credit.reserve  reserve-credit       asked
9.000 s  /customers  reply           reserve-credit       done
0.020 s  /orders     (does)          check                refused
0.020 s  /orders     (turns round)                        check refused
0.030 s  /orders     credit.reserve  undo reserve-credit  asked
9.020 s  /customers  reply           undo reserve-credit  done
0.040 s  /orders     (does)          undo place-order     done
0.041 s  /orders     (ends)                               compensated
";
    let drawn = "\
sequenceDiagram
    participant s0 as /orders
    participant s1 as /customers
    Note over s0: begins
    Note over s0: does place-order done
    s0-)s1: credit.reserve
    s1-)s0: reply
    Note over s0: does check refused
    Note over s0: turns round check refused
    s0-)s1: credit.reserve
    Note over s1: reply
    Note over s0: does undo place-order done
    Note over s0: ends compensated
";

    assert_eq!(story.text(), expected);
    assert_eq!(story.sequence(), drawn);
    assert_eq!((story.entries().len(), story.inner().count()), (4, 6));
    // Where no message is known, the journal is told all the same.
    let alone = Timeline::new(saga_id(), Vec::new()).with(&journal).text();
    assert!(alone.contains("(begins)") && alone.contains("(ends)"), "{alone}");
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
    sqlx::query(
        "INSERT INTO tailrace.saga_journal (saga_id, revision, entries) VALUES ($1, 1, '[{\"at\": \"dawn\"}]')",
    )
    .bind(saga_id().as_uuid())
    .execute(&mut *tx)
    .await
    .unwrap();
    let beside_a_newer_journal = timeline(&mut tx, saga_id()).await.unwrap();
    assert_eq!(beside_a_newer_journal, read);
    let unknown = timeline(&mut tx, other).await.unwrap();
    assert!(unknown.entries().is_empty() && unknown.text().contains("nothing is known"));
}
