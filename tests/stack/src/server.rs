//! What can be done to a server of ours, however it runs.

use std::fmt;

use crate::error::Error;

/// A server that can be broken. Each of its methods waits for what it does.
pub(crate) trait Server: fmt::Debug + Send + Sync {
    fn kill(&self) -> Result<(), Error>;
    fn stop(&self) -> Result<(), Error>;
    fn pause(&self) -> Result<(), Error>;
    fn resume(&self) -> Result<(), Error>;
    /// Stops it if it runs, and starts it. A Postgres may still be recovering afterwards.
    fn restart(&self) -> Result<(), Error>;
}
