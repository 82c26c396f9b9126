//! What is said again and again is told at first, and then now and then, with how often it was said.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A Kafka that is away would else be told of about once a second, by each broker, for as long as that lasts.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// Things that are told apart. Those beyond share a place: what the client can say is its own matter, and is bounded here.
const THINGS_MAX: usize = 64;

/// What was said of late, by what it is about.
#[derive(Debug, Default)]
pub(crate) struct Repeated(Mutex<BTreeMap<String, Said>>);

#[derive(Debug)]
struct Said {
    told_at: Instant,
    kept_back: u64,
}

impl Repeated {
    /// Whether it is told now; then, how often it was kept back since the last time.
    pub(crate) fn say(&self, about: &str, now: Instant) -> Option<u64> {
        let mut things = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = things.contains_key(about);
        if !is_known && things.len() >= THINGS_MAX {
            // Or what names hosts and members would fill it in time, and whatever is new share a place for good.
            things.retain(|_, said| now.saturating_duration_since(said.told_at) < TELL_EVERY);
        }
        let about = match is_known || things.len() < THINGS_MAX {
            true => about,
            false => "",
        };
        match things.get_mut(about) {
            Some(said) if now.saturating_duration_since(said.told_at) < TELL_EVERY => {
                said.kept_back += 1;
                None
            }
            Some(said) => {
                said.told_at = now;
                Some(std::mem::take(&mut said.kept_back))
            }
            None => {
                things.insert(about.to_owned(), Said { told_at: now, kept_back: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_told_at_first_and_then_every_thirty_seconds_with_how_often_it_was_said() {
        let (repeated, began) = (Repeated::default(), Instant::now());
        let told = |about: &str| -> Vec<(u64, u64)> {
            let at = |second: u64| (second, began + Duration::from_secs(second));
            let seconds = (0..90).map(at);
            seconds.filter_map(|(second, now)| Some((second, repeated.say(about, now)?))).collect()
        };

        assert_eq!(told("all brokers are down"), [(0, 0), (30, 29), (60, 29)]);
        assert_eq!(told("a host name does not resolve"), [(0, 0), (30, 29), (60, 29)]);
        // After a time without it the next one is told at once.
        let later = began + TELL_EVERY * 10;
        assert_eq!(repeated.say("all brokers are down", later), Some(29));
    }

    #[test]
    fn what_is_kept_of_them_is_bounded() {
        let (repeated, now) = (Repeated::default(), Instant::now());

        let told = (0..THINGS_MAX * 10).filter(|n| repeated.say(&n.to_string(), now).is_some());

        assert_eq!(told.count(), THINGS_MAX + 1);
        // Those are over by then, however often they were said.
        assert_eq!(repeated.say("0", now), None);
        let later = now + TELL_EVERY;
        assert_eq!(repeated.say("a broker refuses the password", later), Some(0));
        assert_eq!(repeated.say("a certificate has expired", later), Some(0));
    }
}
