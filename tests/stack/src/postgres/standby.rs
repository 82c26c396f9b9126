//! A server that follows another one and can take its place.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor, Row};
use tokio::time::{sleep, timeout};

use super::cluster::Cluster;
use super::{Postgres, connect};
use crate::error::{Error, Kind};
use crate::server::Server;
use crate::stack::{blocking, tell};
use crate::unique::unique;

/// How long a standby may take to catch up, and a promotion to be done.
const FOLLOW_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// What a commit on the primary waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    /// For nothing: at a failover the last transactions can be lost.
    Asynchronous,
    /// For the standby, by `synchronous_standby_names`. On 17 and later logical readers wait for
    /// it too, by `synchronized_standby_slots`.
    Synchronous,
}

/// Directories whose contents are the primary's own; the standby makes them anew.
const OWN: [&str; 8] = [
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_wal",
];

impl Postgres {
    /// A standby that streams from this server, in answer when it does.
    ///
    /// It is a server like every other: it can be killed, paused and restarted, and
    /// [`promote`](Postgres::promote) makes it a primary. It answers queries and feeds back to the
    /// primary what they still need; on 17 and later it also keeps copies of the slots made with
    /// `failover`, for good once a slot's reader has moved on after its copy began. It ends when this value is dropped.
    ///
    /// Ask it of a stack of the test's own ([`Needs::breakable`](crate::Needs::breakable)), as it
    /// changes the primary's settings.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), tailrace_stack::Error> {
    /// # use tailrace_stack::{Needs, Replication, Stack};
    /// let stack = Stack::start(Needs::POSTGRES.breakable()).await?;
    /// let standby = stack.postgres().standby(Replication::Synchronous).await?;
    /// stack.postgres().kill().await?;
    /// standby.promote().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn standby(&self, replication: Replication) -> Result<Postgres, Error> {
        let primary = self.local()?;
        let name = unique("standby");
        let failed = || Error::new(Kind::Server, "cannot make a standby");
        let mut connection = connect(&self.url).await.map_err(|error| failed().caused_by(error))?;
        let copied = self.copy(&primary, &mut connection, &name).await?;
        let (port, url) = copied.start().await?;
        let follow = follow(&mut connection, &name, self.major_version(), replication);
        timeout(FOLLOW_MAX, follow)
            .await
            .map_err(|error| failed().caused_by(error))?
            .map_err(|error| failed().caused_by(error))?;
        connection.close().await.map_err(|error| failed().caused_by(error))?;
        tell(&format!("Postgres on port {port}: a standby of the one on port {}", self.port));
        let server: Arc<dyn Server> = Arc::<Cluster>::clone(&copied);
        Ok(Postgres {
            url,
            version: self.version,
            host: self.host.clone(),
            port,
            server: Some(server),
            cluster: Some(copied),
            logins: self.logins.as_ref().map(|logins| logins.at(port)),
        })
    }

    /// Makes a [`standby`](Postgres::standby) a primary. Answers when it takes writes.
    pub async fn promote(&self) -> Result<(), Error> {
        self.ours()?;
        let failed = || Error::new(Kind::Server, "cannot promote the standby");
        let promote = async {
            let mut connection = connect(&self.url).await?;
            connection.execute("select pg_promote(wait => false)").await?;
            until(&mut connection, "select not pg_is_in_recovery()").await?;
            connection.close().await
        };
        timeout(FOLLOW_MAX, promote)
            .await
            .map_err(|error| failed().caused_by(error))?
            .map_err(|error| failed().caused_by(error))
    }

    /// A copy of the data directory of the running primary, set up to stream what it lacks. The
    /// binaries that are fetched have no `pg_basebackup`; these are its steps on one machine.
    async fn copy(
        &self,
        primary: &Arc<Cluster>,
        connection: &mut PgConnection,
        name: &str,
    ) -> Result<Arc<Cluster>, Error> {
        let failed = |error| {
            Error::new(Kind::Server, "cannot copy the data of the primary").caused_by(error)
        };
        let begin = format!(
            "select pg_create_physical_replication_slot('{name}', true);
             select pg_backup_start('{name}', true)"
        );
        connection.execute(AssertSqlSafe(begin)).await.map_err(failed)?;
        let (from, settings) = (Arc::clone(primary), self.settings_of_standby(name));
        let copied = blocking(move || from.copy(&keeps, &settings)).await?;
        let end = "select labelfile from pg_backup_stop(wait_for_archive => false)";
        let row = connection.fetch_one(end).await.map_err(failed)?;
        let label: String = row.try_get(0).map_err(failed)?;
        copied.write_data("backup_label", &label)?;
        copied.write_data("standby.signal", "")?;
        Ok(Arc::new(copied))
    }

    /// What differs from the primary. The last one of a setting counts, and `alter system` writes
    /// to the same file. Standbys of the primary are not waited for after a promotion.
    fn settings_of_standby(&self, name: &str) -> String {
        let url = format!("{}&application_name={name}", self.url);
        let mut settings = format!(
            "
primary_conninfo = '{url}'
primary_slot_name = '{name}'
hot_standby_feedback = on
wal_receiver_status_interval = 1s
wal_retrieve_retry_interval = 100ms
synchronous_standby_names = ''
"
        );
        if self.major_version() >= 17 {
            settings += "sync_replication_slots = on\nsynchronized_standby_slots = ''\n";
        }
        settings
    }
}

/// Waits until the standby streams, and has the primary wait for it if that is asked for.
async fn follow(
    primary: &mut PgConnection,
    name: &str,
    version: u32,
    replication: Replication,
) -> Result<(), sqlx::Error> {
    let streams = format!(
        "select count(*) = 1 from pg_stat_replication
         where application_name = '{name}' and state = 'streaming'"
    );
    until(primary, &streams).await?;
    if replication == Replication::Asynchronous {
        return Ok(());
    }
    let mut settings = vec!["synchronous_standby_names"];
    if version >= 17 {
        settings.push("synchronized_standby_slots");
    }
    for setting in settings {
        let statement = format!("alter system set {setting} = '{name}'");
        primary.execute(AssertSqlSafe(statement)).await?;
    }
    primary.execute("select pg_reload_conf()").await?;
    until(primary, &format!("{streams} and sync_state = 'sync'")).await
}

/// Asks until the answer is yes; the caller bounds it.
async fn until(connection: &mut PgConnection, query: &str) -> Result<(), sqlx::Error> {
    while !connection.fetch_one(AssertSqlSafe(query.to_owned())).await?.try_get::<bool, _>(0)? {
        sleep(POLL).await;
    }
    Ok(())
}

/// Whether a path below the data directory belongs to a backup.
fn keeps(path: &Path) -> bool {
    let inside_own = path.parent().is_some_and(|parent| OWN.iter().any(|own| parent == *own));
    let own_file = path == Path::new("postmaster.pid") || path == Path::new("postmaster.opts");
    let temporary = path
        .file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with("pgsql_tmp") || name.starts_with("pg_internal.init"));
    !inside_own && !own_file && !temporary
}
