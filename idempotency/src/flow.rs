//! When a partition is paused and when it goes on.

/// A lane's queue holds this many records; what does not fit is held by the intake.
pub(crate) const QUEUE_RECORDS_MAX: usize = 4096;
/// A lane's queue that holds this many bytes takes no further record.
pub(crate) const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Whether a partition is fetched.
///
/// The marks for pausing and for going on lie far apart: the client drops what it has fetched ahead when a
/// partition is paused, so each pause costs a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Open,
    Paused,
}

impl Flow {
    /// What follows, given the records that found no place and what the queue holds.
    pub(crate) fn after(self, held: usize, queued: usize, queued_bytes: usize) -> Self {
        match self {
            Self::Open if held > 0 => Self::Paused,
            Self::Paused
                if held == 0
                    && queued <= QUEUE_RECORDS_MAX / 2
                    && queued_bytes <= QUEUE_BYTES_MAX / 2 =>
            {
                Self::Open
            }
            same => same,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_pauses_when_a_record_finds_no_place_and_goes_on_at_half() {
        use Flow::{Open, Paused};

        assert_eq!(Open.after(0, QUEUE_RECORDS_MAX, QUEUE_BYTES_MAX), Open);
        assert_eq!(Open.after(1, QUEUE_RECORDS_MAX, 0), Paused);
        assert_eq!(Paused.after(0, QUEUE_RECORDS_MAX - 1, 0), Paused);
        assert_eq!(Paused.after(0, QUEUE_RECORDS_MAX / 2, QUEUE_BYTES_MAX), Paused);
        assert_eq!(Paused.after(1, 0, 0), Paused);
        assert_eq!(Paused.after(0, QUEUE_RECORDS_MAX / 2, QUEUE_BYTES_MAX / 2), Open);
    }
}
