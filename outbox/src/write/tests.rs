use sqlx::{Connection, Executor, PgConnection};
use tokio::task::JoinSet;

use super::write;
use crate::database::{connect, fresh};
use crate::logged::{builder, frames, logged, logged_under, message, watched};
use crate::{
    BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, FRAME_BYTES_MAX, Kind, Message, Outbox, Reaction, Store,
    frame, write_all,
};

#[tokio::test]
async fn a_message_is_in_the_log_exactly_if_its_transaction_committed() {
    let (_database, mut connection, slot) = watched("outbox_commit").await;
    let [committed, rolled_back, before, undone, after] = [1, 2, 3, 4, 5].map(message);

    let mut tx = connection.begin().await.unwrap();
    write(&mut tx, &committed).await.unwrap();
    tx.commit().await.unwrap();

    let mut tx = connection.begin().await.unwrap();
    write(&mut tx, &rolled_back).await.unwrap();
    tx.rollback().await.unwrap();

    let mut tx = connection.begin().await.unwrap();
    write(&mut tx, &before).await.unwrap();
    let mut savepoint = tx.begin().await.unwrap();
    write(&mut savepoint, &undone).await.unwrap();
    savepoint.rollback().await.unwrap();
    write(&mut tx, &after).await.unwrap();
    tx.commit().await.unwrap();

    assert_eq!(logged(&mut connection, &slot).await, frames([&committed, &before, &after]));
}

#[tokio::test]
async fn a_transaction_that_was_dropped_or_whose_connection_died_leaves_no_message() {
    let (database, mut connection, slot) = watched("outbox_dropped").await;

    let mut tx = connection.begin().await.unwrap();
    write(&mut tx, &message(1)).await.unwrap();
    drop(tx);
    let mut dying = connect(&database).await;
    dying.execute("BEGIN").await.unwrap();
    write(&mut dying, &message(2)).await.unwrap();
    dying.close_hard().await.unwrap();
    let last = message(3);
    write(&mut connection, &last).await.unwrap();

    assert_eq!(logged(&mut connection, &slot).await, frames([&last]));
}

#[tokio::test]
async fn the_largest_message_arrives_whole() {
    let (_database, mut connection, slot) = watched("outbox_largest").await;
    let overhead = frame::encoded_len(&builder().payload([]).build().unwrap());
    let largest = builder().payload(vec![0xa5; FRAME_BYTES_MAX - overhead]).build().unwrap();

    let mut tx = connection.begin().await.unwrap();
    write(&mut tx, &largest).await.unwrap();
    tx.commit().await.unwrap();

    let logged = logged(&mut connection, &slot).await;
    assert_eq!(logged[0].len(), FRAME_BYTES_MAX);
    assert!(logged == frames([&largest]));
}

#[tokio::test]
async fn an_aborted_transaction_is_an_error_that_says_so() {
    let (_database, mut connection) = fresh("outbox_aborted").await;
    let mut tx = connection.begin().await.unwrap();
    tx.execute("SELECT 1 / 0").await.unwrap_err();

    let error = write(&mut tx, &message(1)).await.unwrap_err();

    assert!(error.is_aborted(), "{error:?}");
    assert_eq!(error.reaction(), Reaction::Reject);
    assert_eq!(
        error.to_string(),
        "the message could not be written: current transaction is aborted, commands ignored until \
         end of transaction block; roll back; the first error of the transaction tells why"
    );
    assert!(std::error::Error::source(&error).is_some());
}

#[tokio::test]
async fn the_log_takes_a_message_in_a_read_only_transaction_and_a_table_does_not() {
    let (_database, mut connection, slot) = watched("outbox_read_only").await;
    crate::schema::install(&mut connection).await.unwrap();
    let message = message(1);

    let mut tx = connection.begin_with("BEGIN READ ONLY").await.unwrap();
    write(&mut tx, &message).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = connection.begin_with("BEGIN READ ONLY").await.unwrap();
    let error = Outbox::new(Store::Journal).write(&mut tx, &message).await.unwrap_err();
    tx.rollback().await.unwrap();

    assert_eq!(error.sqlstate(), Some("25006"), "{error:?}");
    assert_eq!(logged(&mut connection, &slot).await, frames([&message]));
}

#[tokio::test]
async fn a_lost_connection_asks_for_the_transaction_again() {
    let (database, mut connection) = fresh("outbox_lost").await;
    let mut other = connect(&database).await;
    let mut tx = connection.begin().await.unwrap();
    let (pid,): (i32,) =
        sqlx::query_as("SELECT pg_backend_pid()").fetch_one(&mut *tx).await.unwrap();
    // With a time-out the function answers once the backend is gone.
    sqlx::query("SELECT pg_terminate_backend($1, 20000)")
        .bind(pid)
        .execute(&mut other)
        .await
        .unwrap();

    let error = write(&mut tx, &message(1)).await.unwrap_err();

    assert_eq!((error.kind(), error.reaction()), (Kind::Unavailable, Reaction::Retry), "{error:?}");
}

#[tokio::test]
async fn a_batch_is_in_the_log_in_the_order_given() {
    let (_database, mut connection, slot) = watched("outbox_batch").await;
    let messages: Vec<Message> = (0..1_000).map(message).collect();
    // Descending ids: nothing but the place in the batch can order them.
    let descending: Vec<Message> = messages.iter().rev().cloned().collect();

    let mut tx = connection.begin().await.unwrap();
    write_all(&mut tx, &messages).await.unwrap();
    write_all(&mut tx, &[]).await.unwrap();
    write_all(&mut tx, &descending).await.unwrap();
    write_all(&mut tx, &messages[..1]).await.unwrap();
    tx.commit().await.unwrap();

    let expected = messages.iter().chain(&descending).chain(&messages[..1]);
    assert!(logged(&mut connection, &slot).await == frames(expected));
}

#[tokio::test]
async fn a_batch_of_the_largest_size_is_written_whole() {
    let (_database, mut connection, slot) = watched("outbox_batch_largest").await;
    let one = message(1);
    let messages = vec![one.clone(); BATCH_MESSAGES_MAX];

    let mut tx = connection.begin().await.unwrap();
    write_all(&mut tx, &messages).await.unwrap();
    tx.commit().await.unwrap();

    let logged = logged(&mut connection, &slot).await;
    assert_eq!(logged.len(), BATCH_MESSAGES_MAX);
    assert!(logged.iter().all(|bytes| *bytes == frame::encode(&one)));
}

#[tokio::test]
async fn a_batch_above_its_limits_is_refused_before_anything_is_sent() {
    let (_database, mut connection, slot) = watched("outbox_batch_limits").await;
    let too_many = vec![message(1); BATCH_MESSAGES_MAX + 1];
    let large = builder().payload(vec![0; FRAME_BYTES_MAX / 2]).build().unwrap();
    let too_large = vec![large; 1 + BATCH_BYTES_MAX / (FRAME_BYTES_MAX / 2)];
    let last = message(2);

    let mut tx = connection.begin().await.unwrap();
    for refused in [too_many, too_large] {
        let error = write_all(&mut tx, &refused).await.unwrap_err();
        assert!(error.is_too_large(), "{error:?}");
        assert_eq!(error.mend(), Some("write it in parts, in the same transaction"));
    }
    write(&mut tx, &last).await.unwrap();
    tx.commit().await.unwrap();

    assert_eq!(logged(&mut connection, &slot).await, frames([&last]));
}

#[tokio::test]
async fn a_prefix_of_its_own_is_on_every_message() {
    let (_database, mut connection, slot) = watched("outbox_prefix").await;
    let outbox = Outbox::new(Store::Wal).prefix(r"it's \ mine");
    let messages = [1, 2, 3, 4].map(message);
    connection.execute("CREATE TABLE orders (id int)").await.unwrap();

    let mut tx = connection.begin().await.unwrap();
    outbox.write(&mut tx, &messages[0]).await.unwrap();
    outbox.write_all(&mut tx, &messages[1..3]).await.unwrap();
    let insert = outbox.merge("INSERT INTO orders VALUES (1)").message(&messages[3]);
    insert.execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();

    let logged = logged_under(&mut connection, &slot, r"it's \ mine").await;
    assert_eq!(logged, frames(&messages));
}

const WRITERS: usize = 16;
const KEYS: usize = 4;
const ROUNDS: usize = 10;

/// Raises every counter, round by round, and tells its value in the same transaction.
async fn count_up(mut connection: PgConnection) {
    for key in (0..KEYS).cycle().take(KEYS * ROUNDS) {
        let mut tx = connection.begin().await.unwrap();
        let (n,): (i64,) =
            sqlx::query_as("UPDATE counter SET n = n + 1 WHERE key = $1 RETURNING n::bigint")
                .bind(i32::try_from(key).unwrap())
                .fetch_one(&mut *tx)
                .await
                .unwrap();
        write(&mut tx, &builder().key(key.to_string()).json(&n).build().unwrap()).await.unwrap();
        tx.commit().await.unwrap();
    }
}

#[tokio::test]
async fn messages_of_one_key_stand_in_the_log_in_commit_order() {
    let (database, mut connection, slot) = watched("outbox_order").await;
    connection.execute("CREATE TABLE counter (key int PRIMARY KEY, n int)").await.unwrap();
    connection.execute("INSERT INTO counter VALUES (0, 0), (1, 0), (2, 0), (3, 0)").await.unwrap();
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        writers.spawn(count_up(connect(&database).await));
    }

    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }

    let mut seen = [0_u64; KEYS];
    let frames = logged(&mut connection, &slot).await;
    assert_eq!(frames.len(), WRITERS * KEYS * ROUNDS);
    for bytes in &frames {
        let read = frame::Frame::decode(bytes).unwrap();
        let key = usize::from(read.key().unwrap()[0] - b'0');
        let n: u64 = serde_json::from_slice(read.payload().unwrap()).unwrap();
        seen[key] += 1;
        assert_eq!(n, seen[key], "of key {key}");
    }
}
