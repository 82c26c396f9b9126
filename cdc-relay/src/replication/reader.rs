//! Checked reads over bytes that a server sent.

use crate::error::{Error, Kind};
use crate::lsn::Lsn;

/// A cursor that never reads past the end and always knows at which byte it stands.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    length: usize,
}

/// What broke the format, and at which byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    what: &'static str,
    offset: usize,
}

impl Fault {
    /// The error for these bytes; `place` says whose bytes they are.
    pub(crate) fn error(self, place: impl std::fmt::Display) -> Error {
        let Fault { what, offset } = self;
        Error::new(Kind::Malformed, format!("{place}: {what} at byte {offset}"))
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes, length: bytes.len() }
    }

    /// A fault at the byte that comes next.
    pub(crate) fn fault(&self, what: &'static str) -> Fault {
        Fault { what, offset: self.length - self.rest.len() }
    }

    /// What has not been read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (head, rest) = self
            .rest
            .split_first_chunk()
            .ok_or_else(|| self.fault("the message ends too early"))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Fault> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn i32(&mut self) -> Result<i32, Fault> {
        self.array().map(i32::from_be_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, Fault> {
        self.array().map(i64::from_be_bytes)
    }

    pub(crate) fn lsn(&mut self) -> Result<Lsn, Fault> {
        self.array().map(u64::from_be_bytes).map(Lsn)
    }

    /// An int2 that counts something.
    pub(crate) fn count(&mut self) -> Result<usize, Fault> {
        let fault = self.fault("a negative count");
        self.array().map(i16::from_be_bytes)?.try_into().map_err(|_| fault)
    }

    /// So many bytes.
    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let (head, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or_else(|| self.fault("a length that exceeds the message"))?;
        self.rest = rest;
        Ok(head)
    }

    /// An int4 length and so many bytes.
    pub(crate) fn sized(&mut self) -> Result<&'a [u8], Fault> {
        let fault = self.fault("a negative length");
        let length = usize::try_from(self.i32()?).map_err(|_| fault)?;
        self.take(length)
    }

    /// Bytes up to a zero byte, which is read too.
    pub(crate) fn until_zero(&mut self) -> Result<&'a [u8], Fault> {
        let end = self
            .rest
            .iter()
            .position(|&byte| byte == 0)
            .ok_or_else(|| self.fault("a string without an end"))?;
        let text = self.take(end)?;
        self.u8()?;
        Ok(text)
    }

    /// A string that ends with a zero byte.
    pub(crate) fn text(&mut self) -> Result<&'a str, Fault> {
        let fault = self.fault("a string that is not UTF-8");
        std::str::from_utf8(self.until_zero()?).map_err(|_| fault)
    }

    /// Nothing may be left.
    pub(crate) fn end(&self) -> Result<(), Fault> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.fault("bytes after the message's end")) }
    }
}
