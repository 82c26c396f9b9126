//! Which lane applies a record, and from where on: decided without a runtime, a clock or a database.

use crate::position::Offset;

/// The most lanes of a partition. Each is a connection of the pool.
pub(crate) const LANES_LIMIT: u16 = 64;

/// How many lanes a partition has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lanes(u16);

impl Lanes {
    pub(crate) fn new(count: u16) -> Self {
        Self(count.clamp(1, LANES_LIMIT))
    }

    pub(crate) fn count(self) -> usize {
        usize::from(self.0)
    }

    /// The lane of a record. Records of one key always share one. Those without a key have no order among
    /// themselves that anybody could rely on, and take turns.
    pub(crate) fn of(self, key: Option<&[u8]>, offset: Offset) -> usize {
        Place::new(key, offset).among(self.count())
    }
}

/// What tells the lane of a record, whatever their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(u64);

impl Place {
    pub(crate) fn new(key: Option<&[u8]>, offset: Offset) -> Self {
        match key {
            Some(key) => Self(u64::from(mixed(murmur2(key)))),
            None => Self(offset.get().unsigned_abs()),
        }
    }

    pub(crate) fn among(self, lanes: usize) -> usize {
        let lanes = lanes.max(1) as u64;
        usize::try_from(self.0 % lanes).unwrap_or(0)
    }
}

/// The hash by which Kafka's Java client picks a partition (`Utils.murmur2`).
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let mut hash = SEED ^ u32::try_from(data.len()).unwrap_or(u32::MAX);
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        let mut tail = [0; 4];
        for (to, from) in tail.iter_mut().zip(rest) {
            *to = *from;
        }
        hash = (hash ^ u32::from_le_bytes(tail)).wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// All keys of a partition leave the same rest at the division of their hash by the number of partitions. If
/// lanes were the rest of the same hash, four lanes of a topic of four partitions would be one that works and
/// three that idle; so its bits are mixed once more (the last step of MurmurHash3).
fn mixed(hash: u32) -> u32 {
    let hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    let hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

/// How far each lane had come while there were another number of them. Index is the lane; 0 means nothing.
pub(crate) type Reached = Vec<i64>;

/// What the database holds of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Stored {
    pub(crate) epoch: i64,
    /// Index is the lane.
    pub(crate) next_offsets: Vec<Option<Offset>>,
    pub(crate) former: Vec<Reached>,
}

/// Where a partition goes on under a new owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) epoch: i64,
    /// Index is the lane, as many as there are from now on.
    pub(crate) next_offsets: Vec<Option<Offset>>,
    pub(crate) former: Vec<Reached>,
}

impl Plan {
    /// The lowest offset that any lane still needs; none where one begins at the beginning.
    pub(crate) fn resumes_at(&self) -> Option<Offset> {
        lowest(&self.next_offsets)
    }
}

/// The epoch rises over all lanes at once, also over those that are gone: a lane that comes back later must not
/// meet an owner from before.
///
/// With another number of lanes a key may change its lane, and what its new lane has reached says nothing about
/// it. All lanes then go on at the lowest offset, and what the former lanes had reached is kept until the last of
/// it is passed: it tells which records between are applied already.
pub(crate) fn plan(stored: &Stored, lanes: Lanes, start: Option<Offset>) -> Plan {
    let epoch = stored.epoch + 1;
    if stored.next_offsets.iter().all(Option::is_none) {
        return Plan { epoch, next_offsets: vec![start; lanes.count()], former: Vec::new() };
    }
    let low = lowest(&stored.next_offsets);
    let mut former = stored.former.clone();
    let mut next_offsets = stored.next_offsets.clone();
    if next_offsets.len() != lanes.count() {
        let reached = |next: &Option<Offset>| next.map_or(0, Offset::get);
        former.push(stored.next_offsets.iter().map(reached).collect());
        next_offsets = vec![low; lanes.count()];
    }
    let passed = low.map_or(0, Offset::get);
    former.retain(|reached| reached.iter().any(|offset| *offset > passed));
    Plan { epoch, next_offsets, former }
}

fn lowest(offsets: &[Option<Offset>]) -> Option<Offset> {
    // None sorts before all offsets, as the beginning should.
    offsets.iter().copied().min().flatten()
}

/// Records that were applied while there was another number of lanes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct AppliedBefore {
    former: Vec<Reached>,
    end: i64,
}

impl AppliedBefore {
    pub(crate) fn new(former: Vec<Reached>) -> Self {
        let end = former.iter().flatten().copied().max().unwrap_or(0);
        Self { former, end }
    }

    pub(crate) fn holds(&self, key: Option<&[u8]>, offset: Offset) -> bool {
        if offset.get() >= self.end {
            return false;
        }
        let place = Place::new(key, offset);
        self.former.iter().any(|reached| {
            reached.get(place.among(reached.len())).is_some_and(|next| offset.get() < *next)
        })
    }
}

#[cfg(test)]
mod tests;
