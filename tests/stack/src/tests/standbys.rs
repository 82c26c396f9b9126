//! A standby and its promotion.

use std::time::{Duration, Instant};

use sqlx::{Connection, Executor, PgConnection};

use super::{BOUND, connect, number};
use crate::{Needs, Replication, Stack};

#[tokio::test]
async fn a_promoted_standby_has_what_was_committed_and_the_slot_made_for_it() {
    let stack = Stack::start(Needs::POSTGRES.breakable()).await.unwrap();
    let primary = stack.postgres();
    let mut connection = connect(primary.url()).await;
    let keeps_slots = primary.major_version() >= 17;
    if keeps_slots {
        let make =
            "select pg_create_logical_replication_slot('kept', 'pgoutput', failover => true)";
        connection.execute(make).await.unwrap();
    }
    let standby = primary.standby(Replication::Synchronous).await.unwrap();
    connection.execute("create table t (n bigint)").await.unwrap();
    connection.execute("insert into t values (41), (1)").await.unwrap();
    if keeps_slots {
        until_the_slot_is_kept(&mut connection, &mut connect(standby.url()).await).await;
    }
    let mut follower = connect(standby.url()).await;
    follower.execute("insert into t values (1)").await.expect_err("it only reads");

    standby.pause().await.unwrap();
    let mut asked = Box::pin(connection.execute("insert into t values (0)"));
    let silence = Duration::from_millis(300);
    assert!(tokio::time::timeout(silence, &mut asked).await.is_err(), "it waits for the standby");
    standby.resume().await.unwrap();
    asked.await.unwrap();
    primary.kill().await.unwrap();
    standby.promote().await.unwrap();

    let mut connection = connect(standby.url()).await;
    assert_eq!(number(&mut connection, "select sum(n)::bigint from t").await, 42);
    connection.execute("insert into t values (1)").await.unwrap();
    if keeps_slots {
        let kept = "select count(*) from pg_replication_slots where slot_name = 'kept'";
        assert_eq!(number(&mut connection, kept).await, 1);
    }
    standby.restart().await.unwrap();
    PgConnection::connect(standby.url()).await.unwrap().close().await.unwrap();
}

/// Moves the slot on the primary on, as its reader would. Until the slot has passed the point at
/// which its copy began, the copy is a temporary one, which a promotion drops.
async fn until_the_slot_is_kept(primary: &mut PgConnection, standby: &mut PgConnection) {
    let deadline = Instant::now() + BOUND;
    let kept = "select count(*) from pg_replication_slots
        where slot_name = 'kept' and synced and not temporary";
    while number(standby, kept).await == 0 {
        assert!(Instant::now() < deadline, "the slot is not copied");
        primary.execute("select pg_log_standby_snapshot()").await.unwrap();
        let advance = "select pg_replication_slot_advance('kept', pg_current_wal_lsn())";
        primary.execute(advance).await.unwrap();
    }
}
