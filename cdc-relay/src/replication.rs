//! The connection to Postgres: control queries and the change stream of a slot.
//!
//! A [`Client`] is a connection in logical replication mode (`replication=database`), which takes
//! plain SQL as well as replication commands, so that the relay needs no second client library.
//! [`Client::start_replication`] turns it into a [`Stream`] of [`Event`]s; the positions that the
//! relay reports back go through a [`StatusHandle`] and are sent by a task of their own, so that
//! a relay that is busy elsewhere never looks dead to the server.
//!
//! Protocol: <https://www.postgresql.org/docs/current/protocol-replication.html>.

mod buffer;
mod client;
mod connection;
mod encryption;
mod end_point;
mod endpoint;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod low_water;
mod pace;
mod password;
pub(crate) mod reader;
mod server_error;
mod startup;
mod status;
mod stream;
mod tls;
mod tls_error;
mod verifier;

pub(crate) use client::{Client, Large, Row, quote_identifier, quote_literal};
pub(crate) use endpoint::Endpoint;
pub(crate) use status::StatusHandle;
pub(crate) use stream::{Event, Stream};

#[cfg(test)]
mod tests;
