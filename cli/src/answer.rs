//! What a command answers, on standard output.

use std::io::{ErrorKind, Write as _};

use crate::error::{Error, Kind};

/// The exit code of a command that only told what it would do.
pub(crate) const ONLY_TOLD: u8 = 8;

/// What a command has to say, and the exit code.
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) code: u8,
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Answer { text, code: 0 }
    }
}

/// Writes the answer. A reader that has seen enough (`| head`) is no error.
pub(crate) fn print(answer: &str) -> Result<(), Error> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(answer.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let text = "it is done, but the answer can not be written";
            Err(Error::new(Kind::Refused, text).caused_by(error))
        }
        _ => Ok(()),
    }
}
