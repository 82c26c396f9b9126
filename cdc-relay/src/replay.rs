//! Publishes messages of the journal once more.
//!
//! What the journal still has can be read again, for a consumer that is new or was wrong. A record
//! that is published again has the same id, key, type, headers and payload, the header `ce_replay`,
//! and no `ce_sequence`. The order is that of the ids, which is the order in which the messages were
//! made and may differ from that of the commits by what ran at the same time.
//!
//! A replay is a producer of its own beside the relay, under the relay's id and `.replay`: it needs
//! neither slot nor leadership and disturbs no relay. How far it has come is saved in the same Kafka
//! transactions as its records, so one that was ended goes on where it was, without a gap or a
//! repetition.

use std::future::Future;
use std::pin::pin;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::{Config, Delivery};
use crate::error::{Error, Kind};
use crate::publisher::unix_ms;
use crate::record::{self, Record};
use crate::replication::Client;
use crate::saved::{self, VERSION};
use crate::sink::{Connect, Kafka, Obstacle, Sink};
use crate::source;
use rows::{Cursor, Message, Range};

mod rows;

/// Key under which a replay saves how far it is.
const REPLAY_KEY: &str = "replay";

/// Behind a relay's id: the id of its replays, which no relay may have.
pub(crate) const SUFFIX: &str = ".replay";

/// Records after which a batch is sealed.
const BATCH_RECORDS: usize = 1_000;

/// Bytes after which a batch is sealed.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// Obstacles that a record may meet before it is given up.
const OBSTACLES_MAX: usize = 4;

/// Messages in a row that may be left out: beyond them no message is to blame.
const LEFT_OUT_MAX: u64 = 1_000;

/// Which messages of the journal are published again, and where to.
#[derive(Clone, Debug)]
pub struct Replay {
    from: String,
    to: Option<String>,
    topics: Vec<String>,
    into: Option<String>,
    resume: bool,
}

/// What a replay has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replayed {
    /// Messages that were published by this call.
    pub messages: u64,
    /// The last of them, if there is one.
    pub last: Option<Uuid>,
    /// Messages that can not be published again, and were left out; a warning names each.
    pub left_out: u64,
    /// Whether all of the range is published; else it was stopped, and can be resumed.
    pub is_complete: bool,
}

/// What a replay would publish to one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Planned {
    /// The topic that the messages were written for.
    pub topic: String,
    /// How many they are.
    pub messages: u64,
    /// The bytes of their payloads.
    pub bytes: u64,
}

/// How far a replay is, as it is saved.
#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    /// What is left of it.
    range: Range,
    into: Option<String>,
    is_complete: bool,
    /// For people.
    time_ms: u64,
}

impl Replay {
    /// From this message or time on, to now.
    ///
    /// A message is named by its id. A time is anything that Postgres takes for one
    /// (`2026-11-21 10:00`, in UTC unless it says otherwise), and is compared with the time in the
    /// id.
    pub fn from(from: impl Into<String>) -> Self {
        Replay { from: from.into(), to: None, topics: Vec::new(), into: None, resume: false }
    }

    /// The replay that was ended before it was complete, where it was ended.
    pub fn resume() -> Self {
        Replay { resume: true, ..Replay::from("") }
    }

    /// Up to this message, or until before this time. Default: until the replay begins.
    #[must_use]
    pub fn to(mut self, to: impl Into<String>) -> Self {
        self.to = Some(to.into());
        self
    }

    /// Only messages for this topic, or one of several. Default: all.
    #[must_use]
    pub fn of_topic(mut self, topic: impl Into<String>) -> Self {
        self.topics.push(topic.into());
        self
    }

    /// Publishes to this topic. Default: each message to its own.
    #[must_use]
    pub fn into_topic(mut self, topic: impl Into<String>) -> Self {
        self.into = Some(topic.into());
        self
    }

    /// Counts what would be published, by topic; publishes nothing and does not reach Kafka.
    ///
    /// # Errors
    ///
    /// As [`Replay::run`]; a resumed replay can not be counted, since Kafka knows how far it is.
    pub async fn plan(&self, config: &Config) -> Result<Vec<Planned>, Error> {
        config.validate()?;
        if self.resume {
            let text = "a replay that is resumed can not be counted before";
            return Err(Error::new(Kind::Config, text).hint("leave out --dry-run"));
        }
        let mut client = Client::connect(&config.endpoint()?).await?;
        let range = self.range(&mut client).await?;
        rows::counts(config, &range, &mut client).await
    }

    /// Publishes until all of it is published or `shutdown` resolves.
    ///
    /// `progress` is told how many of how many messages are handed over.
    ///
    /// # Errors
    ///
    /// [`Kind::Permission`] where the role may not read the journal, [`Kind::Rejected`] for a record
    /// that the brokers refuse once it is sent, and after 1,000 messages in a row that can not be
    /// published. What a committed batch has stays published; [`Replay::resume`] goes on behind it.
    /// A single message that can not be published, because it is malformed or its topic does not
    /// take it, is left out: see [`Replayed::left_out`].
    pub async fn run(
        &self,
        config: &Config,
        shutdown: impl Future<Output = ()>,
        progress: impl FnMut(u64, u64),
    ) -> Result<Replayed, Error> {
        config.validate()?;
        // A checkpoint is in the transaction of its records in this mode only.
        let kafka = Kafka::of(&config.clone().delivery(Delivery::ExactlyOnce));
        self.run_with(config, &kafka, shutdown, progress).await
    }

    pub(crate) async fn run_with<C: Connect>(
        &self,
        config: &Config,
        connect: &C,
        shutdown: impl Future<Output = ()>,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Replayed, Error> {
        let mut client = Client::connect(&config.endpoint()?).await?;
        let server = source::identify(&mut client).await?;
        let relay_id = config.relay_id_for(&server.system_identifier, &server.database)?;
        let mut sink = connect.connect(&format!("{relay_id}{SUFFIX}")).await?;
        let saved = sink.take_over().await?;
        let before =
            saved.get(REPLAY_KEY).map(|value| saved::decode::<State>(value)).transpose()?;
        let state = match before {
            Some(state) if self.resume && !state.is_complete => state,
            _ if self.resume => {
                return Err(Error::new(Kind::Config, "there is no replay to resume")
                    .hint("name the range by --from and --to"));
            }
            _ => State {
                version: VERSION,
                range: self.range(&mut client).await?,
                into: self.into.clone(),
                is_complete: false,
                time_ms: 0,
            },
        };
        let counts = rows::counts(config, &state.range, &mut client).await?;
        let total = counts.iter().map(|planned| planned.messages).sum();
        let cursor = Cursor::open(config, &state.range, client).await?;
        let done = Replayed::default();
        let mut publishing =
            Publishing { sink, state, done, confirmed: done, passed: None, in_a_row: 0 };
        progress(0, total);
        let ended = publishing.all(cursor, shutdown, |done| progress(done, total)).await;
        ended.map_err(|error| publishing.named(error))?;
        Ok(publishing.done)
    }

    async fn range(&self, client: &mut Client) -> Result<Range, Error> {
        let from = rows::bound(&self.from, client).await?.first();
        let to = rows::bound(self.to.as_deref().unwrap_or("now"), client).await?.end();
        if to < from {
            return Err(Error::new(Kind::Config, "the replay's --to is before its --from")
                .hint("exchange the two"));
        }
        Ok(Range::new(from, to, self.topics.clone()))
    }
}

/// A replay under way.
struct Publishing<S> {
    sink: S,
    state: State,
    done: Replayed,
    /// What is certain to be published.
    confirmed: Replayed,
    /// The last message that was seen to, published or left out.
    passed: Option<Uuid>,
    /// Messages that were left out since the last one that was not.
    in_a_row: u64,
}

impl<S: Sink> Publishing<S> {
    async fn all(
        &mut self,
        mut cursor: Cursor,
        shutdown: impl Future<Output = ()>,
        mut progress: impl FnMut(u64),
    ) -> Result<(), Error> {
        let mut shutdown = pin!(shutdown);
        let (mut records, mut bytes) = (0, 0);
        loop {
            let rows = tokio::select! {
                biased;
                () = &mut shutdown => break,
                rows = cursor.next() => rows?,
            };
            if rows.is_empty() {
                self.state.is_complete = true;
                break;
            }
            for row in rows {
                match self.publish(&row).await? {
                    Ok(size) => {
                        bytes += size;
                        self.done.last = Some(row.id);
                        self.done.messages += 1;
                        self.in_a_row = 0;
                    }
                    Err(why) => self.leave_out(row.id, &why)?,
                }
                self.passed = Some(row.id);
                records += 1;
                if records >= BATCH_RECORDS || bytes >= BATCH_BYTES {
                    self.seal().await?;
                    (records, bytes) = (0, 0);
                }
            }
            progress(self.done.messages + self.done.left_out);
        }
        self.done.is_complete = self.state.is_complete;
        self.seal().await?;
        self.sink.confirmed().await?;
        self.confirmed = self.done;
        Ok(())
    }

    /// Hands one message over; answers with the record's bytes, or with why it can not be published.
    async fn publish(&mut self, message: &Message) -> Result<Result<usize, String>, Error> {
        let frame = match &message.frame {
            Ok(frame) => record::decode(frame),
            Err(column) => return Ok(Err(format!("its {column} can not be read"))),
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(fault) => return Ok(Err(fault.why)),
        };
        let record = Record::replayed(frame, self.state.into.as_deref());
        for _ in 0..OBSTACLES_MAX {
            match self.sink.produce(&record) {
                Ok(()) => return Ok(Ok(record.size())),
                Err(Obstacle::Refused(why)) => return Ok(Err(why)),
                Err(obstacle) => self.sink.overcome(obstacle, &record).await?,
            }
        }
        Ok(Err("it is larger than the queue".to_owned()))
    }

    /// One message is not to keep all behind it from being published; the journal still has it.
    fn leave_out(&mut self, id: Uuid, why: &str) -> Result<(), Error> {
        self.done.left_out += 1;
        self.in_a_row += 1;
        if self.in_a_row > LEFT_OUT_MAX {
            let text = format!(
                "{LEFT_OUT_MAX} messages in a row can not be published again, nor can message \
                 {id}: {why}"
            );
            return Err(Error::new(Kind::Rejected, text)
                .hint("mend that, or name other topics by --where-topic or --topic"));
        }
        tracing::warn!(message = %id, why, "left out a message that can not be published again");
        Ok(())
    }

    async fn seal(&mut self) -> Result<(), Error> {
        self.sink.confirmed().await?;
        self.confirmed = self.done;
        self.state.time_ms = unix_ms();
        if let Some(last) = self.passed {
            self.state.range.pass(last);
        }
        self.sink.seal(&[(REPLAY_KEY, &saved::encode(&self.state))]).await
    }

    /// Adds the way on to an error.
    fn named(&self, error: Error) -> Error {
        if self.confirmed.messages == 0 {
            return error;
        }
        tracing::warn!(
            messages = self.confirmed.messages,
            "the replay was ended; at least so many messages are published: --resume goes on \
             behind the last one"
        );
        error
    }
}
