//! What every [`Sink`] must do, as tests to run against yours.
//!
//! ```
//! use tailrace_cdc_relay::sink::conformance::{Promise, check};
//! use tailrace_cdc_relay::sink::memory::Memory;
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let memory = Memory::default();
//! // Reads the values of a topic, in order, as your readers would.
//! let read = async |topic: &str| {
//!     let records = memory.records().into_iter().filter(|record| record.topic == topic);
//!     records.map(|record| record.value.unwrap_or_default()).collect()
//! };
//! check(&memory, Promise::ExactlyOnce, "a-topic", read).await;
//! # });
//! ```

use tailrace_outbox::Message;
use tailrace_outbox::frame::{self, Frame};

use super::{Connect, Obstacle, Sink};
use crate::record::Record;

/// How often a refused record is handed over again once its obstacle is out of the way.
const TRIES_MAX: usize = 3;

/// What a sink promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Records and entries become durable together or not at all.
    ExactlyOnce,
    /// Records are durable before the entries that were sealed with them.
    AtLeastOnce,
}

/// Puts a sink through everything that the relay's guarantees rest on.
///
/// Each part has a relay id of its own, made of `topic`, and keys of its own; all write to `topic`,
/// which must be empty. `read` answers with the values that a reader of the topic sees, records of
/// one key in their order. Run it against the real destination.
///
/// # Panics
///
/// When the sink does not do what it must, with what it did.
pub async fn check<C: Connect>(
    connect: &C,
    promise: Promise,
    topic: &str,
    read: impl AsyncFn(&str) -> Vec<Vec<u8>>,
) {
    let suite = Suite { connect, promise, topic, read };
    suite.what_is_sealed_is_durable_with_its_entries().await;
    suite.records_of_a_key_keep_their_order_over_many_seals().await;
    suite.what_is_not_sealed_is_not_durable().await;
    suite.a_sealed_batch_is_durable_whole_or_not_at_all().await;
    suite.an_older_sink_can_do_no_more().await;
}

struct Suite<'c, C, R> {
    connect: &'c C,
    promise: Promise,
    topic: &'c str,
    read: R,
}

impl<C: Connect, R: AsyncFn(&str) -> Vec<Vec<u8>>> Suite<'_, C, R> {
    async fn what_is_sealed_is_durable_with_its_entries(&self) {
        let mut sink = self.sink("sealed").await;
        assert!(sink.take_over().await.expect("a first hold").is_empty(), "nothing is saved yet");
        self.hand_over(&mut sink, "sealed", 0).await;
        sink.seal(&[("place", b"1"), ("other", b"x")]).await.expect("a batch is sealed");
        sink.confirmed().await.expect("it is confirmed");
        // A batch without records is one too.
        sink.seal(&[("place", b"2")]).await.expect("entries alone are sealed");
        sink.confirmed().await.expect("they are confirmed");

        assert_eq!(self.seen("sealed").await, [0]);
        let mut next = self.sink("sealed").await;
        let saved = next.take_over().await.expect("the next hold");
        assert_eq!(saved.get("place").map(Vec::as_slice), Some(&b"2"[..]), "the newest counts");
        assert_eq!(saved.get("other").map(Vec::as_slice), Some(&b"x"[..]), "entries stay");
    }

    async fn records_of_a_key_keep_their_order_over_many_seals(&self) {
        const RECORDS: u32 = 600;
        let mut sink = self.sink("order").await;
        sink.take_over().await.expect("a first hold");
        for number in 0..RECORDS {
            self.hand_over(&mut sink, "order", number).await;
            if number % 7 == 0 {
                // The relay goes on handing over before a seal is confirmed.
                sink.confirmed().await.expect("the batch before is confirmed");
                sink.seal(&[("place", b"1")]).await.expect("a batch is sealed");
            }
        }
        sink.confirmed().await.expect("the batch before is confirmed");
        sink.seal(&[("place", b"2")]).await.expect("the rest is sealed");
        sink.confirmed().await.expect("it is confirmed");

        let all: Vec<u32> = (0..RECORDS).collect();
        assert_eq!(self.seen("order").await, all);
    }

    async fn what_is_not_sealed_is_not_durable(&self) {
        let mut sink = self.sink("open").await;
        sink.take_over().await.expect("a first hold");
        self.hand_over(&mut sink, "open", 0).await;
        drop(sink);
        let mut next = self.sink("open").await;
        let saved = next.take_over().await.expect("the next hold");
        assert!(saved.is_empty(), "nothing was sealed: {saved:?}");
        self.hand_over(&mut next, "open", 1).await;
        next.abort().await.expect("a batch is given up");

        let seen = self.seen("open").await;
        assert!(self.promise == Promise::AtLeastOnce || seen.is_empty(), "{seen:?} was not sealed");
    }

    async fn a_sealed_batch_is_durable_whole_or_not_at_all(&self) {
        let mut sink = self.sink("whole").await;
        sink.take_over().await.expect("a first hold");
        for number in 0..3 {
            self.hand_over(&mut sink, "whole", number).await;
        }
        sink.seal(&[("place", b"1")]).await.expect("a batch is sealed");
        drop(sink);
        let saved = self.sink("whole").await.take_over().await.expect("the next hold");

        let seen = self.seen("whole").await;
        match (saved.contains_key("place"), self.promise) {
            (true, _) => assert_eq!(seen, [0, 1, 2], "the entry is saved"),
            (false, Promise::ExactlyOnce) => assert!(seen.is_empty(), "{seen:?}, but no entry"),
            (false, Promise::AtLeastOnce) => {}
        }
    }

    async fn an_older_sink_can_do_no_more(&self) {
        let mut old = self.sink("fence").await;
        old.take_over().await.expect("a first hold");
        self.hand_over(&mut old, "fence", 0).await;
        let mut new = self.sink("fence").await;
        new.take_over().await.expect("the next hold");
        // Whichever of the steps it is that fails, the last of them must have.
        let sealed = async {
            old.seal(&[("place", b"old")]).await?;
            old.confirmed().await
        };
        let outcome = sealed.await;
        assert!(outcome.is_err(), "an older sink has sealed");
        self.hand_over(&mut new, "fence", 1).await;
        new.seal(&[("place", b"new")]).await.expect("the newest sink seals");
        new.confirmed().await.expect("it is confirmed");
        drop((old, new));

        let saved = self.sink("fence").await.take_over().await.expect("the last hold");
        assert_eq!(saved.get("place").map(Vec::as_slice), Some(&b"new"[..]));
        let seen = self.seen("fence").await;
        assert!(seen == [1] || self.promise == Promise::AtLeastOnce, "{seen:?} of two relays");
    }

    async fn sink(&self, part: &str) -> C::Sink {
        let relay_id = format!("{}.{part}", self.topic);
        self.connect.connect(&relay_id).await.expect("the destination is reached")
    }

    async fn hand_over(&self, sink: &mut C::Sink, part: &str, number: u32) {
        let message = Message::builder(self.topic, "conformance.v1").source("/conformance");
        let message = message.key(part).payload(format!("{part} {number}"));
        let frame = frame::encode(&message.build().expect("it keeps every rule"));
        let frame = Frame::decode(&frame).expect("it was encoded just now");
        let record = Record::new(frame, "conformance");
        for _ in 0..TRIES_MAX {
            match sink.produce(&record) {
                Ok(()) => return,
                Err(Obstacle::Refused(why)) => panic!("record {number} of {part}: {why}"),
                Err(obstacle) => {
                    sink.overcome(obstacle, &record).await.expect("the obstacle is overcome");
                }
            }
        }
        panic!("record {number} of {part} meets an obstacle again and again");
    }

    /// The numbers of a part's records, as a reader sees them.
    async fn seen(&self, part: &str) -> Vec<u32> {
        let values = (self.read)(self.topic).await;
        let number = |value: &Vec<u8>| {
            let (found, number) = str::from_utf8(value).ok()?.split_once(' ')?;
            (found == part).then(|| number.parse().ok())?
        };
        values.iter().filter_map(number).collect()
    }
}
