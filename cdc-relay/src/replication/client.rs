//! SQL and replication commands on one connection.

use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::time::timeout;

use super::connection::{Channel, Connection, TLS_HANDSHAKE, TLS_QUESTION, late, unexpected};
use super::encryption::Attempt;
use super::endpoint::{Endpoint, Target};
use super::reader::{Fault, Reader};
use super::server_error::{During, server_error};
use super::startup::{self, Refusal};
use super::stream::Stream;
use crate::error::{Error, Kind};

/// Control queries read catalogs and answer in milliseconds; one that takes this long waits for
/// a lock or for a server that is gone.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);

/// The most a query may answer: control queries return a handful of rows.
const RESULT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Versions before 15 lack what the relay relies on, and their support has ended or ends soon.
const SERVER_VERSION_MIN: u32 = 150_000;

/// A connection in logical replication mode: runs SQL and replication commands.
///
/// Dropping a future of it half way leaves it unusable; every later call then says so.
pub(crate) struct Client {
    connection: Connection,
    backend_pid: i32,
    server_version: u32,
    /// Whether the server waits for a command and has nothing left to say.
    ready: bool,
}

/// A row of a result, in text form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row(Vec<Option<String>>);

impl Row {
    /// The column's text; `None` when it is null or there is no such column.
    pub(crate) fn get(&self, column: usize) -> Option<&str> {
        self.0.get(column)?.as_deref()
    }
}

impl Client {
    /// Connects and logs in, to the first host that serves, each within the endpoint's time-out;
    /// refuses servers before Postgres 15.
    ///
    /// A host that cannot serve now, or is not the kind of server that is asked for, is passed
    /// over; one that refuses *us* ends the search, as for libpq.
    pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Client, Error> {
        let mut failures: Vec<Error> = Vec::new();
        for place in endpoint.alternatives() {
            match Client::connect_to(&place).await {
                Err(error) if error.kind() == Kind::Unavailable => failures.push(error),
                outcome => return outcome,
            }
        }
        if failures.len() > 1 {
            let texts: Vec<String> = failures.iter().map(ToString::to_string).collect();
            return Err(Error::new(
                Kind::Unavailable,
                format!("none of {} hosts serves: {}", failures.len(), texts.join("; ")),
            ));
        }
        Err(failures.pop().expect("an endpoint has a host"))
    }

    /// As [`Client::connect`], for an endpoint of one host.
    async fn connect_to(endpoint: &Endpoint) -> Result<Client, Error> {
        let limit = endpoint.connect_timeout();
        let mut phase = "";
        let outcome = timeout(limit, Box::pin(Client::log_in(endpoint, &mut phase))).await;
        outcome.unwrap_or_else(|_| Err(late(endpoint, phase, limit)))
    }

    /// One that has logged in on this connection.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn over(connection: Connection) -> Client {
        Client { connection, backend_pid: 0, server_version: 0, ready: true }
    }

    /// Tries each degree of protection that `sslmode` allows.
    async fn log_in(endpoint: &Endpoint, phase: &mut &'static str) -> Result<Client, Error> {
        let attempts: &[Attempt] = match endpoint.is_socket() {
            true => &[Attempt::Plain],
            false => endpoint.encryption().attempts(),
        };
        let mut before: Option<Error> = None;
        for (number, &attempt) in attempts.iter().enumerate() {
            let Refusal { error, at_the_door } =
                match Client::try_log_in(endpoint, attempt, phase).await {
                    Ok(client) => return Ok(client),
                    Err(refusal) => refusal,
                };
            let last = number + 1 == attempts.len();
            if last && (at_the_door || *phase == TLS_QUESTION) {
                // Of two closed doors the first is the one that was wished for.
                return Err(before.unwrap_or(error));
            }
            if last || !at_the_door {
                return Err(error);
            }
            if attempt == Attempt::TlsIfOffered {
                tracing::warn!(
                    error = %error,
                    cause = error.causes(),
                    "connecting without TLS, as sslmode=prefer allows"
                );
            }
            before = Some(error);
        }
        unreachable!("the last attempt returns")
    }

    async fn try_log_in(
        endpoint: &Endpoint,
        attempt: Attempt,
        phase: &mut &'static str,
    ) -> Result<Client, Refusal> {
        let mut connection = match Connection::open(endpoint, attempt, phase).await {
            Ok(connection) => connection,
            Err(error) => {
                // Files that are missing are missing however often we try.
                let at_the_door = *phase == TLS_HANDSHAKE && error.kind() != Kind::Config;
                return Err(Refusal { error, at_the_door });
            }
        };
        *phase = "the log-in";
        let backend_pid = startup::start(&mut connection).await.map_err(|mut refusal| {
            // An unprotected connection is not tried a second time.
            refusal.at_the_door &=
                attempt != Attempt::TlsIfOffered || connection.channel != Channel::Plain;
            refusal
        })?;
        *phase = "the first query";
        let mut client = Client { connection, backend_pid, server_version: 0, ready: true };
        client.check_version().await?;
        client.check_target().await?;
        Ok(client)
    }

    async fn check_version(&mut self) -> Result<(), Error> {
        let settings =
            "SELECT current_setting('server_version_num'), current_setting('server_encoding')";
        let rows = self.query(settings).await?;
        let setting = |column| rows.first().and_then(|row| row.get(column));
        let version = setting(0).and_then(|text| text.parse().ok());
        let address = self.connection.endpoint.address();
        self.server_version = version.ok_or_else(|| {
            Error::new(Kind::Server, format!("postgres at {address} does not tell its version"))
        })?;
        if self.server_version < SERVER_VERSION_MIN {
            let version = self.server_version / 10_000;
            return Err(Error::new(
                Kind::Server,
                format!(
                    "postgres at {address} is version {version}, and 15 is the oldest that is supported"
                ),
            ));
        }
        // There the server knows nothing of what its bytes mean: asked for UTF-8, it would end the
        // stream at the first text that is none, and at each new try again. As it is, such a text
        // is a fault of one row.
        if setting(1) == Some("SQL_ASCII") {
            self.query("SET client_encoding TO 'SQL_ASCII'").await?;
        }
        Ok(())
    }

    /// Whether it is the kind of server that is asked for.
    async fn check_target(&mut self) -> Result<(), Error> {
        let target = self.connection.endpoint.target();
        let wrong = match target {
            Target::Any => return Ok(()),
            Target::Primary => "SELECT pg_is_in_recovery()",
            Target::ReadWrite => {
                "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool"
            }
        };
        let rows = self.query(wrong).await?;
        if rows.first().and_then(|row| row.get(0)) == Some("f") {
            return Ok(());
        }
        Err(Error::new(
            Kind::Unavailable,
            format!(
                "postgres at {} is not {target}, as target_session_attrs asks",
                self.connection.endpoint.address()
            ),
        )
        .hint("name all servers of the cluster in the database url: host1:port1,host2:port2"))
    }

    /// The process id of the server's backend, as in `pg_stat_activity`.
    pub(crate) fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// The server's `server_version_num`: 180006 is 18.6.
    pub(crate) fn server_version(&self) -> u32 {
        self.server_version
    }

    /// Runs SQL or a replication command and returns its rows, those of all statements together.
    ///
    /// Several statements in one text are one transaction. Waits up to 30 s.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        self.query_within(QUERY_TIMEOUT, sql).await
    }

    /// As [`Client::query`], with a limit of its own: making a slot waits for every transaction
    /// that runs.
    pub(crate) async fn query_within(
        &mut self,
        limit: Duration,
        sql: &str,
    ) -> Result<Vec<Row>, Error> {
        match timeout(limit, self.rows(sql)).await {
            Ok(rows) => rows,
            Err(_) => Err(late(&self.connection.endpoint, "a query", limit)),
        }
    }

    async fn rows(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        self.send(sql).await?;
        let mut rows = Vec::new();
        let mut bytes_left = RESULT_BYTES_MAX;
        let mut refusal = None;
        loop {
            let frame = match self.connection.receive().await {
                Ok(frame) => frame,
                // After a fatal error the server hangs up: what it said before is the reason.
                Err(error) => return Err(refusal.unwrap_or(error)),
            };
            let endpoint = &self.connection.endpoint;
            let body = self.connection.buffer.body(frame.body);
            match frame.tag {
                b'D' => {
                    bytes_left = bytes_left.checked_sub(body.len()).ok_or_else(|| {
                        Error::new(Kind::Server, "a query returned more than 64 MiB")
                    })?;
                    rows.push(row(body).map_err(|fault| fault.error("a row of a query"))?);
                }
                b'E' => {
                    let error = server_error(endpoint, During::Query, body);
                    refusal.get_or_insert(error);
                }
                b'Z' => {
                    self.ready = true;
                    return refusal.map_or(Ok(rows), Err);
                }
                // Row description, command complete, empty query.
                b'T' | b'C' | b'I' => {}
                tag => return Err(unexpected(endpoint, tag, "in answer to a query")),
            }
        }
    }

    /// Starts to stream a slot from the position that it has confirmed.
    ///
    /// The stream carries logical messages, and rows in binary form.
    pub(crate) async fn start_replication(
        self,
        slot: &str,
        publication: &str,
        large: Large,
    ) -> Result<Stream, Error> {
        let endpoint = self.connection.endpoint.clone();
        timeout(QUERY_TIMEOUT, self.begin_stream(slot, publication, large))
            .await
            .unwrap_or_else(|_| Err(late(&endpoint, "START_REPLICATION", QUERY_TIMEOUT)))
    }

    async fn begin_stream(
        mut self,
        slot: &str,
        publication: &str,
        large: Large,
    ) -> Result<Stream, Error> {
        // pgoutput takes a list of identifiers as one string, and in replication commands a
        // backslash in a string is nothing special.
        let publications = quote_identifier(publication).replace('\'', "''");
        let streaming = match large {
            Large::AtCommit => "off",
            Large::InProgress => "on",
        };
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '2', \
             publication_names '{publications}', messages 'true', binary 'true', \
             streaming '{streaming}')",
            quote_identifier(slot),
        );
        self.send(&command).await?;
        let frame = self.connection.receive().await?;
        let endpoint = &self.connection.endpoint;
        match frame.tag {
            b'W' => Ok(Stream::new(self.connection, slot)),
            b'E' => {
                let body = self.connection.buffer.body(frame.body);
                Err(server_error(endpoint, During::Start { slot }, body))
            }
            tag => Err(unexpected(endpoint, tag, "in answer to START_REPLICATION")),
        }
    }

    async fn send(&mut self, sql: &str) -> Result<(), Error> {
        if !self.ready {
            return Err(Error::new(
                Kind::Unavailable,
                "the connection was left in the middle of a query",
            ));
        }
        let mut message = BytesMut::new();
        frontend::query(sql, &mut message).map_err(|error| {
            Error::new(Kind::Config, "a query does not fit the protocol").caused_by(error)
        })?;
        self.ready = false;
        self.connection.send(&message).await
    }
}

/// When the server sends a transaction that does not fit its `logical_decoding_work_mem`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Large {
    /// Once it has committed; until then the server keeps it on its disk. What was rolled back is
    /// left out by the server itself, messages of rolled-back savepoints too.
    AtCommit,
    /// While it is in progress, in segments (the option `streaming` of pgoutput).
    InProgress,
}

fn row(body: &[u8]) -> Result<Row, Fault> {
    let mut reader = Reader::new(body);
    let mut columns = Vec::new();
    for _ in 0..reader.count()? {
        let fault = reader.fault("a value that is not UTF-8");
        columns.push(match reader.i32()? {
            -1 => None,
            length => {
                let length = usize::try_from(length).map_err(|_| fault)?;
                let text = std::str::from_utf8(reader.take(length)?).map_err(|_| fault)?;
                Some(text.to_owned())
            }
        });
    }
    reader.end()?;
    Ok(Row(columns))
}

/// The name as an SQL identifier, whatever is in it.
pub(crate) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The text as an SQL string.
///
/// `standard_conforming_strings` does not matter: a text with a backslash is written in the
/// form that takes escapes.
pub(crate) fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}
