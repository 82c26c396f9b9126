//! Messages that wait in the log before a relay is there to read them.

use std::error::Error;

use clap::ValueEnum;
use indicatif::ProgressBar;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tailrace_outbox::{Message, Outbox, Store, frame};

type Failure = Box<dyn Error + Send + Sync>;

/// Bytes of a payload.
pub(crate) const PAYLOAD_BYTES: usize = 200;

/// Keys that take turns; each is as long as [`KEY`].
pub(crate) const KEYS: u64 = 10_000;

/// The place of a key in the frame that all messages are made from.
const KEY: &[u8] = b"00000000";

/// Where id and time end in a frame, and the topic begins.
const FRAME_HEAD_BYTES: usize = 28;

/// Connections that write at the same time: two backends fill two cores.
const WRITERS: u64 = 2;

/// Messages of a statement, between which the progress is shown.
const SHARE: u64 = 10_000;

/// Where a message is before the relay reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Source {
    /// In the log alone.
    Message,
    /// A row of the journal.
    Table,
}

impl Source {
    pub(crate) const ALL: [Source; 2] = [Source::Message, Source::Table];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Source::Message => "message",
            Source::Table => "table",
        }
    }

    pub(crate) fn outbox(self) -> Outbox {
        Outbox::new(match self {
            Source::Message => Store::Wal,
            Source::Table => Store::Journal,
        })
    }
}

/// The message that all others are like but for id and key.
pub(crate) fn message(topic: &str) -> Result<Message, Failure> {
    let mut payload = br#"{"note":""#.to_vec();
    payload.resize(PAYLOAD_BYTES - 2, b'x');
    payload.extend_from_slice(br#""}"#);
    let message = Message::builder(topic, "order.placed.v1").source("/orders");
    Ok(message.key(KEY).content_type("application/json").payload(payload).build()?)
}

/// What is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backlog<'a> {
    pub(crate) source: Source,
    pub(crate) topic: &'a str,
    pub(crate) messages: u64,
    /// Messages of one transaction.
    pub(crate) per_tx: u64,
}

impl Backlog<'_> {
    /// Writes it, with `synchronous_commit` off: whoever needs it durable commits once more.
    ///
    /// The server itself makes the messages, in procedures that commit as they go; so a million
    /// transactions take seconds, and none of them waits for a client.
    pub(crate) async fn write(&self, url: &str, bar: &ProgressBar) -> Result<(), Failure> {
        let statement = self.statement()?;
        let share = SHARE.next_multiple_of(self.per_tx);
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let (statement, bar, messages) = (statement.clone(), bar.clone(), self.messages);
            let mut connection = PgConnection::connect(url).await?;
            writers.spawn(async move {
                sqlx::raw_sql("set synchronous_commit = off").execute(&mut connection).await?;
                let mut first = writer * share;
                while first < messages {
                    let last = (first + share).min(messages);
                    let text =
                        format!("do $fill$ {}{first} .. {} - 1 {}", statement.0, last, statement.1);
                    sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut connection).await?;
                    bar.inc(last - first);
                    first += WRITERS * share;
                }
                Ok::<_, Failure>(())
            });
        }
        while let Some(writer) = writers.join_next().await {
            writer??;
        }
        Ok(())
    }

    /// What stands before and after the range of numbers.
    fn statement(&self) -> Result<(String, String), Failure> {
        let message = message(self.topic)?;
        let frame = frame::encode(&message);
        // Ids are of version 7, so that rows come into the partition of today.
        let day = hex(message.id().as_bytes().get(..6).unwrap_or_default());
        let id =
            format!("overlay(uuid_send(gen_random_uuid()) placing '{day}'::bytea from 1 for 6)");
        let key = format!("convert_to(lpad((i % {KEYS})::text, {}, '0'), 'UTF8')", KEY.len());
        let one = match self.source {
            Source::Message => {
                let key_at = FRAME_HEAD_BYTES + 4 + self.topic.len() + 4;
                let part = |from: usize, to: usize| hex(frame.get(from..to).unwrap_or_default());
                format!(
                    "perform pg_logical_emit_message(true, 'tailrace', \
                     '{}'::bytea || {id} || '{}'::bytea || {key} || '{}'::bytea);",
                    part(0, 4),
                    part(20, key_at),
                    part(key_at + KEY.len(), frame.len()),
                )
            }
            Source::Table => format!(
                "insert into tailrace.outbox (id, created_at, topic, key, type, source, payload) \
                 values (encode({id}, 'hex')::uuid, clock_timestamp(), '{}', {key}, '{}', '{}', \
                 '{}'::bytea);",
                message.topic(),
                message.r#type(),
                message.source(),
                hex(message.payload().unwrap_or_default()),
            ),
        };
        let after = format!(
            "loop {one} if (i + 1) % {} = 0 then commit; end if; end loop; end $fill$",
            self.per_tx
        );
        Ok(("begin for i in ".to_owned(), after))
    }
}

/// As a literal of the type bytea.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    bytes.iter().fold("\\x".to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes any text");
        text
    })
}
