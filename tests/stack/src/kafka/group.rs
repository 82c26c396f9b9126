//! What the brokers decide for a consumer group of the newer protocol (KIP-848).
//!
//! The client library does not know groups as a thing with settings, so the request is written here as the protocol
//! has it (<https://kafka.apache.org/protocol.html>: IncrementalAlterConfigs, version 0).

use std::time::Duration;

use super::request::{Answer, ask, byte, number, text};
use crate::error::{Error, Kind};

const ALTER: i16 = 44;
const VERSION: i16 = 0;

/// What is altered, and how.
const GROUP: i8 = 32;
const SET: i8 = 0;

/// A member of the group is taken for dead when it was not heard of for `session`.
pub(super) fn set_session(address: &str, group: &str, session: Duration) -> Result<(), Error> {
    alter(address, group, session).map_err(|error| {
        Error::new(Kind::Server, format!("cannot change the session of the group {group}"))
            .caused_by(error)
    })
}

fn alter(address: &str, group: &str, session: Duration) -> std::io::Result<()> {
    let settings = [
        ("consumer.session.timeout.ms", session),
        // With it a member learns of a rebalance.
        ("consumer.heartbeat.interval.ms", session / 20),
    ];
    let mut body = Vec::new();
    number(&mut body, 1);
    byte(&mut body, GROUP);
    text(&mut body, Some(group));
    number(&mut body, i32::try_from(settings.len()).unwrap_or(i32::MAX));
    for (name, time) in settings {
        text(&mut body, Some(name));
        byte(&mut body, SET);
        text(&mut body, Some(&time.as_millis().to_string()));
    }
    // Not only to see whether it could be done.
    byte(&mut body, 0);
    let answer = ask(address, ALTER, VERSION, &body)?;
    let mut answer = Answer(&answer);
    // How long the client is to wait before it asks again.
    answer.number()?;
    for _ in 0..answer.number()? {
        answer.must_be_good()?;
        answer.byte()?;
        answer.text()?;
    }
    Ok(())
}
