//! `tailrace inbox …` tells first, does with `--yes`, and says what is in the way.

use sqlx::{Executor, PgConnection};

use crate::command::{fresh, tailrace};

/// As a consumer would have set them aside.
const SET_ASIDE: &str = r#"
    INSERT INTO tailrace.parked_message
        (consumer, topic, partition, "offset", key, message_id, message_type, payload, header_names, header_values,
         state, attempts, reason)
    VALUES ('billing', 'orders', 0, 1, 'a', gen_random_uuid(), 'order.v1', 'top secret', '{}', '{}', 'stuck', 5, 'failed'),
           ('billing', 'orders', 0, 2, 'a', gen_random_uuid(), 'order.v1', 'top secret', '{}', '{}', 'queued', 0, NULL);
    INSERT INTO tailrace.dead_letter
        (consumer, topic, partition, "offset", key, message_id, message_type, payload, header_names, header_values, reason)
    VALUES ('billing', 'orders', 0, 3, 'b', gen_random_uuid(), 'order.v1', 'top secret', '{}', '{}', 'rejected');
    INSERT INTO tailrace.consumer_progress (consumer, topic, partition, lane, epoch, next_offset, updated_at)
    VALUES ('billing', 'orders', 0, 0, 3, 90, now() - interval '1 hour')"#;

async fn count(connection: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(connection).await.expect("a count")
}

#[tokio::test]
async fn what_is_set_aside_is_listed_and_payloads_are_shown_on_request_alone() {
    let (database, mut connection) = fresh("inbox_list").await;
    let url = database.url();
    assert_eq!(tailrace(url, &["inbox", "install"]).await.good(), "installed\n");
    let nothing = tailrace(url, &["inbox", "list"]).await.good();
    connection.execute(SET_ASIDE).await.unwrap();

    let list = tailrace(url, &["inbox", "list"]).await.good();
    let stuck =
        tailrace(url, &["inbox", "list", "--state=stuck", "--key=a", "--json"]).await.good();
    let show = tailrace(url, &["inbox", "show", "billing/orders/0/1"]).await.good();
    let payload = tailrace(url, &["inbox", "show", "dead:1", "--payload"]).await.good();
    let none = tailrace(url, &["inbox", "show", "dead:7"]).await;

    assert_eq!(nothing, "nothing is set aside that fits\n");
    for named in ["billing/orders/0/1", "dead:1", "queued", "rejected", "3 messages\n"] {
        assert!(list.contains(named), "{list}");
    }
    let stuck: serde_json::Value = serde_json::from_str(&stuck).unwrap();
    assert_eq!(stuck["total"], 1);
    assert_eq!(stuck["messages"][0]["behind"], 1);
    assert!(!list.contains("secret") && !show.contains("secret"), "{show}");
    assert!(payload.contains("top secret"), "{payload}");
    none.refuses(5, &["no message at dead:7", "tailrace inbox list"]);
}

#[tokio::test]
async fn a_change_is_told_first_and_made_with_yes_and_audited() {
    let (database, mut connection) = fresh("inbox_change").await;
    let url = database.url();
    tailrace(url, &["inbox", "install"]).await.good();
    connection.execute(SET_ASIDE).await.unwrap();
    let seek = ["inbox", "seek", "--consumer=billing", "--topic=orders", "--partition=0", "--to=7"];
    let changes: [&[&str]; 5] = [
        &["inbox", "retry", "--consumer=billing", "--rate=1000"],
        &["inbox", "discard", "billing/orders/0/2"],
        &["inbox", "prune", "--older-than=0s"],
        &["inbox", "erase", "--consumer=billing", "--key=a"],
        &seek,
    ];

    for change in changes {
        let told = tailrace(url, change).await;
        assert_eq!(told.code, Some(8), "{told:?}");
        assert!(told.stdout.ends_with("nothing was changed: --yes does it\n"), "{told:?}");
    }
    let untouched = count(&mut connection, "SELECT count(*) FROM tailrace.inbox_audit").await;
    let by = ["--yes", "--actor=anna", "--note=told so"];
    let retried = tailrace(url, &[changes[0], &by].concat()).await.good();
    for change in [changes[1], changes[3], changes[4]] {
        tailrace(url, &[change, &by].concat()).await.good();
    }
    let moved = tailrace(url, &seek).await;

    assert_eq!(untouched, 0);
    assert!(retried.ends_with("2 messages, 0 of them refused\n"), "{retried}");
    let audited =
        "SELECT count(*) FROM tailrace.inbox_audit WHERE actor = 'anna' AND note = 'told so'";
    assert_eq!(count(&mut connection, audited).await, 5);
    let given_up =
        "SELECT count(*) FROM tailrace.parked_message WHERE state = 'discard' AND payload IS NULL";
    assert_eq!(count(&mut connection, given_up).await, 2);
    let at_seven =
        "SELECT count(*) FROM tailrace.consumer_progress WHERE next_offset = 7 AND epoch = 4";
    assert_eq!(count(&mut connection, at_seven).await, 1);
    moved.refuses(5, &["its consumer runs", "stop every process"]);
}

#[tokio::test]
async fn what_is_calling_is_changed_by_force_alone_and_a_refusal_says_what_is_so() {
    let (database, mut connection) = fresh("inbox_calling").await;
    let url = database.url();
    tailrace(url, &["inbox", "install"]).await.good();
    connection.execute(SET_ASIDE).await.unwrap();
    let calling = r#"UPDATE tailrace.parked_message SET state = 'calling', intent = '{}', retry_at = NULL WHERE "offset" = 1"#;
    connection.execute(calling).await.unwrap();
    let one = "billing/orders/0/1";

    for change in ["retry", "discard"] {
        let refused = tailrace(url, &["inbox", change, one, "--yes"]).await;
        refused.refuses(5, &["was broken off with the process that made it", "--force"]);
    }
    let bulk = ["inbox", "discard", "--consumer=billing", "--state=calling"];
    let told = tailrace(url, &bulk).await;
    tailrace(url, &["inbox", "retry", one, "--yes", "--force"]).await.good();
    connection.execute(calling).await.unwrap();
    tailrace(url, &[&bulk[..], &["--yes", "--force"]].concat()).await.good();

    assert!(told.stdout.contains("1 messages, 1 of them refused"), "{told:?}");
    let given_up = "SELECT count(*) FROM tailrace.parked_message WHERE state = 'discard'";
    assert_eq!(count(&mut connection, given_up).await, 1);
}

#[tokio::test]
async fn how_a_consumer_knows_messages_is_told_and_changed_with_yes() {
    let (database, mut connection) = fresh("inbox_dedupe").await;
    let url = database.url();
    tailrace(url, &["inbox", "install"]).await.good();
    connection.execute(SET_ASIDE).await.unwrap();
    let to = |way: &'static str| ["inbox", "dedupe", "--consumer=billing", way];
    let by = ["--yes", "--actor=anna"];

    let told = tailrace(url, &to("--by=position")).await;
    let done = tailrace(url, &[&to("--by=position")[..], &by].concat()).await.good();
    let runs = tailrace(url, &to("--by=ids")).await;
    let nobody = tailrace(url, &["inbox", "dedupe", "--consumer=nobody", "--by=ids"]).await;

    let line = "billing: topic orders is known by ids, and changes to position\n";
    assert_eq!((told.code, done.as_str()), (Some(8), line), "{told:?}");
    let changed = "SELECT count(*) FROM tailrace.consumer_dedupe
        JOIN tailrace.consumer_progress USING (consumer, topic)
        JOIN tailrace.inbox_audit USING (consumer)
        WHERE dedupe = 'position' AND epoch = 4 AND action = 'dedupe' AND before = '{\"orders\": \"ids\"}'";
    assert_eq!(count(&mut connection, changed).await, 1);
    runs.refuses(5, &["so it runs", "stop every process"]);
    nobody.refuses(5, &["there is no progress", "check the name"]);
}

#[tokio::test]
async fn a_payload_is_replaced_and_a_refusal_says_the_way_on() {
    let (database, mut connection) = fresh("inbox_edit").await;
    let url = database.url();
    tailrace(url, &["inbox", "install"]).await.good();
    connection.execute(SET_ASIDE).await.unwrap();
    let message = "billing/orders/0/1";

    // Standard input is empty in these tests.
    let edit = ["inbox", "edit", message, "--payload=-", "--yes"];
    let edited = tailrace(url, &edit).await.good();
    let no_file = tailrace(url, &["inbox", "edit", message, "--payload=/no/such/file"]).await;
    let behind = tailrace(url, &["inbox", "retry", "billing/orders/0/2"]).await;
    let unnamed = tailrace(url, &["inbox", "retry", "--yes"]).await;

    assert_eq!(edited, format!("{message}  payload of 10 B becomes one of 0 B\n"));
    let empty = "SELECT count(*) FROM tailrace.parked_message WHERE payload = ''";
    assert_eq!(count(&mut connection, empty).await, 1);
    no_file.refuses(2, &["/no/such/file"]);
    behind.refuses(5, &["an earlier message of its key", "first message"]);
    unnamed.refuses(2, &["no message is named or chosen"]);
}

#[tokio::test]
async fn maintain_drops_what_is_due_and_check_tells_when_it_does_not_run() {
    let (database, mut connection) = fresh("inbox_maintain").await;
    let url = database.url();
    let missing = tailrace(url, &["inbox", "maintain"]).await;
    tailrace(url, &["inbox", "install"]).await.good();
    let old = "SELECT tailrace.make_processed_message_partitions(\
               ARRAY(SELECT (now() AT TIME ZONE 'UTC')::date - ago FROM generate_series(20, 23) AS ago))";
    connection.execute(old).await.unwrap();

    let overdue = tailrace(url, &["inbox", "check"]).await;
    let planned = tailrace(url, &["inbox", "maintain", "--dry-run"]).await.good();
    let done = tailrace(url, &["inbox", "maintain"]).await.good();
    let good = tailrace(url, &["inbox", "check"]).await.good();
    let again = tailrace(url, &["inbox", "maintain", "--json"]).await.good();

    missing.refuses(2, &["run `tailrace inbox install`"]);
    let short = tailrace(url, &["inbox", "maintain", "--horizon", "90m"]).await;
    assert_eq!(short.code, Some(2), "{short:?}");
    assert!(short.stderr.contains("a horizon is two hours or longer"), "{short:?}");
    assert_eq!(overdue.code, Some(1), "{overdue:?}");
    assert!(overdue.stdout.contains("4 days of claims are beyond the horizon"), "{overdue:?}");
    assert_eq!(planned.matches("would drop").count(), 4, "{planned}");
    assert_eq!(done.matches("dropped ").count(), 4, "{done}");
    assert!(good.contains("partitions for 3 days ahead"), "{good}");
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!(
        (again["days_ahead"].clone(), again["dropped"].clone()),
        (3.into(), serde_json::json!([]))
    );
}

#[tokio::test]
async fn answers_of_requests_are_forgotten_by_age_and_told_before() {
    let (database, mut connection) = fresh("http_key_forget").await;
    let url = database.url();
    tailrace(url, &["inbox", "install"]).await.good();
    let answers = "INSERT INTO tailrace.http_key
            (scope, key, fingerprint, status, header_names, header_values, body, created_at)
        SELECT 'anna', n::text, '', 201, '{}', '{}', '', now() - n * interval '1 day' FROM generate_series(0, 9) AS n";
    connection.execute(answers).await.unwrap();

    let told = tailrace(url, &["http-key", "forget", "--older-than=5d"]).await;
    let done = tailrace(url, &["http-key", "forget", "--older-than=5d", "--yes"]).await.good();

    assert_eq!(told.code, Some(8), "{told:?}");
    assert_eq!(told.stdout, "5 answers are deleted\nnothing was changed: --yes does it\n");
    assert_eq!(done, "5 answers are deleted\n");
    assert_eq!(count(&mut connection, "SELECT count(*) FROM tailrace.http_key").await, 5);
}
