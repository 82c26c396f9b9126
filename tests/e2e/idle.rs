//! A database in which nothing happens, beside one in which much does.

use std::time::Duration;

use sqlx::Executor;
use tailrace_stack::Stack;
use tests::Variant;

use crate::run::{LEAD_MAX, site, stop};

const MEGABYTE: u64 = 1024 * 1024;

/// Several segments of the log, so that what the relay leaves is a small part.
const FOREIGN: u64 = 40 * MEGABYTE;

/// The relay moves on whenever this much is unflushed, and every ten seconds in any case.
const UNFLUSHED_MAX: u64 = 16 * MEGABYTE;

/// Less than ten seconds: it is the size that counts here.
const ADVANCE_MAX: Duration = Duration::from_secs(8);
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[tokio::test]
async fn an_idle_slot_keeps_no_log_of_a_busy_neighbour() {
    let site = site("idle").await;
    let neighbour = Stack::shared().await.postgres().fresh_database("busy").await.unwrap();
    let mut relay = site.relay(Variant::default());
    relay.says("leading", LEAD_MAX).await;
    let before = site.confirmed_flush().await.expect("a leader has a slot");

    let pool = sqlx::PgPool::connect(neighbour.url()).await.unwrap();
    for _ in 0..FOREIGN / MEGABYTE {
        pool.execute("select pg_logical_emit_message(false, 'noise', repeat('x', 1048576))")
            .await
            .unwrap();
    }

    let moved_on = async {
        let mut look = tokio::time::interval(LOOK_EVERY);
        while site.confirmed_flush().await < Some(before + FOREIGN - UNFLUSHED_MAX) {
            look.tick().await;
        }
    };
    let moved_on = tokio::time::timeout(ADVANCE_MAX, moved_on).await;
    assert!(moved_on.is_ok(), "from {before} to {:?}", site.confirmed_flush().await);
    site.slot_is_not_above_the_checkpoint().await;
    stop(&mut relay).await;
}
