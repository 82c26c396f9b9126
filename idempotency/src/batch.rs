//! Which records share a transaction: decided without a clock or a database.

use crate::position::Offset;
use crate::record::Delivery;

/// A batch that holds this many bytes takes no further record.
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Records of one lane in the order of their offsets, gathered for one transaction.
#[derive(Debug)]
pub(crate) struct Batch {
    records_max: usize,
    next_offset: Option<Offset>,
    deliveries: Vec<Delivery>,
    bytes: usize,
    behind: u64,
}

impl Batch {
    /// An empty batch of a lane that goes on at `next_offset`.
    pub(crate) fn new(next_offset: Option<Offset>, records_max: usize) -> Self {
        Self { records_max, next_offset, deliveries: Vec::new(), bytes: 0, behind: 0 }
    }

    /// Takes a record, or only counts it when progress has passed it already.
    pub(crate) fn push(&mut self, delivery: Delivery) {
        let offset = delivery.position.offset;
        if self.next_offset.is_some_and(|next| offset < next) {
            self.behind += 1;
            return;
        }
        self.next_offset = Some(offset.next());
        self.bytes += delivery.bytes();
        self.deliveries.push(delivery);
    }

    /// Moves on past what was not this lane's.
    pub(crate) fn pass(&mut self, offset: Offset) {
        self.next_offset = self.next_offset.max(Some(offset));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// How many more records fit.
    pub(crate) fn room(&self) -> usize {
        if self.bytes >= BATCH_BYTES_MAX {
            return 0;
        }
        self.records_max.saturating_sub(self.deliveries.len())
    }

    /// The records, how many were passed over as redelivered, and where the lane goes on afterwards.
    pub(crate) fn into_parts(self) -> (Vec<Delivery>, u64, Option<Offset>) {
        (self.deliveries, self.behind, self.next_offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::delivery;

    fn check(next: Option<i64>, offsets: &[i64], taken: &[i64], behind: u64, goes_on: Option<i64>) {
        let mut batch = Batch::new(next.map(Offset::new), 500);

        for offset in offsets {
            batch.push(delivery(*offset));
        }

        let (deliveries, passed, next) = batch.into_parts();
        let got: Vec<_> = deliveries.iter().map(|d| d.position.offset.get()).collect();
        assert_eq!((got.as_slice(), passed, next.map(Offset::get)), (taken, behind, goes_on));
    }

    #[test]
    fn progress_follows_the_last_delivered_record_over_gaps() {
        check(None, &[0, 1, 2], &[0, 1, 2], 0, Some(3));
        check(Some(5), &[5, 7, 40], &[5, 7, 40], 0, Some(41));
    }

    #[test]
    fn what_lies_below_progress_is_passed_over() {
        check(Some(5), &[3, 4, 5, 6], &[5, 6], 2, Some(7));
        check(Some(5), &[3, 4], &[], 2, Some(5));
        check(None, &[0, 1, 0, 1, 2], &[0, 1, 2], 2, Some(3));
    }

    #[test]
    fn a_lane_without_records_moves_on_past_those_of_others() {
        let mut batch = Batch::new(Some(Offset::new(5)), 500);

        batch.push(delivery(7));
        batch.pass(Offset::new(3));
        assert_eq!(batch.next_offset, Some(Offset::new(8)));
        batch.pass(Offset::new(40));

        assert_eq!(batch.into_parts().2, Some(Offset::new(40)));
    }

    #[test]
    fn a_batch_is_full_at_its_record_count_and_at_its_bytes() {
        let mut few = Batch::new(None, 2);
        few.push(delivery(0));
        let mut large = Batch::new(None, 500);
        large.push(Delivery { payload: Some(vec![0; BATCH_BYTES_MAX]), ..delivery(0) });

        assert_eq!(few.room(), 1);
        assert!(!few.is_full());
        assert!(large.is_full());
    }
}
