//! Planted bugs, for checks that have to find them. In builds with the feature `faults` alone, and only once asked for.

use std::sync::atomic::{AtomicBool, Ordering};

static CLAIMS_IGNORED: AtomicBool = AtomicBool::new(false);

/// From now on every message counts as new in this process.
pub fn ignore_claims() {
    CLAIMS_IGNORED.store(true, Ordering::Relaxed);
}

pub(crate) fn claims_are_ignored() -> bool {
    CLAIMS_IGNORED.load(Ordering::Relaxed)
}
