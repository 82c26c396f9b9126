//! What a relay has learned about messages that Kafka refuses.
//!
//! A broker refuses a batch of records as a whole, and the Kafka transaction is lost with it. So
//! the session ends, and the next one finds the guilty record: it publishes the one that looks
//! guilty in a transaction of its own, and where that was not it, smaller and smaller batches.
//! Nothing here acts; the publisher asks, and the relay's loop tells.

use std::collections::BTreeMap;

use crate::position::Place;

/// Messages that are condemned and topics that are denied, remembered at most; the oldest go
/// first, and are found again if they come again.
const REMEMBERED_MAX: usize = 10_000;

/// A batch that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The message that is named, likely the guilty one.
    pub(crate) named: Place,
    /// The last message of the batch.
    pub(crate) last: Place,
    /// Its messages.
    pub(crate) count: usize,
    /// Why, in words.
    pub(crate) why: String,
    /// The topic, where the refusal is about all that goes to it.
    pub(crate) topic: Option<String>,
}

/// What is known of refused messages, over all sessions of a relay.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trouble {
    condemned: BTreeMap<Place, String>,
    denied: BTreeMap<String, String>,
    search: Option<Search>,
}

/// The search for a guilty message among those up to `last`.
#[derive(Clone, Debug)]
struct Search {
    /// To be published in a transaction of its own.
    alone: Place,
    last: Place,
    /// Messages of a batch at most.
    count: usize,
}

impl Trouble {
    /// A batch was refused.
    pub(crate) fn learn(&mut self, refused: Refused) {
        let Refused { named, last, count, why, topic } = refused;
        if let Some(topic) = topic {
            bound(&mut self.denied);
            self.denied.insert(topic, why);
            return;
        }
        if count <= 1 {
            bound(&mut self.condemned);
            self.condemned.insert(named, why);
            self.search = None;
            return;
        }
        // The first time only the named one is set apart; when that did not help, halves are tried.
        let searched = self.search.as_ref().is_some_and(|search| named <= search.last);
        let count = if searched { count.div_ceil(2) } else { count };
        self.search = Some(Search { alone: named, last, count });
    }

    /// Why a message is not to be published, if it is not.
    pub(crate) fn verdict(&self, place: Place, topic: &str) -> Option<&str> {
        let denied = || self.denied.get(topic);
        self.condemned.get(&place).or_else(denied).map(String::as_str)
    }

    /// Whether the batch is sealed before this message joins it; `newest` is the last message in
    /// the batch, of `count`.
    pub(crate) fn cuts(&self, newest: Option<Place>, count: usize, next: Place) -> bool {
        let (Some(search), Some(newest)) = (&self.search, newest) else { return false };
        newest <= search.last
            && (next == search.alone || newest == search.alone || count >= search.count)
    }
}

fn bound<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>) {
    if map.len() >= REMEMBERED_MAX {
        map.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::{Refused, Trouble};
    use crate::lsn::Lsn;
    use crate::position::{Ordinal, Place};

    fn place(number: u32) -> Place {
        Place { commit_lsn: Lsn(100), ordinal: Ordinal(number) }
    }

    /// Sessions until all messages are published or condemned; a broker refuses the batch with a
    /// guilty one in it and names `blamed(batch)`. Answers with the condemned and the sessions.
    fn search(
        messages: u32,
        batch_max: usize,
        guilty: &[u32],
        blamed: impl Fn(&[u32]) -> u32,
    ) -> (Vec<u32>, usize) {
        let mut trouble = Trouble::default();
        let mut published: Vec<u32> = Vec::new();
        let mut condemned = Vec::new();
        for sessions in 1..10_000 {
            let mut batch: Vec<u32> = Vec::new();
            let from = published.len() + condemned.len();
            let mut seal = |batch: &mut Vec<u32>, trouble: &mut Trouble| {
                if batch.iter().any(|message| guilty.contains(message)) {
                    trouble.learn(Refused {
                        named: place(blamed(batch)),
                        last: place(*batch.last().unwrap()),
                        count: batch.len(),
                        why: "x".to_owned(),
                        topic: None,
                    });
                    return false;
                }
                published.append(batch);
                true
            };
            let mut set_aside = Vec::new();
            let mut whole = true;
            for message in u32::try_from(from).unwrap()..messages {
                let newest = batch.last().map(|last| place(*last));
                if (trouble.cuts(newest, batch.len(), place(message)) || batch.len() == batch_max)
                    && !seal(&mut batch, &mut trouble)
                {
                    whole = false;
                    break;
                }
                match trouble.verdict(place(message), "t") {
                    // The dead letter takes the place of the message in its batch.
                    Some(_) => set_aside.push(message),
                    None => batch.push(message),
                }
            }
            whole = whole && seal(&mut batch, &mut trouble);
            for message in set_aside {
                if published.len() + condemned.len() >= usize::try_from(message).unwrap() {
                    condemned.push(message);
                }
            }
            if whole {
                assert_eq!(published.len() + condemned.len(), messages as usize);
                return (condemned, sessions);
            }
        }
        panic!("the search does not end");
    }

    #[test]
    fn a_message_that_is_blamed_rightly_is_condemned_in_the_third_session() {
        let right = |batch: &[u32]| *batch.iter().find(|message| **message == 37).unwrap();

        assert_eq!(search(1_000, 100, &[37], right), (vec![37], 3));
    }

    #[test]
    fn a_message_that_others_are_blamed_for_is_found_by_halves() {
        for guilty in [0, 37, 99] {
            let (condemned, sessions) = search(1_000, 100, &[guilty], |batch| batch[0]);

            assert_eq!(condemned, [guilty]);
            assert!(sessions <= 16, "{sessions} sessions");
        }
    }

    #[test]
    fn a_denied_topic_takes_no_search() {
        let mut trouble = Trouble::default();
        trouble.learn(Refused {
            named: place(3),
            last: place(9),
            count: 10,
            why: "no right".to_owned(),
            topic: Some("secret".to_owned()),
        });

        assert_eq!(trouble.verdict(place(7), "secret"), Some("no right"));
        assert_eq!(trouble.verdict(place(7), "other"), None);
        assert!(!trouble.cuts(Some(place(2)), 1, place(3)));
    }
}
