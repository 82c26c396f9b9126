//! Who may do what, for a Kafka that asks.
//!
//! The client library offers no way to change rights, so the three requests are written here as the
//! protocol has them (<https://kafka.apache.org/protocol.html>: CreateAcls, DescribeAcls and
//! DeleteAcls, version 1).

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Kind};

/// How long a broker may take to answer, and all of them to know what has changed.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// An answer is longer only if it is none.
const ANSWER_BYTES_MAX: usize = 1 << 20;

const DESCRIBE: i16 = 29;
const CREATE: i16 = 30;
const DELETE: i16 = 31;

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
    let deadline = Instant::now() + ANSWER_MAX;
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
    let answer = ask(address, request, &body)?;
    let mut answer = Answer(&answer);
    // How long the client is to wait before it asks again.
    answer.number()?;
    for _ in 0..answer.number()? {
        answer.must_be_good()?;
        if request == DELETE {
            for _ in 0..answer.number()? {
                answer.must_be_good()?;
                answer.acl(None)?;
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
    let answer = ask(address, DESCRIBE, &body)?;
    let mut answer = Answer(&answer);
    answer.number()?;
    answer.must_be_good()?;
    let mut acls = BTreeSet::new();
    for _ in 0..answer.number()? {
        let on = (answer.byte()?, answer.text()?, answer.byte()?);
        for _ in 0..answer.number()? {
            acls.insert(answer.acl(Some(on.clone()))?);
        }
    }
    Ok(acls)
}

/// Sends one request and takes its answer.
fn ask(address: &str, request: i16, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut message = Vec::new();
    message.extend(request.to_be_bytes());
    message.extend(1_i16.to_be_bytes());
    number(&mut message, 0);
    text(&mut message, Some("tailrace-stack"));
    message.extend(body);
    let length = u32::try_from(message.len()).map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.write_all(&[&length.to_be_bytes(), message.as_slice()].concat())?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > ANSWER_BYTES_MAX {
        return Err(std::io::Error::other("the answer is too long"));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    // The number of the request comes first.
    Ok(answer.split_off(4.min(length)))
}

fn byte(body: &mut Vec<u8>, value: i8) {
    body.extend(value.to_be_bytes());
}

fn number(body: &mut Vec<u8>, value: i32) {
    body.extend(value.to_be_bytes());
}

fn text(body: &mut Vec<u8>, value: Option<&str>) {
    let length = value.map_or(-1, |value| i16::try_from(value.len()).unwrap_or(i16::MAX));
    body.extend(length.to_be_bytes());
    body.extend(value.unwrap_or_default().as_bytes());
}

/// What is left of an answer.
struct Answer<'a>(&'a [u8]);

impl Answer<'_> {
    fn take<const N: usize>(&mut self) -> std::io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn byte(&mut self) -> std::io::Result<i8> {
        Ok(i8::from_be_bytes(self.take()?))
    }

    fn number(&mut self) -> std::io::Result<i32> {
        Ok(i32::from_be_bytes(self.take()?))
    }

    fn text(&mut self) -> std::io::Result<String> {
        let length = i16::from_be_bytes(self.take()?);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        self.0.read_exact(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// An error number and its text.
    fn must_be_good(&mut self) -> std::io::Result<()> {
        let code = i16::from_be_bytes(self.take()?);
        let what = self.text()?;
        if code == 0 {
            return Ok(());
        }
        Err(std::io::Error::other(format!("the broker answers with error {code}: {what}")))
    }

    /// A right: on this resource, or on the one that stands before it.
    fn acl(&mut self, on: Option<(i8, String, i8)>) -> std::io::Result<Acl> {
        let (resource, name, pattern) = match on {
            Some(on) => on,
            None => (self.byte()?, self.text()?, self.byte()?),
        };
        let (_user, _host) = (self.text()?, self.text()?);
        let operation = self.byte()?;
        let _allowed = self.byte()?;
        Ok(Acl { resource, name, pattern, operation })
    }
}
