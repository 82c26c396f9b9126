use std::time::Duration;

use super::*;
use crate::fixture::{Bed, installed, new_id};

/// As a consumer would have set them aside.
async fn park(bed: &Bed, key: Option<&str>, offset: i64, state: &str) {
    let park = r#"INSERT INTO tailrace.parked_message
            (consumer, topic, partition, "offset", key, message_id, message_type, payload, header_names,
             header_values, state, retry_at, attempts, reason, parked_at)
        VALUES ('billing', 'orders', 0, $1, $2, $3, 'order.v1', 'old', '{a}', '{b}', $4,
                CASE WHEN $4 = 'waiting' THEN now() + interval '1 hour' END, 5, 'failed',
                now() - interval '2 hours')"#;
    sqlx::query(park)
        .bind(offset)
        .bind(key.map(str::as_bytes))
        .bind(*new_id().as_uuid())
        .bind(state)
        .execute(&bed.pool)
        .await
        .unwrap();
}

async fn bury(bed: &Bed, key: Option<&str>, offset: i64, with_id: bool) -> Place {
    let bury = r#"INSERT INTO tailrace.dead_letter
            (consumer, topic, partition, "offset", key, message_id, message_type, payload, header_names,
             header_values, reason, detail, dead_at)
        VALUES ('billing', 'orders', 0, $1, $2, $3, 'order.v1', 'old', '{}', '{}', 'rejected', 'no such order',
                now() - interval '2 days')
        RETURNING id"#;
    let id = sqlx::query_scalar(bury)
        .bind(offset)
        .bind(key.map(str::as_bytes))
        .bind(with_id.then(|| *new_id().as_uuid()))
        .fetch_one(&bed.pool)
        .await
        .unwrap();
    Place::Dead(id)
}

fn parked(offset: i64) -> Place {
    format!("billing/orders/0/{offset}").parse().unwrap()
}

async fn at(bed: &Bed, place: &Place) -> Entry {
    get(&mut bed.pool.acquire().await.unwrap(), place).await.unwrap()
}

async fn retried(bed: &Bed, place: &Place) -> Result<Retry, Error> {
    let entry = at(bed, place).await;
    retry(&mut bed.pool.acquire().await.unwrap(), &entry, RETRIES_MAX, &By::new("anna")).await
}

/// Offset and state of what is parked, in order.
async fn states(bed: &Bed) -> Vec<(i64, String)> {
    let states = r#"SELECT "offset", state FROM tailrace.parked_message ORDER BY "offset""#;
    sqlx::query_as(states).fetch_all(&bed.pool).await.unwrap()
}

fn named(states: &[(i64, &str)]) -> Vec<(i64, String)> {
    states.iter().map(|(offset, state)| (*offset, (*state).to_owned())).collect()
}

#[test]
fn a_place_is_read_as_it_is_shown() {
    for text in ["billing/orders/0/17", "team/billing/orders.v1/3/9", "dead:42"] {
        assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
    }
    for text in ["", "orders/0/17", "dead:x", "billing/orders/0/", "billing/orders/x/1"] {
        assert_eq!(text.parse::<Place>().unwrap_err().kind(), Kind::Config, "{text}");
    }
}

#[test]
fn any_text_is_a_json_string() {
    assert_eq!(quoted("a \"b\" \\ \n\u{7f} ü"), r#""a \"b\" \\ \u000a\u007f ü""#);
}

#[tokio::test]
async fn what_is_set_aside_is_found_by_each_of_its_properties() {
    let bed = installed("inbox_filter").await;
    park(&bed, Some("a"), 1, "stuck").await;
    park(&bed, Some("a"), 2, "queued").await;
    park(&bed, None, 3, "waiting").await;
    bury(&bed, Some("b"), 4, true).await;
    let mut conn = bed.pool.acquire().await.unwrap();
    let mut check = async |filter: Filter, expected: &[i64]| {
        let found = list(&mut conn, &filter, 10).await.unwrap();
        let mut offsets: Vec<i64> = found.iter().map(|entry| entry.offset).collect();
        offsets.sort_unstable();
        assert_eq!(offsets, expected, "{filter:?}");
        let counted = count(&mut conn, &filter).await.unwrap();
        assert_eq!(counted, expected.len() as u64, "{filter:?}");
    };
    let hour = Duration::from_secs(3600);

    check(Filter::default(), &[1, 2, 3, 4]).await;
    check(Filter::default().consumer("billing").topic("orders").partition(0), &[1, 2, 3, 4]).await;
    check(Filter::default().consumer("shipping"), &[]).await;
    check(Filter::default().topic("x"), &[]).await;
    check(Filter::default().partition(1), &[]).await;
    check(Filter::default().key("a"), &[1, 2]).await;
    check(Filter::default().message_type("order.v1").reason("rejected"), &[4]).await;
    check(Filter::default().message_type("order.v2"), &[]).await;
    check(Filter::default().state(State::Waiting), &[3]).await;
    check(Filter::default().older_than(24 * hour), &[4]).await;
    check(Filter::default().newer_than(24 * hour).older_than(hour), &[1, 2, 3]).await;
    check(Filter::default().newer_than(Duration::MAX), &[1, 2, 3, 4]).await;
    check(Filter::default().older_than(Duration::MAX), &[]).await;
    let first = list(&mut conn, &Filter::default(), 2).await.unwrap();
    assert_eq!(first.iter().map(|entry| entry.offset).collect::<Vec<_>>(), [4, 1]);
    assert_eq!((first[1].behind, first[1].is_first, first[1].payload_bytes), (1, true, Some(3)));
    assert_eq!(first[1].payload, None);
    assert_eq!(at(&bed, &parked(1)).await.payload.unwrap(), b"old");
}

#[tokio::test]
async fn the_first_message_of_a_key_is_retried_and_no_other_before_it() {
    let bed = installed("inbox_retry").await;
    for (key, offset, state) in [
        (Some("a"), 1, "stuck"),
        (Some("a"), 2, "queued"),
        (None, 3, "stuck"),
        (None, 4, "waiting"),
    ] {
        park(&bed, key, offset, state).await;
    }

    let behind = retried(&bed, &parked(2)).await.unwrap_err();
    for offset in [1, 3, 4] {
        assert_eq!(retried(&bed, &parked(offset)).await.unwrap(), Retry::Now);
    }

    assert_eq!(behind.kind(), Kind::Conflict);
    assert!(behind.to_string().contains("an earlier message of its key"), "{behind}");
    let all = [(1, "waiting"), (2, "queued"), (3, "waiting"), (4, "waiting")];
    assert_eq!(states(&bed).await, named(&all));
    let due = "SELECT count(*) FROM tailrace.parked_message WHERE retry_at <= now()";
    assert_eq!(bed.count(due).await, 3);
    let audited =
        "SELECT count(*) FROM tailrace.inbox_audit WHERE actor = 'anna' AND action = 'retry'
                   AND before->>'state' IN ('stuck', 'waiting') AND NOT before ? 'payload_hex'";
    assert_eq!(bed.count(audited).await, 3);
}

#[tokio::test]
async fn a_dead_letter_is_put_back_in_its_place_among_what_is_parked_of_its_key() {
    let bed = installed("inbox_put_back").await;
    park(&bed, Some("a"), 5, "waiting").await;
    park(&bed, Some("a"), 6, "queued").await;
    let before = bury(&bed, Some("a"), 2, true).await;
    let behind = bury(&bed, Some("a"), 7, true).await;
    let alone = bury(&bed, Some("b"), 3, true).await;
    let single = bury(&bed, None, 1, true).await;

    assert_eq!(retried(&bed, &before).await.unwrap(), Retry::PutBackFirst { behind: 2 });
    assert_eq!(retried(&bed, &behind).await.unwrap(), Retry::PutBackBehind);
    assert_eq!(retried(&bed, &alone).await.unwrap(), Retry::PutBackFirst { behind: 0 });
    assert_eq!(retried(&bed, &single).await.unwrap(), Retry::PutBackFirst { behind: 0 });

    let all = [
        (1, "waiting"),
        (2, "waiting"),
        (3, "waiting"),
        (5, "queued"),
        (6, "queued"),
        (7, "queued"),
    ];
    assert_eq!(states(&bed).await, named(&all));
    assert_eq!(bed.count("SELECT count(*) FROM tailrace.dead_letter").await, 0);
}

#[tokio::test]
async fn what_fails_each_time_and_what_no_handler_can_take_is_not_retried() {
    let bed = installed("inbox_loop").await;
    park(&bed, Some("a"), 1, "stuck").await;
    let unreadable = bury(&bed, Some("b"), 2, false).await;
    let taken = bury(&bed, Some("a"), 1, true).await;
    for _ in 0..RETRIES_MAX {
        retried(&bed, &parked(1)).await.unwrap();
    }

    let again = retried(&bed, &parked(1)).await.unwrap_err();
    let entry = at(&bed, &parked(1)).await;
    let mut conn = bed.pool.acquire().await.unwrap();
    let forced = retry(&mut conn, &entry, u32::MAX, &By::new("anna").note("last time")).await;
    let no_id = retried(&bed, &unreadable).await.unwrap_err();
    let entry = at(&bed, &taken).await;
    let in_its_place = retry(&mut conn, &entry, u32::MAX, &By::new("anna")).await.unwrap_err();

    assert!(again.to_string().contains("retried by hand 3 times"), "{again}");
    assert_eq!(forced.unwrap(), Retry::Now);
    assert!(no_id.to_string().contains("no readable id"), "{no_id}");
    assert!(in_its_place.to_string().contains("at its offset already"), "{in_its_place}");
    assert_eq!(bed.count("SELECT count(*) FROM tailrace.dead_letter").await, 2);
}

#[tokio::test]
async fn what_has_changed_since_it_was_read_is_left_alone() {
    let bed = installed("inbox_stale").await;
    park(&bed, Some("a"), 1, "stuck").await;
    let letter = bury(&bed, Some("b"), 2, true).await;
    let (message, dead) = (at(&bed, &parked(1)).await, at(&bed, &letter).await);
    bed.execute("DELETE FROM tailrace.parked_message; DELETE FROM tailrace.dead_letter").await;
    let mut conn = bed.pool.acquire().await.unwrap();
    let by = By::new("anna");

    for entry in [&message, &dead] {
        for error in [
            retry(&mut conn, entry, RETRIES_MAX, &by).await.unwrap_err(),
            discard(&mut conn, entry, &by).await.unwrap_err(),
            edit(&mut conn, entry, b"new", &by).await.unwrap_err(),
            get(&mut conn, &entry.place).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), Kind::Conflict, "{error}");
        }
    }
    assert_eq!(bed.count("SELECT count(*) FROM tailrace.inbox_audit").await, 0);
}

#[tokio::test]
async fn a_message_is_given_up_or_given_another_payload_and_the_old_one_is_kept() {
    let bed = installed("inbox_change").await;
    park(&bed, Some("a"), 1, "stuck").await;
    park(&bed, Some("b"), 2, "waiting").await;
    let letter = bury(&bed, Some("c"), 3, true).await;
    let mut conn = bed.pool.acquire().await.unwrap();
    let by = By::new("anna");

    let (stuck, waiting) = (at(&bed, &parked(1)).await, at(&bed, &parked(2)).await);
    edit(&mut conn, &stuck, b"new", &by).await.unwrap();
    let raced = edit(&mut conn, &stuck, b"newer", &by).await.unwrap_err();
    let running = edit(&mut conn, &waiting, b"new", &by).await.unwrap_err();
    discard(&mut conn, &waiting, &by).await.unwrap();
    let edited = at(&bed, &parked(1)).await;
    let dead = at(&bed, &letter).await;
    discard(&mut conn, &dead, &by).await.unwrap();

    assert_eq!(edited.payload.unwrap(), b"new");
    assert!(raced.to_string().contains("changed meanwhile"), "{raced}");
    assert!(running.to_string().contains("is waiting"), "{running}");
    assert_eq!(states(&bed).await, named(&[(1, "stuck"), (2, "discard")]));
    assert_eq!(bed.count("SELECT count(*) FROM tailrace.dead_letter").await, 0);
    let kept = "SELECT count(*) FROM tailrace.inbox_audit WHERE action = 'edit' \
                AND convert_from(decode(before->>'payload_hex', 'hex'), 'UTF8') = 'old' \
                AND convert_from(decode(after->>'payload_hex', 'hex'), 'UTF8') = 'new'";
    assert_eq!(bed.count(kept).await, 1);
}

#[tokio::test]
async fn old_dead_letters_leave_and_nothing_else() {
    let bed = installed("inbox_prune").await;
    park(&bed, Some("a"), 1, "stuck").await;
    for offset in 2..5 {
        bury(&bed, Some("b"), offset, true).await;
    }
    bed.execute(r#"UPDATE tailrace.dead_letter SET dead_at = now() WHERE "offset" = 4"#).await;
    let mut conn = bed.pool.acquire().await.unwrap();
    let (all, hour) = (Filter::default(), Duration::from_secs(3600));

    let planned = plan_prune(&mut conn, &all, hour).await.unwrap();
    let pruned = prune(&mut conn, &all, hour, &By::new("timer")).await.unwrap();

    assert_eq!((planned, pruned), (2, 2));
    assert_eq!(count(&mut conn, &all).await.unwrap(), 2);
    let audited = "SELECT count(*) FROM tailrace.inbox_audit WHERE after->>'dead_letters' = '2'";
    assert_eq!(bed.count(audited).await, 1);
}

#[tokio::test]
async fn what_is_stored_of_a_key_is_erased_also_from_the_audit() {
    let bed = installed("inbox_erase").await;
    park(&bed, Some("anna"), 1, "stuck").await;
    park(&bed, Some("bert"), 2, "stuck").await;
    bury(&bed, Some("anna"), 3, true).await;
    let mut conn = bed.pool.acquire().await.unwrap();
    let by = By::new("dpo");
    edit(&mut conn, &at(&bed, &parked(1)).await, b"new", &by).await.unwrap();
    edit(&mut conn, &at(&bed, &parked(2)).await, b"new", &by).await.unwrap();

    let planned = plan_erase(&mut conn, "billing", b"anna").await.unwrap();
    let erased = erase(&mut conn, "billing", b"anna", &by).await.unwrap();
    let again = erase(&mut conn, "billing", b"anna", &by).await.unwrap();

    assert_eq!(planned, erased);
    assert_eq!((erased.dead_letters, erased.parked, erased.audited), (1, 1, 1));
    assert_eq!((again.dead_letters, again.audited), (0, 0));
    let left = at(&bed, &parked(1)).await;
    assert_eq!((left.payload, left.headers.len(), left.state), (None, 0, State::Discard));
    assert_eq!(at(&bed, &parked(2)).await.payload.unwrap(), b"new");
    let kept = "SELECT count(*) FROM tailrace.inbox_audit WHERE before ? 'payload_hex'";
    assert_eq!(bed.count(kept).await, 1);
}

#[tokio::test]
async fn a_stopped_consumer_is_set_elsewhere_and_an_owner_that_was_overlooked_commits_nothing() {
    use crate::position::Offset;
    use crate::progress::{self, Epoch, Owned, Partition};

    let bed = installed("inbox_seek").await;
    let mut conn = bed.pool.acquire().await.unwrap();
    bed.execute(
        "INSERT INTO tailrace.consumer_progress (consumer, topic, partition, lane, epoch, next_offset)
         VALUES ('billing', 'orders', 0, 0, 3, 90), ('billing', 'orders', 0, 1, 3, 95)",
    )
    .await;
    let partition = Partition { topic: "orders".into(), number: 0 };
    let (epoch, next) = (Epoch(3), Offset::new(91));
    let owned = Owned { partition, lane: 0, epoch, next_offset: Some(Offset::new(90)) };
    let by = By::new("anna");
    let seek_to =
        async |conn: &mut PgConnection, to| seek(conn, "billing", "orders", 0, to, &by).await;
    let stopped = "UPDATE tailrace.consumer_progress SET updated_at = now() - interval '5 minutes'";

    let missing = seek(&mut conn, "billing", "nope", 0, To::Start, &by).await.unwrap_err();
    let lively = seek_to(&mut conn, To::Offset(7)).await.unwrap_err();
    bed.execute(stopped).await;
    let mut batch = bed.begin().await;
    progress::advance(&mut batch, "billing", &owned, next, &[]).await.unwrap().unwrap();
    let busy = seek_to(&mut conn, To::Offset(7)).await.unwrap_err();
    batch.rollback().await.unwrap();
    let negative = seek_to(&mut conn, To::Offset(-1)).await.unwrap_err();
    let planned = plan_seek(&mut conn, "billing", "orders", 0).await.unwrap();
    let sought = seek_to(&mut conn, To::Offset(7)).await.unwrap();

    for error in [missing, lively, busy] {
        assert_eq!(error.kind(), Kind::Conflict, "{error}");
        assert!(error.hint().is_some());
    }
    assert_eq!(negative.kind(), Kind::Config);
    assert_eq!((&planned, &sought.from), (&sought, &vec![Some(90), Some(95)]));
    let advanced = progress::advance(&mut conn, "billing", &owned, next, &[]).await.unwrap();
    assert_eq!(advanced, None);
    let lanes = async |condition: &str| {
        let sql = format!("SELECT count(*) FROM tailrace.consumer_progress WHERE {condition}");
        let lanes: i64 =
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&bed.pool).await.unwrap();
        lanes
    };
    assert_eq!(lanes("next_offset = 7 AND epoch > 3").await, 2);
    bed.execute(stopped).await;
    seek_to(&mut conn, To::Start).await.unwrap();
    assert_eq!(lanes("next_offset IS NULL").await, 2);
    assert_eq!(
        bed.count("SELECT count(*) FROM tailrace.inbox_audit WHERE action = 'seek'").await,
        2
    );
}
