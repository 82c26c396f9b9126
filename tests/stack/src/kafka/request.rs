//! Requests that the client library does not know, as Kafka's protocol has them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How long a broker may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// An answer is longer only if it is none.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Sends one request and takes its answer.
pub(super) fn ask(
    address: &str,
    request: i16,
    version: i16,
    body: &[u8],
) -> std::io::Result<Vec<u8>> {
    let mut message = Vec::new();
    message.extend(request.to_be_bytes());
    message.extend(version.to_be_bytes());
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

pub(super) fn byte(body: &mut Vec<u8>, value: i8) {
    body.extend(value.to_be_bytes());
}

pub(super) fn number(body: &mut Vec<u8>, value: i32) {
    body.extend(value.to_be_bytes());
}

pub(super) fn text(body: &mut Vec<u8>, value: Option<&str>) {
    let length = value.map_or(-1, |value| i16::try_from(value.len()).unwrap_or(i16::MAX));
    body.extend(length.to_be_bytes());
    body.extend(value.unwrap_or_default().as_bytes());
}

/// What is left of an answer.
pub(super) struct Answer<'a>(pub(super) &'a [u8]);

impl Answer<'_> {
    fn take<const N: usize>(&mut self) -> std::io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn byte(&mut self) -> std::io::Result<i8> {
        Ok(i8::from_be_bytes(self.take()?))
    }

    pub(super) fn number(&mut self) -> std::io::Result<i32> {
        Ok(i32::from_be_bytes(self.take()?))
    }

    pub(super) fn text(&mut self) -> std::io::Result<String> {
        let length = i16::from_be_bytes(self.take()?);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        self.0.read_exact(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// An error number and its text.
    pub(super) fn must_be_good(&mut self) -> std::io::Result<()> {
        let code = i16::from_be_bytes(self.take()?);
        let what = self.text()?;
        if code == 0 {
            return Ok(());
        }
        Err(std::io::Error::other(format!("the broker answers with error {code}: {what}")))
    }
}
