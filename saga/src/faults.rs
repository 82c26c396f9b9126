//! Planted bugs, for checks that have to find them. In builds with the feature `faults` alone, and only once asked for.

use std::sync::atomic::{AtomicBool, Ordering};

static BARRIER_OFF: AtomicBool = AtomicBool::new(false);

/// From now on whatever is asked of a participant in this process is done, whatever was done before.
pub fn drop_barrier() {
    BARRIER_OFF.store(true, Ordering::Relaxed);
}

pub(crate) fn barrier_is_off() -> bool {
    BARRIER_OFF.load(Ordering::Relaxed)
}
