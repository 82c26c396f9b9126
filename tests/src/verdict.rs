//! Whether Kafka holds what Postgres has committed: each once, in order, as the contract says.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use rustix::process::Signal;
use uuid::Uuid;

use crate::process::Process;
use crate::proof::Report;
use crate::reader::Seen;
use crate::site::Site;
use crate::writers::{Expected, Written};

/// A relay that is told to stop has stopped by then.
pub(crate) const STOP_MAX: Duration = Duration::from_secs(15);

/// Faults shown of each kind.
const SHOWN_MAX: usize = 5;

/// What the comparison of Postgres and Kafka came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Messages that Postgres has committed.
    pub committed: usize,
    /// Records that a read_committed reader finds.
    pub published: usize,
    /// Committed, but not in Kafka.
    pub lost: usize,
    /// In Kafka more than once.
    pub doubled: usize,
    /// In Kafka, but never committed.
    pub invented: usize,
    /// Records of a key that do not stand in the order of the commits.
    pub disordered: usize,
    /// Records whose key, value or headers are not what the wire contract says.
    pub malformed: usize,
    /// The first of each, in words.
    pub faults: Vec<String>,
}

impl Verdict {
    /// Whether everything is as promised.
    pub fn holds(&self) -> bool {
        self.faults.is_empty() && self.committed == self.published
    }

    /// Compares what was committed with what was seen; `seen` holds the records of each partition
    /// in the order of their offsets.
    pub fn judge(
        relay_id: &str,
        expected: &BTreeMap<Uuid, Expected>,
        rolled_back: &[Uuid],
        seen: &[Seen],
    ) -> Self {
        let mut verdict =
            Verdict { committed: expected.len(), published: seen.len(), ..Verdict::default() };
        let rolled_back: BTreeSet<&Uuid> = rolled_back.iter().collect();
        let mut found = BTreeSet::new();
        let mut keys: HashMap<(&str, &str), Last<'_>> = HashMap::new();
        for record in seen {
            let Ok(id) = record.header("ce_id").parse::<Uuid>() else {
                verdict.fault(|v| &mut v.malformed, || format!("no ce_id: {record:?}"));
                continue;
            };
            let Some(message) = expected.get(&id) else {
                let how = if rolled_back.contains(&id) { "rolled back" } else { "never written" };
                verdict.fault(|v| &mut v.invented, || format!("{id} was {how}: {record:?}"));
                continue;
            };
            if !found.insert(id) {
                verdict.fault(|v| &mut v.doubled, || format!("{id} is there again: {record:?}"));
                continue;
            }
            if let Some(what) = deviation(relay_id, message, record) {
                verdict.fault(|v| &mut v.malformed, || format!("{what}: {record:?}"));
            }
            if let Some(key) = &message.key {
                let last = keys.entry((&message.topic, key)).or_insert(Last {
                    place: 0,
                    sequence: "",
                    partition: record.partition,
                });
                let sequence = record.header("ce_sequence");
                // Places are counted without gaps, so a hole is seen too.
                let follows = message.place == last.place + 1
                    && sequence > last.sequence
                    && record.partition == last.partition;
                if !follows {
                    let after = last.place;
                    let disorder = || format!("{} comes after {after}: {record:?}", message.place);
                    verdict.fault(|v| &mut v.disordered, disorder);
                }
                *last = Last { place: message.place, sequence, partition: record.partition };
            }
        }
        for (id, message) in expected {
            if !found.contains(id) {
                verdict.fault(|v| &mut v.lost, || format!("lost: {message:?}"));
            }
        }
        verdict
    }

    /// What was found here and elsewhere.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.committed += other.committed;
        self.published += other.published;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.invented += other.invented;
        self.disordered += other.disordered;
        self.malformed += other.malformed;
        self.faults.extend(other.faults);
        self
    }

    /// Adds what was found to a report.
    pub fn tell(self, report: &mut Report) {
        report.figure("messages committed", self.committed);
        report.figure("records published", self.published);
        report.figure("lost", self.lost);
        report.figure("doubled", self.doubled);
        report.figure("never committed", self.invented);
        report.figure("out of order", self.disordered);
        report.figure("not as the wire contract says", self.malformed);
        if !self.holds() && self.faults.is_empty() {
            report.faults.push("committed and published differ".to_owned());
        }
        report.faults.extend(self.faults);
    }

    fn fault(&mut self, count: fn(&mut Self) -> &mut usize, text: impl FnOnce() -> String) {
        let count = count(self);
        *count += 1;
        if *count <= SHOWN_MAX {
            self.faults.push(text());
        }
    }
}

impl Site {
    /// Stops the last relay and judges what a reader finds then. For a time when nobody writes.
    ///
    /// # Panics
    ///
    /// When the relay does not stop cleanly, or its slot is flushed too far.
    pub async fn stop_and_judge(&self, relay: &mut Process, written: &Written) -> Verdict {
        relay.signal(Signal::TERM);
        let status = relay.ends(STOP_MAX).await;
        assert!(status.success(), "{status}:\n{}", relay.log());
        self.slot_is_not_above_the_checkpoint().await;
        let expected = self.expected().await;
        let seen = self.read_to_end().await;
        Verdict::judge(&self.relay_id, &expected, &written.rolled_back, &seen)
    }
}

struct Last<'a> {
    place: i64,
    sequence: &'a str,
    partition: i32,
}

/// What of a record is not as the wire contract says.
fn deviation(relay_id: &str, message: &Expected, record: &Seen) -> Option<&'static str> {
    if record.topic != message.topic {
        return Some("another topic");
    }
    if record.key.as_deref() != message.key.as_ref().map(String::as_bytes) {
        return Some("another key");
    }
    if record.value.as_deref() != Some(message.payload.as_bytes()) {
        return Some("another value");
    }
    let sequence = record.header("ce_sequence");
    let Some((relay, position)) = sequence.rsplit_once(':') else {
        return Some("no sequence");
    };
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if relay != relay_id || position.len() != 32 || !position.bytes().all(is_hex) {
        return Some("a malformed sequence");
    }
    let id = message.id.to_string();
    let place = message.place.to_string();
    let subject = message.key.as_ref().map(|key| format!("subject of {key}"));
    let mut headers = vec![
        ("ce_specversion", "1.0"),
        ("ce_id", &id),
        ("ce_type", "thing.happened.v1"),
        ("ce_source", "/writers"),
        ("content-type", "application/json"),
    ];
    headers.extend(subject.as_deref().map(|subject| ("ce_subject", subject)));
    headers.extend([("ce_sequence", sequence), ("place", &place)]);
    let same = record.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    (!same.eq(headers)).then_some("other headers")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;

    use super::Verdict;
    use crate::reader::Seen;
    use crate::writers::Expected;

    fn message(at: u8, place: i64) -> Expected {
        Expected {
            id: Uuid::from_bytes([at; 16]),
            topic: "t".to_owned(),
            key: Some("k".to_owned()),
            place,
            payload: "{}".to_owned(),
        }
    }

    fn record(message: &Expected, position: u8) -> Seen {
        let headers = [
            ("ce_specversion", "1.0".to_owned()),
            ("ce_id", message.id.to_string()),
            ("ce_type", "thing.happened.v1".to_owned()),
            ("ce_source", "/writers".to_owned()),
            ("content-type", "application/json".to_owned()),
            ("ce_subject", "subject of k".to_owned()),
            ("ce_sequence", format!("r:{position:032x}")),
            ("place", message.place.to_string()),
        ];
        Seen {
            topic: "t".to_owned(),
            partition: 0,
            offset: i64::from(position),
            key: Some(b"k".to_vec()),
            value: Some(b"{}".to_vec()),
            headers: headers.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        }
    }

    #[test]
    fn a_planted_fault_of_each_kind_is_found() {
        let messages = [message(1, 1), message(2, 2), message(3, 3)];
        let expected: BTreeMap<_, _> = messages.iter().map(|m| (m.id, m.clone())).collect();
        let all: Vec<Seen> = messages.iter().zip(1..).map(|(m, at)| record(m, at)).collect();
        let judge = |seen: &[Seen]| Verdict::judge("r", &expected, &[], seen);
        let with = |change: &dyn Fn(&mut Vec<Seen>)| {
            let mut seen = all.clone();
            change(&mut seen);
            let verdict = judge(&seen);
            assert!(!verdict.holds());
            verdict
        };

        assert!(judge(&all).holds(), "{:?}", judge(&all));
        assert_eq!(with(&|seen| drop(seen.pop())).lost, 1);
        assert_eq!(with(&|seen| seen.push(seen[0].clone())).doubled, 1);
        assert_eq!(with(&|seen| seen.push(record(&message(9, 4), 4))).invented, 1);
        assert!(with(&|seen| seen.swap(0, 1)).disordered > 0);
        assert!(with(&|seen| seen[2].partition = 1).disordered > 0);
        assert_eq!(with(&|seen| seen[1].value = None).malformed, 1);
        assert_eq!(with(&|seen| seen[1].headers.swap(0, 1)).malformed, 1);
        let of_another = Verdict::judge("other", &expected, &[], &all);
        assert_eq!(of_another.malformed, 3);
    }
}
