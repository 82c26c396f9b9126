//! The brokers are asked every few seconds what they know of the topics.
//!
//! Nothing else tells that they have fallen silent (a client waits and tries again by itself), that a topic is gone, or
//! that it is another one by now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;
use rdkafka::types::RDKafkaErrorCode;

use crate::assignment::Group;
use crate::beginning::BROKER_WAIT_MAX;
use crate::error::Error;
use crate::native::{Answered, Described, TopicIds};

/// The time between an answer and the next question.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// A broker that has just started may not know a topic yet: it is gone where so many answers in a row say so.
const MISSING_TIMES: u32 = 2;

/// Asks again and again, and knows what follows.
pub(crate) struct Asking {
    asked: Option<(Instant, TopicIds)>,
    next_at: Instant,
    known: Known,
}

/// What follows from the answers.
#[derive(Debug, Default)]
struct Known {
    /// When the first of the questions was put that have no answer.
    silent_since: Option<Instant>,
    /// How many answers in a row have not had them.
    missing: BTreeMap<String, u32>,
}

impl Asking {
    pub(crate) fn new(now: Instant) -> Self {
        Self { asked: None, next_at: now + ASK_EVERY, known: Known::default() }
    }

    /// A client that is closed must not be waited for.
    pub(crate) fn forget(&mut self) {
        self.asked = None;
    }

    /// When the first of the questions was put that have no answer; none while they have.
    pub(crate) fn silent_since(&self) -> Option<Instant> {
        self.known.silent_since
    }

    /// Topics that are subscribed and do not exist.
    pub(crate) fn gone(&self) -> Vec<String> {
        self.known.gone()
    }

    /// Asks where it is time to, and answers with what has been answered since.
    pub(crate) fn turn(
        &mut self,
        client: &Arc<BaseConsumer<Group>>,
        topics: &[Arc<str>],
        now: Instant,
    ) -> Result<Option<BTreeMap<String, Described>>, Error> {
        let Some((at, asked)) = &self.asked else {
            if now >= self.next_at {
                self.asked = Some((now, TopicIds::ask(client, topics, BROKER_WAIT_MAX)?));
            }
            return Ok(None);
        };
        let (at, answer) = (*at, asked.answer(Duration::ZERO));
        if answer.is_some() {
            self.asked = None;
            self.next_at = now + ASK_EVERY;
        }
        Ok(self.known.heard(at, answer, now))
    }
}

impl Known {
    fn gone(&self) -> Vec<String> {
        let gone = self.missing.iter().filter(|(_, times)| **times >= MISSING_TIMES);
        gone.map(|(topic, _)| topic.clone()).collect()
    }

    /// A question that was put then has this answer, or none yet.
    fn heard(
        &mut self,
        at: Instant,
        answer: Option<Result<Answered, RDKafkaErrorCode>>,
        now: Instant,
    ) -> Option<BTreeMap<String, Described>> {
        match answer {
            None if now.saturating_duration_since(at) < BROKER_WAIT_MAX => None,
            None => self.silent(at),
            // They say so, and cannot say more.
            Some(Err(RDKafkaErrorCode::UnsupportedFeature)) => self.answered(Answered::default()),
            Some(Err(code)) => {
                tracing::debug!(%code, "kafka does not say what it knows of the topics");
                self.silent(at)
            }
            Some(Ok(answered)) => self.answered(answered),
        }
    }

    fn silent<T>(&mut self, at: Instant) -> Option<T> {
        if self.silent_since.is_none() {
            self.silent_since = Some(at);
            tracing::error!("kafka does not answer: nothing arrives until it does");
        }
        None
    }

    fn answered(&mut self, answered: Answered) -> Option<BTreeMap<String, Described>> {
        if let Some(since) = self.silent_since.take() {
            tracing::info!(silent_ms = since.elapsed().as_millis(), "kafka answers again");
        }
        let Answered { topics, missing } = answered;
        self.missing.retain(|topic, _| missing.contains(topic));
        for topic in missing {
            let times = self.missing.entry(topic.clone()).or_default();
            *times = times.saturating_add(1);
            if *times == MISSING_TIMES {
                tracing::error!(topic, "a topic that is subscribed does not exist any more");
            }
        }
        Some(topics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Answer = Option<Result<Answered, RDKafkaErrorCode>>;

    fn without(topic: &str) -> Answer {
        Some(Ok(Answered { missing: vec![topic.to_owned()], ..Answered::default() }))
    }

    /// Questions are put at these seconds and answered, or not yet, at those.
    fn known(heard: impl IntoIterator<Item = (u64, u64, Answer)>) -> (Option<u64>, Vec<String>) {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut known = Known::default();
        for (asked, now, answer) in heard {
            known.heard(at(asked), answer, at(now));
        }
        (known.silent_since.map(|since| (since - began).as_secs()), known.gone())
    }

    #[test]
    fn brokers_are_silent_from_the_first_question_without_an_answer_until_one_has_it() {
        let (late, failed) = (|| None, || Some(Err(RDKafkaErrorCode::OperationTimedOut)));
        let well = || Some(Ok(Answered::default()));
        let since = |heard: Vec<(u64, u64, Answer)>| known(heard).0;

        assert_eq!(since(vec![(5, 6, late()), (5, 14, late())]), None);
        assert_eq!(since(vec![(5, 15, late())]), Some(5));
        assert_eq!(since(vec![(5, 15, late()), (5, 15, failed()), (20, 21, late())]), Some(5));
        assert_eq!(since(vec![(5, 9, failed()), (14, 24, failed())]), Some(5));
        assert_eq!(since(vec![(5, 15, failed()), (20, 21, well())]), None);
        // What is late only since nobody looked is an answer.
        assert_eq!(since(vec![(5, 60, well())]), None);
        let unsupported = Some(Err(RDKafkaErrorCode::UnsupportedFeature));
        assert_eq!(since(vec![(5, 15, failed()), (20, 21, unsupported)]), None);
    }

    #[test]
    fn a_topic_is_gone_where_two_answers_in_a_row_have_not_had_it() {
        let gone = |answers: Vec<Answer>| known(answers.into_iter().map(|it| (5, 6, it))).1;
        let silent = || Some(Err(RDKafkaErrorCode::OperationTimedOut));

        assert_eq!(gone(vec![without("a")]), [""; 0]);
        assert_eq!(gone(vec![without("a"), without("a")]), ["a"]);
        assert_eq!(gone(vec![without("a"), silent(), without("a")]), ["a"]);
        assert_eq!(gone(vec![without("a"), without("b")]), [""; 0]);
        assert_eq!(gone(vec![without("a"), without("a"), without("b")]), [""; 0]);
    }
}
