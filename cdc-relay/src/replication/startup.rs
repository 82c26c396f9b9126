//! Start-up and log-in.

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;

use super::connection::{Connection, unexpected};
use super::endpoint::Endpoint;
use super::reader::{Fault, Reader};
use super::server_error::{During, server_error};
use crate::error::{Error, Kind};

/// What the server asks for in an authentication message
/// (<https://www.postgresql.org/docs/current/protocol-message-formats.html>).
enum Request<'a> {
    Ok,
    ClearText,
    Md5 { salt: [u8; 4] },
    Sasl { mechanisms: Vec<&'a str> },
    SaslContinue { data: &'a [u8] },
    SaslFinal { data: &'a [u8] },
    Other { method: i32 },
}

/// Logs in and waits until the server is ready; returns the process id of its backend.
pub(super) async fn start(connection: &mut Connection) -> Result<i32, Error> {
    let endpoint = connection.endpoint.clone();
    connection.send(&startup_message(&endpoint)?).await?;
    let mut scram = Scram::NotAsked;
    let mut backend_pid = 0;
    loop {
        let frame = connection.receive().await?;
        let body = connection.buffer.body(frame.body);
        match frame.tag {
            b'R' => {
                let request = Request::read(body).map_err(|fault| fault.error("log-in"))?;
                if let Some(answer) = answer(&endpoint, &mut scram, request)? {
                    connection.send(&answer).await?;
                }
            }
            b'K' => {
                backend_pid = Reader::new(body).i32().map_err(|fault| fault.error("log-in"))?;
            }
            b'E' => return Err(server_error(&endpoint, During::Connect, body)),
            b'Z' => return Ok(backend_pid),
            tag => return Err(unexpected(&endpoint, tag, "during log-in")),
        }
    }
}

fn startup_message(endpoint: &Endpoint) -> Result<BytesMut, Error> {
    let mut message = BytesMut::new();
    let parameters = [
        ("user", endpoint.user()),
        ("database", endpoint.database()),
        ("replication", "database"),
        ("application_name", endpoint.application_name()),
        ("client_encoding", "UTF8"),
    ];
    frontend::startup_message(parameters, &mut message).map_err(too_long)?;
    Ok(message)
}

/// How far the SCRAM exchange has come.
enum Scram {
    NotAsked,
    Running(ScramSha256),
    /// The server has proven that it knows the password's verifier.
    Proven,
}

/// The message to send back, if any.
fn answer(
    endpoint: &Endpoint,
    scram: &mut Scram,
    request: Request<'_>,
) -> Result<Option<BytesMut>, Error> {
    let mut message = BytesMut::new();
    match request {
        Request::Ok => {
            // A server that skips its own proof may be another one in its place.
            if matches!(scram, Scram::Running(_)) {
                return Err(not_proven(endpoint));
            }
            return Ok(None);
        }
        Request::ClearText => {
            return Err(refused(endpoint, "asks for the password in clear text, unencrypted")
                .hint("use scram-sha-256 for this role in pg_hba.conf"));
        }
        Request::Md5 { salt } => {
            let hash = md5_hash(endpoint.user().as_bytes(), password(endpoint)?, salt);
            frontend::password_message(hash.as_bytes(), &mut message).map_err(too_long)?;
        }
        Request::Sasl { mechanisms } => {
            if !mechanisms.contains(&SCRAM_SHA_256) {
                return Err(refused(endpoint, "offers no SCRAM-SHA-256"));
            }
            let exchange = ScramSha256::new(password(endpoint)?, ChannelBinding::unsupported());
            frontend::sasl_initial_response(SCRAM_SHA_256, exchange.message(), &mut message)
                .map_err(too_long)?;
            *scram = Scram::Running(exchange);
        }
        Request::SaslContinue { data } => {
            let Scram::Running(exchange) = scram else {
                return Err(refused(endpoint, "goes on with a SCRAM exchange that never began"));
            };
            exchange.update(data).map_err(|error| not_proven(endpoint).caused_by(error))?;
            frontend::sasl_response(exchange.message(), &mut message).map_err(too_long)?;
        }
        Request::SaslFinal { data } => {
            let Scram::Running(exchange) = scram else {
                return Err(refused(endpoint, "ends a SCRAM exchange that never began"));
            };
            exchange.finish(data).map_err(|error| not_proven(endpoint).caused_by(error))?;
            *scram = Scram::Proven;
            return Ok(None);
        }
        Request::Other { method } => {
            return Err(refused(endpoint, &format!("asks for authentication method {method}"))
                .hint("use scram-sha-256 for this role in pg_hba.conf"));
        }
    }
    Ok(Some(message))
}

fn password(endpoint: &Endpoint) -> Result<&[u8], Error> {
    endpoint.password().map(str::as_bytes).ok_or_else(|| {
        refused(endpoint, "asks for a password and none is given")
            .hint("put it into the database url: postgres://user:password@host:port/database")
    })
}

fn refused(endpoint: &Endpoint, what: &str) -> Error {
    Error::new(Kind::Permission, format!("log-in as {}: the server {what}", endpoint.describe()))
}

fn not_proven(endpoint: &Endpoint) -> Error {
    refused(endpoint, "could not prove that it knows the password")
        .hint("make sure that the address is that of the right server")
}

fn too_long(error: std::io::Error) -> Error {
    Error::new(Kind::Config, "a log-in message does not fit the protocol").caused_by(error)
}

impl<'a> Request<'a> {
    fn read(body: &'a [u8]) -> Result<Self, Fault> {
        let mut reader = Reader::new(body);
        Ok(match reader.i32()? {
            0 => Request::Ok,
            3 => Request::ClearText,
            5 => Request::Md5 { salt: reader.u32()?.to_be_bytes() },
            10 => {
                let mut mechanisms = Vec::new();
                loop {
                    match reader.text()? {
                        "" => break Request::Sasl { mechanisms },
                        name => mechanisms.push(name),
                    }
                }
            }
            11 => Request::SaslContinue { data: reader.rest() },
            12 => Request::SaslFinal { data: reader.rest() },
            method => Request::Other { method },
        })
    }
}
