//! The connection of a command to Postgres.

use std::str::FromStr as _;
use std::time::Duration;

use clap::Args;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Executor as _, PgConnection};
use tokio::time::timeout;

use crate::error::{Error, Kind, by_sqlstate};

/// Long enough for a slow name server and a loaded database.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// While a statement waits for a lock, others wait behind it.
const LOCK_WAIT: &str = "SET lock_timeout = '30s'";

const FORM: &str = "write it as postgres://user:password@host:port/database?sslmode=disable";

/// Which database a command works on.
#[derive(Args)]
pub(crate) struct Database {
    /// The database, as postgres://user:password@host:port/database?sslmode=disable
    // Empty where it is missing: clap would answer in another form than ours, and where it checks
    // a value it repeats it, password and all.
    #[arg(
        long,
        env = "DATABASE_URL",
        hide_env_values = true,
        default_value = "",
        hide_default_value = true
    )]
    database_url: String,
}

impl Database {
    /// Connects, with an end to every wait for a lock.
    pub(crate) async fn connect(&self) -> Result<PgConnection, Error> {
        let options = options(&self.database_url)?;
        let connecting = async {
            let mut connection = options.connect().await?;
            connection.execute(LOCK_WAIT).await?;
            Ok(connection)
        };
        match timeout(CONNECT_MAX, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(refused(&options, error)),
            Err(_) => {
                let text = format!("postgres at {} does not answer", address(&options));
                Err(Error::new(Kind::Unavailable, text).mended_by(REACH))
            }
        }
    }
}

const REACH: &str = "check host and port in DATABASE_URL, and that the server runs";

/// What the URL says, checked where sqlx would go on with something else than was meant.
fn options(url: &str) -> Result<PgConnectOptions, Error> {
    let fault = |text: &'static str| Error::new(Kind::Settings, text).mended_by(FORM);
    if url.is_empty() {
        return Err(fault("DATABASE_URL is missing"));
    }
    let rest = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))
        .ok_or_else(|| fault("DATABASE_URL does not begin with postgres://"))?;
    // A password with one of these unencoded ends there, and its beginning would be taken for a
    // host, and be told.
    let (authority, behind) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if !authority.contains('@') && behind.contains('@') {
        return Err(fault("DATABASE_URL has a user or password that is not percent-encoded")
            .mended_by("write / as %2F, ? as %3F and # as %23 in them"));
    }
    let mut options = PgConnectOptions::from_str(url)
        .map_err(|error| fault("DATABASE_URL is not the url of a database").caused_by(error))?;
    // Left to itself, sqlx would take `prefer` for a plain connection without a word.
    let unsaid = !behind.contains("sslmode") && !behind.contains("ssl-mode");
    match options.get_ssl_mode() {
        PgSslMode::Disable => {}
        PgSslMode::Prefer if unsaid => options = options.ssl_mode(PgSslMode::Disable),
        _ => {
            return Err(fault(
                "another sslmode than disable is not supported: there is no TLS yet",
            )
            .mended_by("connect over a trusted network or a Unix socket with sslmode=disable"));
        }
    }
    if options.get_application_name().is_none() {
        options = options.application_name("tailrace");
    }
    Ok(options)
}

fn refused(options: &PgConnectOptions, error: sqlx::Error) -> Error {
    let user = options.get_username();
    let database = options.get_database().unwrap_or(user);
    let code = error.as_database_error().and_then(|fault| fault.code()).unwrap_or_default();
    let (kind, mend) = match &*code {
        // Not an answer of Postgres at all.
        "" => (Kind::Unavailable, REACH.to_owned()),
        "28P01" => (Kind::Permission, format!("check user and password of role {user:?}")),
        "28000" => {
            let mend = format!("pg_hba.conf must let role {user:?} reach {database:?} from here");
            (Kind::Permission, mend)
        }
        "3D000" => (Kind::Settings, format!("create database {database:?} or correct its name")),
        _ => (by_sqlstate(&code), "see the server's log".to_owned()),
    };
    let text = format!("no connection to database {database:?} at {}", address(options));
    Error::new(kind, text).mended_by(mend).caused_by(error)
}

/// `host:port`, or the directory of a Unix socket.
fn address(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    }
}
