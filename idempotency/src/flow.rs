//! When a partition's records are taken over from the client, and when they are left with it.

/// A lane that holds this many records takes no more.
pub(crate) const QUEUE_RECORDS_MAX: usize = 4096;
/// A lane that holds this many bytes takes no more records.
pub(crate) const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Whether a lane has room.
///
/// The marks for stopping and for going on lie apart, so that a lane at its limit is not looked at for each batch.
/// What is left with the client costs nothing: it stops fetching the partition when enough lies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Open,
    Full,
}

impl Flow {
    /// What follows, given what the lane holds.
    pub(crate) fn after(self, records: usize, bytes: usize) -> Self {
        match self {
            Self::Open if records >= QUEUE_RECORDS_MAX || bytes >= QUEUE_BYTES_MAX => Self::Full,
            Self::Full if has_drained(records, bytes) => Self::Open,
            same => same,
        }
    }
}

/// Whether a lane that was full goes on.
pub(crate) fn has_drained(records: usize, bytes: usize) -> bool {
    records <= QUEUE_RECORDS_MAX / 2 && bytes <= QUEUE_BYTES_MAX / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_full_at_its_records_or_bytes_and_goes_on_at_half() {
        use Flow::{Full, Open};

        assert_eq!(Open.after(QUEUE_RECORDS_MAX - 1, QUEUE_BYTES_MAX - 1), Open);
        assert_eq!(Open.after(QUEUE_RECORDS_MAX, 0), Full);
        assert_eq!(Open.after(0, QUEUE_BYTES_MAX), Full);
        assert_eq!(Full.after(QUEUE_RECORDS_MAX - 1, 0), Full);
        assert_eq!(Full.after(QUEUE_RECORDS_MAX / 2, QUEUE_BYTES_MAX), Full);
        assert_eq!(Full.after(QUEUE_RECORDS_MAX / 2, QUEUE_BYTES_MAX / 2), Open);
    }
}
