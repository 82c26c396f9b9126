//! What maintenance did, and how the tables stand.

use std::time::SystemTime;

use super::DAYS_AHEAD_MIN;
use crate::message_id::Day;

/// What one call of [`maintain`](super::maintain) did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Maintained {
    /// The partitions that were made.
    pub made: Vec<String>,
    /// The partitions that were dropped.
    pub dropped: Vec<String>,
    /// The tables for which a lock was not to be had in time; the next call tries again.
    pub postponed: Vec<String>,
    /// Whether the older claims of opaque ids were dropped and a new generation was begun.
    pub opaque_turned: bool,
    /// Whether another call was dropping, so that this one left it to that.
    pub elsewhere: bool,
    /// For how many days after today there are partitions now.
    pub days_ahead: u16,
}

/// A partition of the processed-message table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionDay {
    pub(super) day: Day,
    /// The name of the table.
    pub name: String,
    /// What it takes on disk, with its index.
    pub bytes: u64,
    /// Nothing has been claimed in it since then, at the latest. In the future for a day that is not over.
    pub quiet_since: SystemTime,
    /// Whether [`maintain`](super::maintain) would drop it now.
    pub is_due: bool,
}

/// How the tables of claims stand.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// All days, oldest first.
    pub partitions: Vec<PartitionDay>,
    /// For how many days in a row after today there are partitions.
    pub days_ahead: u16,
    /// Whether the older claims of opaque ids would be dropped now.
    pub is_opaque_due: bool,
}

/// So many days that are due are what has come since the last run; more say that there was none.
const DUE_MAX: usize = 2;

impl Status {
    /// What an operator has to be told, each in one sentence; nothing if maintenance runs as it should.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.days_ahead < DAYS_AHEAD_MIN {
            faults.push(format!(
                "there are partitions of tailrace.processed_message for {} days ahead, fewer than {DAYS_AHEAD_MIN}",
                self.days_ahead
            ));
        }
        let due = self.partitions.iter().filter(|day| day.is_due).count();
        if due > DUE_MAX {
            faults.push(format!("{due} days of claims are beyond the horizon and still there"));
        }
        faults
    }
}
