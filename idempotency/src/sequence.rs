//! Whether a record goes on where the records before it ended: decided by `ce_sequence` alone.
//!
//! A relay that delivers exactly once publishes each message once and in the order of its source, so within a partition
//! the sequences of one relay only rise. While they do, a message stands in the partition once, and the offset tells
//! whether it was applied. A record that breaks this is told, since its message may stand there twice.

use std::collections::BTreeMap;

use crate::position::Offset;

/// Relays that publish to one partition. Each is a row per lane.
const RELAYS_MAX: usize = 64;

/// The position of a message in its source (incarnation, commit LSN, ordinal) as 32 lower-case hex digits, whose order is
/// that of the source. They are compared for each record and hence not turned into a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place([u8; DIGITS]);

const DIGITS: usize = 32;

impl Place {
    pub(crate) fn read(digits: &str) -> Option<Self> {
        let lower = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        let digits = <[u8; DIGITS]>::try_from(digits.as_bytes()).ok()?;
        // All of them, whatever the first is: without a branch for each they are looked at together.
        let is_place = digits.iter().fold(true, |so_far, byte| so_far & lower(byte));
        is_place.then_some(Self(digits))
    }

    fn is_of_incarnation_of(&self, other: &Self) -> bool {
        self.0.first_chunk::<8>() == other.0.first_chunk::<8>()
    }

    /// Counts the lives of the relay's slot.
    pub(crate) fn incarnation(self) -> u32 {
        let head = self.0.first_chunk::<8>().and_then(|head| str::from_utf8(head).ok());
        head.and_then(|head| u32::from_str_radix(head, 16).ok()).unwrap_or(u32::MAX)
    }
}

/// `<relay id>:<position>` in its two parts, where the second is as long as one. The id may hold colons of its own.
pub(crate) fn parts(sequence: &str) -> Option<(&str, &str)> {
    let colon = sequence.len().checked_sub(DIGITS + 1)?;
    let (relay, rest) = sequence.split_at_checked(colon)?;
    let digits = rest.strip_prefix(':')?;
    (!relay.is_empty()).then_some((relay, digits))
}

/// The highest place of a relay in a partition, and where its record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Highest {
    pub(crate) place: Place,
    pub(crate) offset: Offset,
}

/// Why a record does not go on from those before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Break {
    /// It is not what a relay writes.
    Unreadable,
    /// The relay had to begin anew with another slot, which may have repeated messages.
    Incarnation { from: u32, to: u32 },
    /// The message, or a later one, stands in the partition already.
    Back { highest: Offset },
    /// Where a lower one belongs, a higher one stands.
    Ahead { highest: Offset },
    /// One more relay than can be kept apart.
    Relays,
}

/// How far each relay has come in a partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Sequences(BTreeMap<String, Highest>);

impl Sequences {
    /// Takes over what is stored: a row for each lane, of which the highest counts.
    pub(crate) fn know(&mut self, relay: String, stored: Highest) {
        let known = self.0.entry(relay).or_insert(stored);
        if stored.place > known.place {
            *known = stored;
        }
    }

    /// Looks at the next record of the partition. What stands at or before the highest one was looked at before it was
    /// stored, so it only has to be no higher.
    pub(crate) fn admit(&mut self, sequence: &str, offset: Offset) -> Result<(), Break> {
        let (relay, digits) = parts(sequence).ok_or(Break::Unreadable)?;
        let place = Place::read(digits).ok_or(Break::Unreadable)?;
        let Some(highest) = self.0.get_mut(relay) else {
            if self.0.len() >= RELAYS_MAX {
                return Err(Break::Relays);
            }
            self.0.insert(relay.to_owned(), Highest { place, offset });
            return Ok(());
        };
        match (offset > highest.offset, place > highest.place) {
            (false, false) => Ok(()),
            (false, true) => Err(Break::Ahead { highest: highest.offset }),
            (true, false) => Err(Break::Back { highest: highest.offset }),
            (true, true) if !place.is_of_incarnation_of(&highest.place) => {
                let (from, to) = (highest.place.incarnation(), place.incarnation());
                Err(Break::Incarnation { from, to })
            }
            (true, true) => {
                *highest = Highest { place, offset };
                Ok(())
            }
        }
    }
}

/// A row to be stored: relay, digits, offset.
pub(crate) type Reached<'a> = (&'a str, &'a str, Offset);

/// The last record of each relay among these, which stand in the order of their offsets and were admitted.
pub(crate) fn last_of_each<'a>(
    records: impl DoubleEndedIterator<Item = (Option<&'a str>, Offset)>,
) -> Vec<Reached<'a>> {
    let mut last: Vec<Reached<'a>> = Vec::with_capacity(1);
    for (sequence, offset) in records.rev() {
        if let Some((relay, digits)) = sequence.and_then(parts)
            && last.iter().all(|(known, ..)| *known != relay)
        {
            last.push((relay, digits, offset));
        }
    }
    // Several lanes never write the same row, but two owners' transactions meet in one order.
    last.sort_unstable();
    last
}

#[cfg(test)]
mod tests;
