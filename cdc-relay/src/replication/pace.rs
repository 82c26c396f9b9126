//! How many bytes are worth a wake-up.

use std::time::{Duration, Instant};

/// What arrives in this time is taken in one wake-up: a delay that nobody sees in the latency of
/// a message, and at full speed thousands of messages.
const WINDOW: Duration = Duration::from_millis(1);

/// How long a wake-up may be put off when the bytes do not come: twice the time in which they
/// were expected.
const WAIT_MAX: Duration = Duration::from_millis(2);

/// The most bytes to wait for. Postgres hands over 8 kB at a time at most, and beyond 64 KiB
/// nothing is gained (measured), while the walsender would run into a full socket.
const MARK_MAX: usize = 64 * 1024;

/// Fewer bytes than this in a window, and each is handed over as it comes.
const LEAVE_BYTES: usize = 4 * 1024;

/// As many bytes as this in a window, and they are waited for. Twice the bound for leaving, so
/// that a rate between the two changes nothing.
const ENTER_BYTES: usize = 8 * 1024;

/// Says for how many bytes the next wake-up should wait, by how fast they come.
///
/// Postgres flushes its socket after each message, and each time that this wakes a sleeping
/// reader the *walsender* pays for it, about 6 µs, which is more than the message itself costs it.
/// So while much arrives, the reader asks to be woken for a pile of bytes; otherwise for the
/// first one, and then nothing is ever late.
///
/// How *old* the transactions are decides nothing, although it tells a backlog at once: a mark
/// that stays high through a backlog has the receiver open its window so far that the sender's
/// kernel sends each message as a packet of its own in place of joining those that wait. On a
/// busy machine that cost the walsender 12 µs per transaction in place of 7.
#[derive(Debug)]
pub(super) struct Pace {
    mark: usize,
    /// The wait for a pile was given up: what comes next decides whether there are more.
    late: bool,
    /// What has come since the window began.
    bytes: usize,
    since: Instant,
    read_at: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Pace { mark: 1, late: false, bytes: 0, since: now, read_at: now }
    }

    /// For how many bytes the next wake-up should wait: 1 when each is news.
    pub(super) fn mark(&self) -> usize {
        if self.late { 1 } else { self.mark }
    }

    /// When the mark is no longer worth waiting for; `None` when nothing is put off.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (self.mark() > 1).then(|| self.read_at + WAIT_MAX)
    }

    /// So many bytes were read.
    pub(super) fn read(&mut self, bytes: usize, now: Instant) {
        self.bytes += bytes;
        self.read_at = now;
        let elapsed = now.saturating_duration_since(self.since);
        if std::mem::take(&mut self.late) {
            // A sender that was held up leaves a pile all the same, only a later one; one that
            // has no more to send leaves little.
            if bytes < LEAVE_BYTES {
                self.mark = 1;
            }
        } else if elapsed >= WINDOW {
            self.mark = self.mark_for(elapsed);
        } else {
            return;
        }
        self.bytes = 0;
        self.since = now;
    }

    /// The deadline has passed without the bytes.
    pub(super) fn late(&mut self) {
        self.late = true;
    }

    fn mark_for(&self, elapsed: Duration) -> usize {
        let in_a_window = self.bytes as u128 * WINDOW.as_nanos() / elapsed.as_nanos();
        let in_a_window = usize::try_from(in_a_window).unwrap_or(usize::MAX);
        let enough = if self.mark > 1 { LEAVE_BYTES } else { ENTER_BYTES };
        // The power of two below, so that a rate that wavers does not change the mark each time.
        match in_a_window.checked_ilog2() {
            Some(power) if in_a_window >= enough => (1 << power).min(MARK_MAX),
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Pace, WAIT_MAX};

    /// Reads of so many bytes each so many microseconds after the one before; the mark after each.
    fn check(reads: &[(usize, u64)], expected: &[usize]) {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let marks: Vec<usize> = reads
            .iter()
            .map(|&(bytes, micros)| {
                now += Duration::from_micros(micros);
                pace.read(bytes, now);
                assert_eq!(pace.deadline(), (pace.mark() > 1).then(|| now + WAIT_MAX));
                pace.mark()
            })
            .collect();
        assert_eq!(marks, expected, "{reads:?}");
    }

    #[test]
    fn a_message_now_and_then_is_never_put_off() {
        check(&[(450, 1_000); 4], &[1; 4]);
        check(&[(300, 999_990), (60, 5), (60, 5), (300, 1_000_000)], &[1; 4]);
        check(&[(60_000, 60_000_000), (60_000, 60_000_000)], &[1; 2]);
    }

    #[test]
    fn a_short_burst_is_not_a_backlog() {
        check(&[(450, 10), (450, 10), (450, 10), (450, 10_000)], &[1; 4]);
    }

    #[test]
    fn much_in_a_window_is_waited_for_up_to_a_bound() {
        check(&[(30_000, 1_000)], &[16 * 1024]);
        check(&[(40_000, 500), (40_000, 500)], &[1, 64 * 1024]);
        check(&[(65_536, 1_000), (65_536, 200), (2_000_000, 900)], &[65_536; 3]);
        check(&[(1_000_000, 10_000)], &[64 * 1024]);
    }

    #[test]
    fn a_rate_between_the_bounds_changes_nothing() {
        check(&[(8_191, 1_000), (8_192, 1_000)], &[1, 8_192]);
        check(&[(8_192, 1_000), (4_096, 1_000), (6_000, 1_000)], &[8_192, 4_096, 4_096]);
        check(&[(8_192, 1_000), (4_095, 1_000), (4_096, 1_000)], &[8_192, 1, 1]);
    }

    /// The mark after a wait that was given up and then brought so many bytes.
    fn after_late(bytes: usize) -> usize {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start + Duration::from_millis(1);
        pace.read(40_000, now);
        assert_eq!(pace.deadline(), Some(now + WAIT_MAX));

        now += WAIT_MAX;
        pace.late();
        assert_eq!((pace.mark(), pace.deadline()), (1, None));
        pace.read(bytes, now);
        pace.mark()
    }

    #[test]
    fn a_stream_that_dries_up_is_waited_for_once() {
        assert_eq!(after_late(0), 1);
        assert_eq!(after_late(4_095), 1);
    }

    #[test]
    fn a_sender_that_was_held_up_is_still_one_in_full_flow() {
        assert_eq!(after_late(4_096), 32 * 1024);
    }
}
