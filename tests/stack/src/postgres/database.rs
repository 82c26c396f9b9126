//! A test's own database.

use std::thread;
use std::time::Duration;

use sqlx::{Connection, Executor};
use tokio::time::timeout;

use super::login::{Login, Logins};
use super::{ANSWER_MAX, connect};
use crate::error::{Error, Kind};
use crate::unique::unique;

/// How long the end of a database on a server of somebody else may take.
const DROP_MAX: Duration = Duration::from_secs(20);

/// A database of its own for one test.
///
/// On a server that is not ours, dropping this drops the database with its slots. On ours it stays
/// until the server's whole directory goes.
#[derive(Debug)]
pub struct Database {
    name: String,
    url: String,
    logins: Option<Logins>,
    /// The URL of the maintenance database when this one is to be dropped.
    drop_by: Option<String>,
}

impl Database {
    pub(super) async fn create(
        url: &str,
        name: &str,
        dropped: bool,
        logins: Option<Logins>,
    ) -> Result<Self, Error> {
        let name = unique(name);
        let failed = || Error::new(Kind::Server, format!("cannot create the database {name}"));
        let create = async {
            let mut connection = connect(url).await?;
            connection.execute(sqlx::AssertSqlSafe(format!("create database {name}"))).await?;
            connection.close().await
        };
        timeout(ANSWER_MAX, create)
            .await
            .map_err(|error| failed().caused_by(error))?
            .map_err(|error| failed().caused_by(error))?;
        let drop_by = dropped.then(|| url.to_owned());
        let url = with_database(url, &name);
        Ok(Database { name, url, logins, drop_by })
    }

    /// The superuser's URL to this database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL over TLS to this database; see [`Postgres::tls_url`](super::Postgres::tls_url).
    ///
    /// # Panics
    ///
    /// When the stack was started without [`Needs::tls`](crate::Needs::tls).
    pub fn tls_url(&self, login: Login) -> String {
        let logins = self.logins.as_ref().expect("the stack was started with Needs::tls()");
        logins.url(&self.name, login)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Some(maintenance) = self.drop_by.take() else { return };
        let (name, url) = (self.name.clone(), self.url.clone());
        // A runtime and a thread of its own: this may run inside any runtime, or in none.
        let work = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime
                .block_on(async { timeout(DROP_MAX, remove(&maintenance, &url, &name)).await })
                .map_err(std::io::Error::other)?
                .map_err(std::io::Error::other)
        });
        // A name that nobody else has is left behind; there is nobody to tell.
        work.join().ok();
    }
}

/// A database with slots cannot be dropped, and a slot in use cannot either. Slots of a database
/// can only be dropped by a connection to it.
async fn remove(maintenance: &str, url: &str, name: &str) -> Result<(), sqlx::Error> {
    let mut inside = connect(url).await?;
    inside
        .execute(
            "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots
             where database = current_database() and active_pid is not null",
        )
        .await?;
    inside
        .execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots
             where database = current_database()",
        )
        .await?;
    inside.close().await?;
    let mut connection = connect(maintenance).await?;
    let drop = sqlx::AssertSqlSafe(format!("drop database if exists {name} with (force)"));
    connection.execute(drop).await?;
    connection.close().await
}

/// The URL with another database: `scheme://authority/DATABASE?parameters`.
fn with_database(url: &str, name: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", url));
    let (place, parameters) = match rest.split_once('?') {
        Some((place, parameters)) => (place, format!("?{parameters}")),
        None => (rest, String::new()),
    };
    let authority = place.split('/').next().unwrap_or(place);
    format!("{scheme}://{authority}/{name}{parameters}")
}
