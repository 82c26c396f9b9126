//! The only unsafe code of the crate: calls into C libraries that no safe wrapper offers as they
//! are needed. Each is a few lines with its reason, and is safe to call.

pub(crate) mod kafka;
pub(crate) mod process;
pub(crate) mod socket;
