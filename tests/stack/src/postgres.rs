//! A Postgres server and its databases.

mod binaries;
mod cluster;
#[cfg(feature = "docker")]
mod container;
mod database;
mod login;
mod pooler;
mod standby;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions, Connection, Executor, Row};
use tokio::time::{sleep, timeout};

#[cfg(test)]
pub(crate) use binaries::major_version;
pub(crate) use binaries::{Source, Way};
pub use database::Database;
pub use login::Login;
pub use pooler::Pooler;
pub use standby::Replication;

use crate::certificates::Certificates;
use crate::error::{Error, Kind};
use crate::proxy::Proxy;
use crate::server::Server;
use crate::settings::{DATABASE_URL, Settings};
use crate::stack::{blocking, tell};
use cluster::Cluster;
use login::Logins;

/// How long a server may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long a server in Docker may take to serve; recovery after a kill is part of it.
const START_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// A Postgres server with `wal_level=logical` and a superuser.
#[derive(Debug)]
pub struct Postgres {
    url: String,
    version: u32,
    host: String,
    port: u16,
    /// `None` when the server is not ours.
    server: Option<Arc<dyn Server>>,
    /// The same when it is local.
    cluster: Option<Arc<Cluster>>,
    logins: Option<Logins>,
}

impl Postgres {
    pub(crate) async fn start(
        way: Way,
        settings: &Settings,
        certificates: Option<&Certificates>,
    ) -> Result<Self, Error> {
        match way {
            Way::Environment(url) => Postgres::attach(url).await,
            #[cfg(feature = "docker")]
            Way::Docker(major) => {
                let settings = settings.clone();
                let start = move || container::start(&settings, major);
                Postgres::contained(blocking(start).await?, major).await
            }
            Way::Local(binaries) => {
                let why = binaries.why().to_owned();
                let settings = settings.clone();
                let create = move || Cluster::create(binaries, &settings);
                let cluster = blocking(create).await?;
                if let Some(certificates) = certificates {
                    cluster.secure(certificates)?;
                }
                let cluster = Arc::new(cluster);
                let (port, url) = cluster.start().await?;
                let version = look(&url).await?;
                let logins = match certificates {
                    Some(certificates) => Some(logins(&url, port, certificates).await?),
                    None => None,
                };
                tell(&format!("Postgres {} on port {port}: {why}", version / 10_000));
                let host = Ipv4Addr::LOCALHOST.to_string();
                let server: Arc<dyn Server> = Arc::<Cluster>::clone(&cluster);
                Ok(Postgres {
                    url,
                    version,
                    host,
                    port,
                    server: Some(server),
                    cluster: Some(cluster),
                    logins,
                })
            }
        }
    }

    #[cfg(feature = "docker")]
    async fn contained(started: container::Started, major: u32) -> Result<Self, Error> {
        let container::Started { server, host, port, url } = started;
        until_it_serves(&url).await?;
        let version = look(&url).await?;
        if version / 10_000 != major {
            let text = format!("the image postgres:{major} holds Postgres {}", version / 10_000);
            return Err(Error::new(Kind::Server, text));
        }
        tell(&format!("Postgres {major} on port {port}: in Docker"));
        Ok(Postgres { url, version, host, port, server: Some(server), cluster: None, logins: None })
    }

    async fn attach(url: String) -> Result<Self, Error> {
        let failed =
            |text: String| Error::new(Kind::Environment, format!("{DATABASE_URL}: {text}"));
        let options: sqlx::postgres::PgConnectOptions =
            url.parse().map_err(|error: sqlx::Error| {
                failed("not a URL of a Postgres".into()).caused_by(error)
            })?;
        let version = look(&url)
            .await
            .map_err(|error| failed("the server is of no use".into()).caused_by(error))?;
        let (host, port) = (options.get_host().to_owned(), options.get_port());
        tell(&format!("Postgres {} at {host}:{port}: {DATABASE_URL} is set", version / 10_000));
        Ok(Postgres { url, version, host, port, server: None, cluster: None, logins: None })
    }

    /// The superuser's URL to the database `postgres`; with a password (SCRAM) when the server is
    /// ours.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL over TLS to the database `postgres`, with `sslmode=verify-full`, for the superuser
    /// who logs in this way.
    ///
    /// # Panics
    ///
    /// When the stack was started without [`Needs::tls`](crate::Needs::tls).
    pub fn tls_url(&self, login: Login) -> String {
        let logins = self.logins.as_ref().expect("the stack was started with Needs::tls()");
        logins.url("postgres", login)
    }

    /// The TCP port; the same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// 15 to 18.
    pub fn major_version(&self) -> u32 {
        self.version / 10_000
    }

    /// A new empty database with a unique name made from this one.
    pub async fn fresh_database(&self, name: &str) -> Result<Database, Error> {
        let dropped = self.server.is_none();
        Database::create(&self.url, name, dropped, self.logins.clone()).await
    }

    /// A proxy in front of the server, one more with each call: [`Proxy::url`] makes the URL of any
    /// database lead through it.
    pub fn proxy(&self) -> Result<Proxy, Error> {
        Proxy::start((self.host.as_str(), self.port))
    }

    /// A PgBouncer in front of the server, in transaction mode and with so many connections to it
    /// for each database.
    pub async fn pooler(&self, servers: u32) -> Result<Pooler, Error> {
        let url = self.url.clone();
        let settings = Settings::from_environment()?;
        blocking(move || Pooler::start(&url, servers, &settings)).await
    }

    /// Ends the server and all its children by SIGKILL, as a power cut of the process would: what
    /// it had not written is lost. Answers when they are gone.
    pub async fn kill(&self) -> Result<(), Error> {
        let server = self.ours()?;
        blocking(move || server.kill()).await
    }

    /// Shuts the server down in order, without waiting for its clients.
    pub async fn stop(&self) -> Result<(), Error> {
        let server = self.ours()?;
        blocking(move || server.stop()).await
    }

    /// Halts the server and all its children by SIGSTOP: its connections stay open and nothing
    /// answers, as on a machine that hangs. Answers when none of them runs any more.
    pub async fn pause(&self) -> Result<(), Error> {
        let server = self.ours()?;
        blocking(move || server.pause()).await
    }

    /// Lets it go on after [`pause`](Postgres::pause), as if no time had passed.
    pub async fn resume(&self) -> Result<(), Error> {
        let server = self.ours()?;
        blocking(move || server.resume()).await
    }

    /// Starts it again, after [`kill`](Postgres::kill) or [`stop`](Postgres::stop), with the same
    /// port and data; stops it first when it runs. Answers when it serves.
    pub async fn restart(&self) -> Result<(), Error> {
        let server = self.ours()?;
        match &self.cluster {
            Some(cluster) => cluster.start().await.map(drop),
            None => {
                blocking(move || server.restart()).await?;
                until_it_serves(&self.url).await
            }
        }
    }

    /// Where the server's files are.
    #[cfg(test)]
    pub(crate) fn directory(&self) -> std::path::PathBuf {
        self.cluster.as_ref().expect("the server is ours").directory()
    }

    /// The local server.
    fn local(&self) -> Result<Arc<Cluster>, Error> {
        self.ours()?;
        self.cluster.as_ref().map(Arc::clone).ok_or_else(|| {
            Error::new(Kind::Environment, "a Postgres in Docker has no standby; use a local one")
        })
    }

    fn ours(&self) -> Result<Arc<dyn Server>, Error> {
        self.server.as_ref().map(Arc::clone).ok_or_else(|| {
            Error::new(
                Kind::Environment,
                format!(
                    "the server of {DATABASE_URL} is not ours to break; ask for Needs::breakable()"
                ),
            )
        })
    }
}

/// Waits for a server that is starting.
async fn until_it_serves(url: &str) -> Result<(), Error> {
    let deadline = Instant::now() + START_MAX;
    while let Err(error) = look(url).await {
        if Instant::now() >= deadline {
            return Err(error);
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// Asks a server whether it can serve us, and for its version number.
async fn look(url: &str) -> Result<u32, Error> {
    let ask = async {
        let mut connection = connect(url).await?;
        let row = connection
            .fetch_one(
                "select current_setting('server_version_num')::int, current_setting('wal_level'),
                    current_setting('max_replication_slots')::bigint
                        - (select count(*) from pg_replication_slots)",
            )
            .await?;
        connection.close().await?;
        Ok::<(i32, String, i64), sqlx::Error>((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
    };
    let failed = || Error::new(Kind::Server, "Postgres does not answer");
    let answer = timeout(ANSWER_MAX, ask).await.map_err(|error| failed().caused_by(error))?;
    let (version, wal_level, free_slots) = answer.map_err(|error| failed().caused_by(error))?;
    let refuse = |text: String| Err(Error::new(Kind::Environment, text));
    match u32::try_from(version) {
        Ok(version) if version >= 150_000 => {
            if wal_level != "logical" {
                return refuse(format!("wal_level is {wal_level}; it has to be logical"));
            }
            if free_slots < 1 {
                return refuse("no replication slot is free; raise max_replication_slots".into());
            }
            Ok(version)
        }
        _ => refuse(format!(
            "Postgres {} is too old; 15 is the oldest that serves",
            version / 10_000
        )),
    }
}

async fn logins(url: &str, port: u16, certificates: &Certificates) -> Result<Logins, Error> {
    let failed = || Error::new(Kind::Server, "cannot make the users that log in over TLS");
    timeout(ANSWER_MAX, Logins::create(url, port, certificates))
        .await
        .map_err(|error| failed().caused_by(error))?
        .map_err(|error| failed().caused_by(error))
}

async fn connect(url: &str) -> Result<PgConnection, sqlx::Error> {
    url.parse::<sqlx::postgres::PgConnectOptions>()?.disable_statement_logging().connect().await
}
