//! Start-up and log-in.

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;

use super::connection::{Channel, Connection, unexpected};
use super::encryption::ChannelBinding as Binding;
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

/// Why a log-in failed.
pub(super) struct Refusal {
    pub(super) error: Error,
    /// The server would not have this connection, before it asked for anything: encrypted, or
    /// not, it might.
    pub(super) at_the_door: bool,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal { error, at_the_door: false }
    }
}

/// Logs in and waits until the server is ready; returns the process id of its backend.
pub(super) async fn start(connection: &mut Connection) -> Result<i32, Refusal> {
    let endpoint = connection.endpoint.clone();
    connection.send(&startup_message(&endpoint)?).await?;
    let mut proof = Proof::NotAsked;
    let mut asked = false;
    let mut let_in = false;
    let mut backend_pid = 0;
    loop {
        let frame = connection.receive().await?;
        let body = connection.buffer.body(frame.body);
        match frame.tag {
            b'R' if !let_in => {
                asked = true;
                let request = Request::read(body).map_err(|fault| fault.error("log-in"))?;
                let_in = matches!(request, Request::Ok);
                let password =
                    if request.needs_password() { password(&endpoint).await? } else { Vec::new() };
                let login = Login { endpoint: &endpoint, channel: &connection.channel };
                if let Some(answer) = login.answer(&mut proof, request, &password)? {
                    connection.send(&answer).await?;
                }
            }
            b'K' => {
                backend_pid = Reader::new(body).i32().map_err(|fault| fault.error("log-in"))?;
            }
            b'E' => {
                let error = server_error(&endpoint, During::Connect, body);
                let at_the_door = !asked && error.sqlstate() == Some("28000");
                return Err(Refusal { error, at_the_door });
            }
            // Never without having said that we are in: the proofs are checked there.
            b'Z' if let_in => return Ok(backend_pid),
            tag => return Err(unexpected(&endpoint, tag, "during log-in").into()),
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
    let options = endpoint.options().map(|options| ("options", options));
    frontend::startup_message(parameters.into_iter().chain(options), &mut message)
        .map_err(too_long)?;
    Ok(message)
}

/// How far the proof of both sides has come.
enum Proof {
    NotAsked,
    /// The password has gone out, or its hash; nothing proves the server.
    OneSided,
    Scram {
        exchange: ScramSha256,
        bound: bool,
    },
    /// The server has proven that it knows the password's verifier.
    Proven {
        /// And that it sees the same channel as we do.
        bound: bool,
    },
}

/// What an answer depends on, beside the request.
struct Login<'a> {
    endpoint: &'a Endpoint,
    channel: &'a Channel,
}

impl Login<'_> {
    /// The message to send back, if any.
    fn answer(
        &self,
        proof: &mut Proof,
        request: Request<'_>,
        password: &[u8],
    ) -> Result<Option<BytesMut>, Error> {
        let endpoint = self.endpoint;
        // Else a server could have SCRAM and then the password itself.
        if request.needs_password() && !matches!(proof, Proof::NotAsked) {
            return Err(refused(endpoint, "asks for a second proof"));
        }
        let mut message = BytesMut::new();
        match request {
            Request::Ok => self.check(proof)?,
            Request::ClearText => {
                self.refuse_unbound("a password")?;
                if *self.channel == Channel::Plain {
                    return Err(refused(
                        endpoint,
                        "asks for the password in clear text, unencrypted",
                    )
                    .hint(
                        "use sslmode=verify-full, or scram-sha-256 for this role in pg_hba.conf",
                    ));
                }
                frontend::password_message(password, &mut message).map_err(too_long)?;
                *proof = Proof::OneSided;
            }
            Request::Md5 { salt } => {
                self.refuse_unbound("an MD5 hash")?;
                let hash = md5_hash(endpoint.user().as_bytes(), password, salt);
                frontend::password_message(hash.as_bytes(), &mut message).map_err(too_long)?;
                *proof = Proof::OneSided;
            }
            Request::Sasl { mechanisms } => {
                let (mechanism, binding) = self.mechanism(&mechanisms)?;
                let exchange = ScramSha256::new(password, binding);
                frontend::sasl_initial_response(mechanism, exchange.message(), &mut message)
                    .map_err(too_long)?;
                *proof = Proof::Scram { exchange, bound: mechanism == SCRAM_SHA_256_PLUS };
            }
            Request::SaslContinue { data } => {
                let Proof::Scram { exchange, .. } = proof else {
                    return Err(refused(
                        endpoint,
                        "goes on with a SCRAM exchange that never began",
                    ));
                };
                exchange.update(data).map_err(|error| not_proven(endpoint).caused_by(error))?;
                frontend::sasl_response(exchange.message(), &mut message).map_err(too_long)?;
            }
            Request::SaslFinal { data } => {
                let Proof::Scram { exchange, bound } = proof else {
                    return Err(refused(endpoint, "ends a SCRAM exchange that never began"));
                };
                exchange.finish(data).map_err(|error| not_proven(endpoint).caused_by(error))?;
                *proof = Proof::Proven { bound: *bound };
            }
            Request::Other { method } => {
                return Err(refused(endpoint, &format!("asks for authentication method {method}"))
                    .hint("use scram-sha-256 for this role in pg_hba.conf"));
            }
        }
        Ok((!message.is_empty()).then_some(message))
    }

    /// The server says that we are in.
    fn check(&self, proof: &Proof) -> Result<(), Error> {
        match proof {
            // A server that skips its own proof may be another one in its place.
            Proof::Scram { .. } => Err(not_proven(self.endpoint)),
            Proof::Proven { bound: true } => Ok(()),
            Proof::NotAsked | Proof::OneSided | Proof::Proven { bound: false } => {
                self.refuse_unbound("no proof")
            }
        }
    }

    /// Nothing but SCRAM can be bound to the channel.
    fn refuse_unbound(&self, what: &str) -> Result<(), Error> {
        if self.endpoint.encryption().channel_binding != Binding::Require {
            return Ok(());
        }
        Err(refused(
            self.endpoint,
            &format!("asks for {what}, and channel_binding=require needs SCRAM-SHA-256-PLUS"),
        )
        .hint("use TLS and scram-sha-256 for this role, or channel_binding=prefer"))
    }

    /// The way of SCRAM to take, of those that the server offers.
    fn mechanism(&self, offered: &[&str]) -> Result<(&'static str, ChannelBinding), Error> {
        let wanted = self.endpoint.encryption().channel_binding;
        let end_point = match self.channel {
            Channel::Tls { end_point: Some(hash) } if wanted != Binding::Disable => Some(hash),
            _ => None,
        };
        if let Some(hash) = end_point.filter(|_| offered.contains(&SCRAM_SHA_256_PLUS)) {
            return Ok((SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash.clone())));
        }
        self.refuse_unbound("SCRAM without it")?;
        if !offered.contains(&SCRAM_SHA_256) {
            return Err(refused(self.endpoint, "offers no SCRAM-SHA-256"));
        }
        // To say that we could have bound it lets the server notice when somebody in between
        // took the better way out of its offer.
        let binding = match end_point {
            Some(_) => ChannelBinding::unrequested(),
            None => ChannelBinding::unsupported(),
        };
        Ok((SCRAM_SHA_256, binding))
    }
}

async fn password(endpoint: &Endpoint) -> Result<Vec<u8>, Error> {
    match endpoint.password_source() {
        // Before the log-in as a whole is given up: the server has no part in this wait.
        Some(source) => source.read(endpoint.connect_timeout() * 4 / 5).await,
        None => Err(refused(endpoint, "asks for a password and none is given")
            .hint("put it into the database url: postgres://user:password@host:port/database")),
    }
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
    fn needs_password(&self) -> bool {
        matches!(self, Request::ClearText | Request::Md5 { .. } | Request::Sasl { .. })
    }

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
