//! Planted bugs, for checks that have to find them. In builds with the feature `faults` alone, and only once asked for.

use std::sync::atomic::{AtomicBool, Ordering};

static BY_MESSAGE_LSN: AtomicBool = AtomicBool::new(false);

/// From now on a relay takes what was written before the checkpoint for published, though it committed after it.
pub fn resume_by_message_lsn() {
    BY_MESSAGE_LSN.store(true, Ordering::Relaxed);
}

pub(crate) fn resumes_by_message_lsn() -> bool {
    BY_MESSAGE_LSN.load(Ordering::Relaxed)
}
