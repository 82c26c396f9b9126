//! Who may do what, for a Kafka that asks.
//!
//! The client library offers no way to change rights, so the three requests are written here as the
//! protocol has them (<https://kafka.apache.org/protocol.html>: CreateAcls, DescribeAcls and
//! DeleteAcls, version 1).

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use super::request::{Answer, ask, byte, number, text};
use crate::error::{Error, Kind};

/// How long the brokers may take to know what has changed.
const KNOWN_MAX: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

const DESCRIBE: i16 = 29;
const CREATE: i16 = 30;
const DELETE: i16 = 31;
/// Of all three.
const VERSION: i16 = 1;

const ANY: i8 = 1;
const ALLOW: i8 = 3;

/// What is done to a resource; the numbers are the protocol's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i8)]
pub enum Operation {
    /// Fetch records, join a group.
    Read = 3,
    /// Produce records. With it goes [`Operation::Describe`], as with [`Operation::Read`].
    Write = 4,
    /// Make it.
    Create = 5,
    /// See that it is there.
    Describe = 8,
    /// See its settings.
    DescribeConfigs = 10,
}

/// A right of the user that comes by [`Kafka::secure_client`](super::Kafka::secure_client).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Acl {
    resource: i8,
    name: String,
    pattern: i8,
    operation: i8,
}

impl Acl {
    /// On the topic of this name.
    pub fn topic(name: &str, operation: Operation) -> Acl {
        Acl::new(2, name, 3, operation)
    }

    /// On every topic whose name begins so.
    pub fn topics(prefix: &str, operation: Operation) -> Acl {
        Acl::new(2, prefix, 4, operation)
    }

    /// On every transactional id that begins so.
    pub fn transactional_ids(prefix: &str, operation: Operation) -> Acl {
        Acl::new(5, prefix, 4, operation)
    }

    /// On the cluster.
    pub fn cluster(operation: Operation) -> Acl {
        Acl::new(4, "kafka-cluster", 3, operation)
    }

    fn new(resource: i8, name: &str, pattern: i8, operation: Operation) -> Acl {
        Acl { resource, name: name.to_owned(), pattern, operation: operation as i8 }
    }

    fn write(&self, user: &str, body: &mut Vec<u8>) {
        byte(body, self.resource);
        text(body, Some(&self.name));
        byte(body, self.pattern);
        text(body, Some(user));
        text(body, Some("*"));
        byte(body, self.operation);
        byte(body, ALLOW);
    }
}

/// Gives the user these rights and no others. Answers when every one of these brokers knows.
pub(super) fn set(addresses: &[String], user: &str, wanted: &[Acl]) -> Result<(), Error> {
    let failed =
        |error| Error::new(Kind::Server, "cannot change the rights of a user").caused_by(error);
    let wanted: BTreeSet<Acl> = wanted.iter().cloned().collect();
    let Some(first) = addresses.first() else { return Ok(()) };
    let found = describe(first, user).map_err(failed)?;
    let missing: Vec<&Acl> = wanted.difference(&found).collect();
    change(first, CREATE, user, &missing).map_err(failed)?;
    let too_many: Vec<&Acl> = found.difference(&wanted).collect();
    change(first, DELETE, user, &too_many).map_err(failed)?;
    let deadline = Instant::now() + KNOWN_MAX;
    for address in addresses {
        while describe(address, user).map_err(failed)? != wanted {
            if Instant::now() >= deadline {
                return Err(Error::new(Kind::Server, "a broker does not hear of a user's rights"));
            }
            thread::sleep(POLL);
        }
    }
    Ok(())
}

fn change(address: &str, request: i16, user: &str, acls: &[&Acl]) -> std::io::Result<()> {
    if acls.is_empty() {
        return Ok(());
    }
    let mut body = Vec::new();
    number(&mut body, i32::try_from(acls.len()).unwrap_or(i32::MAX));
    for acl in acls {
        acl.write(user, &mut body);
    }
    let answer = ask(address, request, VERSION, &body)?;
    let mut answer = Answer(&answer);
    // How long the client is to wait before it asks again.
    answer.number()?;
    for _ in 0..answer.number()? {
        answer.must_be_good()?;
        if request == DELETE {
            for _ in 0..answer.number()? {
                answer.must_be_good()?;
                read(&mut answer, None)?;
            }
        }
    }
    Ok(())
}

/// What the user may do, as this broker knows it.
fn describe(address: &str, user: &str) -> std::io::Result<BTreeSet<Acl>> {
    let mut body = Vec::new();
    byte(&mut body, ANY);
    text(&mut body, None);
    byte(&mut body, ANY);
    text(&mut body, Some(user));
    text(&mut body, None);
    byte(&mut body, ANY);
    byte(&mut body, ANY);
    let answer = ask(address, DESCRIBE, VERSION, &body)?;
    let mut answer = Answer(&answer);
    answer.number()?;
    answer.must_be_good()?;
    let mut acls = BTreeSet::new();
    for _ in 0..answer.number()? {
        let on = (answer.byte()?, answer.text()?, answer.byte()?);
        for _ in 0..answer.number()? {
            acls.insert(read(&mut answer, Some(on.clone()))?);
        }
    }
    Ok(acls)
}

/// A right: on this resource, or on the one that stands before it.
fn read(answer: &mut Answer<'_>, on: Option<(i8, String, i8)>) -> std::io::Result<Acl> {
    let (resource, name, pattern) = match on {
        Some(on) => on,
        None => (answer.byte()?, answer.text()?, answer.byte()?),
    };
    let (_user, _host) = (answer.text()?, answer.text()?);
    let operation = answer.byte()?;
    let _allowed = answer.byte()?;
    Ok(Acl { resource, name, pattern, operation })
}
