//! Where a record stands in Kafka.

use std::fmt;
use std::sync::Arc;

/// The place of a record within its partition.
///
/// Offsets rise but have gaps: transaction markers and compaction take numbers away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(i64);

impl Offset {
    /// The offset with this number.
    pub fn new(number: i64) -> Self {
        Self(number)
    }

    /// The number that Kafka and `tailrace.consumer_progress` hold.
    pub fn get(self) -> i64 {
        self.0
    }

    /// The offset where reading goes on after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Topic, partition and offset of one record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Position {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition within the topic.
    pub partition: i32,
    /// The offset within the partition.
    pub offset: Offset,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "topic {} partition {} offset {}", self.topic, self.partition, self.offset)
    }
}
