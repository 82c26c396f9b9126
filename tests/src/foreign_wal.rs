//! A database in which nothing happens keeps no log of the server back, however busy another one is.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tailrace_stack::unique;
use tokio::time::{interval, timeout};

use crate::process::Process;
use crate::proof::{Bench, Report, Scale};
use crate::site::{Site, Variant};
use crate::verdict::STOP_MAX;

const MEGABYTE: u64 = 1024 * 1024;

/// What the slot may keep, as the design has it: at most a few segments of the log.
const KEPT_MAX: u64 = 64 * MEGABYTE;
/// From the end of the other database's work until the slot keeps no more than that.
const FREE_MAX: Duration = Duration::from_secs(30);
/// What does not happen by then does not happen.
const GIVE_UP: Duration = Duration::from_secs(120);
/// A relay that starts leads by then.
const LEAD_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What one transaction of the other database writes.
const PIECE: u64 = 16 * MEGABYTE;

/// The other database keeps what is newest, so that the log grows and the disk does not.
const PREPARE: &str = "create table busy (text text);
     alter table busy alter column text set storage external";
const WORK: &str = "begin; truncate busy;
     insert into busy select repeat('x', 1048576) from generate_series(1, 16); commit";

/// The body of the proof `foreign-wal`.
///
/// # Panics
///
/// When a relay does not lead or stop, or a server fails.
pub async fn prove(bench: Bench<'_>) -> Report {
    let bytes = match bench.scale {
        Scale::Small => 512 * MEGABYTE,
        Scale::Full => 10 * 1024 * MEGABYTE,
    };
    bench.bar.set_length(bytes / MEGABYTE);
    let idle = Site::new(bench.stack, "foreign_wal", 1, &bench.node).await;
    let mut relay = idle.relay(Variant::default());
    relay.says("leading", LEAD_MAX).await;
    let silent = Site::new(bench.stack, "foreign_wal_silent", 1, &bench.node).await;
    let mut without_writes = without_writes(&silent).await;

    let busy = bench.stack.postgres().fresh_database("busy").await.expect("a database is made");
    let mut connection = PgConnection::connect(busy.url()).await.expect("it takes a connection");
    connection.execute(PREPARE).await.expect("a table is made");
    let (began_at, from) = (Instant::now(), end_of_log(&mut connection).await);
    let mut kept_most = 0;
    for piece in 0..bytes / PIECE {
        connection.execute(WORK).await.expect("it is written");
        kept_most = kept_most.max(kept(&idle).await);
        bench.bar.set_position(piece * PIECE / MEGABYTE);
    }
    let (wrote_for, written) = (began_at.elapsed(), end_of_log(&mut connection).await - from);
    let ended_at = Instant::now();
    if bench.scale == Scale::Small {
        // What the server does every 15 s by itself: a slot can begin anew only where the log says
        // which transactions ran.
        connection.execute("checkpoint").await.expect("the server answers");
    }
    let (free, silent_free) =
        tokio::join!(until_free(&idle, ended_at), until_free(&silent, ended_at));
    for relay in [&mut relay, &mut without_writes] {
        relay.signal(rustix::process::Signal::TERM);
        let status = relay.ends(STOP_MAX).await;
        assert!(status.success(), "{status}:\n{}", relay.log());
    }

    let mut report = Report::default();
    report.figure("MB of log by others", written / MEGABYTE);
    report.figure("seconds of writing", format!("{:.1}", wrote_for.as_secs_f64()));
    report.figure("most MB kept meanwhile", kept_most / MEGABYTE);
    tell(&mut report, "seconds until 64 MB were kept", free, bench.scale);
    tell(&mut report, "the same, with no write at all", silent_free, bench.scale);
    report
}

/// A relay whose role may write nothing, not even probes.
async fn without_writes(site: &Site) -> Process {
    let mut first = site.relay(Variant::default());
    first.says("leading", LEAD_MAX).await;
    first.signal(rustix::process::Signal::TERM);
    first.ends(STOP_MAX).await;
    let role = unique("reader");
    let make = format!(
        "create role {role} login replication password 'secret';
         revoke execute on function pg_logical_emit_message(boolean, text, text{on_18}) from public;
         revoke execute on function pg_logical_emit_message(boolean, text, bytea{on_18}) from public",
        on_18 = if version(site).await >= 170_000 { ", boolean" } else { "" }
    );
    site.pool.execute(AssertSqlSafe(make)).await.expect("a role is made");
    let mut arguments = site.run_arguments();
    arguments.retain(|argument| !argument.starts_with("--database-url="));
    let (_, host) = site.url.split_once('@').expect("a url with a password");
    arguments.push(format!("--database-url=postgres://{role}:secret@{host}"));
    let mut relay = site.cdc_relay(&arguments);
    relay.says("leading", LEAD_MAX).await;
    relay.says("no probes are written", LEAD_MAX).await;
    relay
}

/// Waits until the slot keeps little; answers with how long after `from` that was.
async fn until_free(site: &Site, from: Instant) -> Option<Duration> {
    let free = async {
        let mut look = interval(LOOK_EVERY);
        while kept(site).await > KEPT_MAX {
            look.tick().await;
        }
    };
    timeout(GIVE_UP, free).await.ok().map(|()| from.elapsed())
}

/// In a test, where many share the machine, only that it comes to be so is judged.
fn tell(report: &mut Report, name: &'static str, took: Option<Duration>, scale: Scale) {
    let max = if scale == Scale::Full { FREE_MAX } else { GIVE_UP };
    match took {
        Some(took) => report.figure(name, format!("{:.1}", took.as_secs_f64())),
        None => report.figure(name, "never"),
    }
    if took.is_none_or(|took| took > max) {
        report.faults.push(format!("{name}: {took:?}, and {max:?} are allowed"));
    }
}

/// How much log the slot keeps on the server's disk.
async fn kept(site: &Site) -> u64 {
    let bytes: i64 = sqlx::query_scalar(
        "select (pg_current_wal_lsn() - restart_lsn)::bigint from pg_replication_slots \
         where slot_name = $1",
    )
    .bind(&site.slot)
    .fetch_one(&site.pool)
    .await
    .expect("the server answers");
    u64::try_from(bytes).expect("a slot is not ahead of the log")
}

async fn end_of_log(connection: &mut PgConnection) -> u64 {
    let end = sqlx::query_scalar("select (pg_current_wal_lsn() - '0/0')::bigint");
    let end: i64 = end.fetch_one(connection).await.expect("the server answers");
    u64::try_from(end).expect("a position is no less than nothing")
}

async fn version(site: &Site) -> i32 {
    let version = sqlx::query_scalar("select current_setting('server_version_num')::int");
    version.fetch_one(&site.pool).await.expect("the server answers")
}
