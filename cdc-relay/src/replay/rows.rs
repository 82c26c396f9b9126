//! Rows of the journal, read by SQL.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tailrace_outbox::frame::{Parts, encode_parts};
use uuid::Uuid;

use super::Planned;
use crate::config::Config;
use crate::error::{Error, Kind};
use crate::replication::{Client, Row as Fields, quote_identifier, quote_literal};

/// The journal has no index: counting and sorting read all of the range first.
const SORT_TIMEOUT: Duration = Duration::from_secs(3_600);

/// Rows of one answer at the begin; then as many as [`ANSWER_BYTES`] hold of the largest so far.
const FIRST_ROWS: usize = 16;
const ROWS_MAX: usize = 500;

/// What one answer is to have at most, well below what the client takes.
const ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// SQLSTATE of a table that is not there, and of a text that is no time.
const UNDEFINED_TABLE: &str = "42P01";
const NO_TIME: [&str; 2] = ["22007", "22008"];

/// A point in the order of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    Message(Uuid),
    /// Milliseconds since 1970.
    Time(u64),
}

impl Bound {
    /// The first id that belongs to it.
    pub(super) fn first(self) -> Uuid {
        match self {
            Bound::Message(id) => id,
            Bound::Time(ms) => least(ms),
        }
    }

    /// The first id that is beyond a range which it ends: a message is in the range, a time is not.
    pub(super) fn end(self) -> Uuid {
        match self {
            Bound::Message(id) => Uuid::from_u128(id.as_u128().saturating_add(1)),
            Bound::Time(ms) => least(ms),
        }
    }
}

/// The least id that a UUID v7 of this time could be (RFC 9562, section 5.7).
fn least(ms: u64) -> Uuid {
    Uuid::from_u128(u128::from(ms & 0xFFFF_FFFF_FFFF) << 80)
}

/// Reads an id, or a time as Postgres does.
pub(super) async fn bound(text: &str, client: &mut Client) -> Result<Bound, Error> {
    if let Ok(id) = Uuid::try_parse(text) {
        return Ok(Bound::Message(id));
    }
    let sql = format!(
        "SET timezone = 'UTC'; SELECT \
         greatest(0, floor(extract(epoch FROM {}::timestamptz) * 1000))::bigint",
        quote_literal(text)
    );
    let rows = client.query(&sql).await;
    let rows = rows.map_err(|error| match error.sqlstate() {
        Some(state) if NO_TIME.contains(&state) => {
            Error::new(Kind::Config, format!("{text:?} is neither a message's id nor a time"))
                .hint("give an id, or a time such as 2026-11-21T10:00:00Z")
                .caused_by(error)
        }
        _ => error,
    })?;
    let ms = rows.last().and_then(|row| row.get(0)).and_then(|ms| ms.parse().ok());
    ms.map(Bound::Time).ok_or_else(|| Error::new(Kind::Server, "a time has no number"))
}

/// Ids from the first to before the end, and the topics that are wanted, all if there are none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Range {
    from: String,
    end: String,
    topics: Vec<String>,
}

impl Range {
    pub(super) fn new(from: Uuid, end: Uuid, topics: Vec<String>) -> Self {
        Range { from: from.to_string(), end: end.to_string(), topics }
    }

    /// Leaves what is behind a message.
    pub(super) fn pass(&mut self, last: Uuid) {
        self.from = Bound::Message(last).end().to_string();
    }

    fn condition(&self) -> String {
        let topics: Vec<String> = self.topics.iter().map(|topic| quote_literal(topic)).collect();
        let topics = match topics.as_slice() {
            [] => String::new(),
            topics => format!(" AND topic IN ({})", topics.join(", ")),
        };
        let (from, end) = (quote_literal(&self.from), quote_literal(&self.end));
        format!("id >= {from}::uuid AND id < {end}::uuid{topics}")
    }
}

fn table(config: &Config) -> String {
    format!("{}.outbox", quote_identifier(config.outbox_schema()))
}

/// How many messages of the range there are, by topic.
pub(super) async fn counts(
    config: &Config,
    range: &Range,
    client: &mut Client,
) -> Result<Vec<Planned>, Error> {
    let sql = format!(
        "SELECT topic, count(*)::text, coalesce(sum(octet_length(payload)), 0)::text FROM {} \
         WHERE {} GROUP BY topic ORDER BY topic",
        table(config),
        range.condition()
    );
    let rows =
        client.query_within(SORT_TIMEOUT, &sql).await.map_err(|error| of_journal(config, error))?;
    let number = |row: &Fields, at| row.get(at).and_then(|text| text.parse().ok());
    let planned = |row: &Fields| {
        Some(Planned {
            topic: row.get(0)?.to_owned(),
            messages: number(row, 1)?,
            bytes: number(row, 2)?,
        })
    };
    Ok(rows.iter().filter_map(planned).collect())
}

fn of_journal(config: &Config, error: Error) -> Error {
    let table = table(config);
    if error.sqlstate() == Some(UNDEFINED_TABLE) {
        let text = format!("there is no journal {table}");
        return Error::new(Kind::Server, text)
            .hint("messages in the log alone can not be published again; or name its --schema")
            .caused_by(error);
    }
    if error.kind() == Kind::Permission {
        let schema = quote_identifier(config.outbox_schema());
        return error.hint(format!(
            "a replay reads the journal: run GRANT USAGE ON SCHEMA {schema} and GRANT SELECT ON \
             {table} for the relay's role"
        ));
    }
    error
}

/// A message of the journal.
pub(super) struct Message {
    pub(super) id: Uuid,
    /// Or the column that can not be read.
    pub(super) frame: Result<Vec<u8>, &'static str>,
}

/// The rows of a range in the order of their ids, read as they are asked for.
pub(super) struct Cursor {
    client: Client,
    rows: usize,
}

impl Cursor {
    pub(super) async fn open(
        config: &Config,
        range: &Range,
        mut client: Client,
    ) -> Result<Self, Error> {
        // One statement at a time: several in one text are one transaction of their own.
        client.query("BEGIN READ ONLY").await?;
        let sql = format!(
            "DECLARE replay NO SCROLL CURSOR FOR SELECT id, \
             (extract(epoch FROM created_at) * 1000000)::bigint, topic, encode(key, 'hex'), type, \
             source, subject, content_type, attributes::text, headers::text, \
             encode(payload, 'hex') FROM {} WHERE {} ORDER BY id",
            table(config),
            range.condition()
        );
        client.query(&sql).await.map_err(|error| of_journal(config, error))?;
        Ok(Cursor { client, rows: FIRST_ROWS })
    }

    /// The next rows; none at the end.
    pub(super) async fn next(&mut self) -> Result<Vec<Message>, Error> {
        let sql = format!("FETCH {} FROM replay", self.rows);
        let rows = self.client.query_within(SORT_TIMEOUT, &sql).await?;
        let messages: Vec<Message> = rows.iter().map(message).collect::<Result<_, Error>>()?;
        // In an answer the payload is hexadecimal.
        let largest = messages.iter().map(|message| 2 * message.bytes()).max().unwrap_or(1);
        self.rows = (ANSWER_BYTES / largest).clamp(1, ROWS_MAX);
        Ok(messages)
    }
}

impl Message {
    fn bytes(&self) -> usize {
        self.frame.as_ref().map_or(0, Vec::len)
    }
}

fn message(row: &Fields) -> Result<Message, Error> {
    let id = row.get(0).and_then(|id| Uuid::try_parse(id).ok());
    let id = id.ok_or_else(|| {
        Error::new(Kind::Malformed, "the id of a row of the journal can not be read")
            .hint("go past it by a range of times; its day can be looked at with SQL")
    })?;
    Ok(Message { id, frame: frame(id, row) })
}

fn frame(id: Uuid, row: &Fields) -> Result<Vec<u8>, &'static str> {
    let text = |at, name| row.get(at).ok_or(name);
    let (key, payload) = (bytes(row, 3, "key")?, bytes(row, 10, "payload")?);
    let attributes = pairs(text(8, "attributes")?, "attributes")?;
    let headers = pairs(text(9, "headers")?, "headers")?;
    let parts = Parts {
        id,
        time_micros: text(1, "created_at")?.parse().map_err(|_| "created_at")?,
        topic: text(2, "topic")?,
        key: key.as_deref(),
        r#type: text(4, "type")?,
        source: text(5, "source")?,
        subject: row.get(6),
        content_type: text(7, "content_type")?,
        payload: payload.as_deref(),
    };
    let mut frame = Vec::new();
    encode_parts(&mut frame, &parts, each(&attributes), each(&headers));
    Ok(frame)
}

fn each(pairs: &BTreeMap<String, String>) -> impl ExactSizeIterator<Item = (&str, &str)> {
    pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()))
}

fn pairs(json: &str, name: &'static str) -> Result<BTreeMap<String, String>, &'static str> {
    serde_json::from_str(json).map_err(|_| name)
}

fn bytes(row: &Fields, at: usize, name: &'static str) -> Result<Option<Vec<u8>>, &'static str> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8; 2]| {
        let [high, low] = *pair;
        u8::try_from(digit(high)? << 4 | digit(low)?).ok()
    };
    let Some(hex) = row.get(at) else { return Ok(None) };
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    bytes.filter(|_| rest.is_empty()).map(Some).ok_or(name)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::{Bound, Range};

    #[test]
    fn a_range_has_the_messages_that_are_named_and_no_time_that_ends_it() {
        let id: Uuid = "019b7eb6-2d00-7abc-8def-0123456789ab".parse().unwrap();
        let time = Bound::Time(0x019b_7eb6_2d00);
        let next: Uuid = "019b7eb6-2d00-7abc-8def-0123456789ac".parse().unwrap();

        assert!(time.first() <= id && Bound::Time(0x019b_7eb6_2d01).first() > id);
        assert_eq!(time.first(), time.end());
        assert_eq!((Bound::Message(id).first(), Bound::Message(id).end()), (id, next));
        assert_eq!(Bound::Message(Uuid::max()).end(), Uuid::max());
        let mut range = Range::new(time.first(), Uuid::max(), vec!["it's".to_owned()]);
        range.pass(id);
        let condition = range.condition();
        assert!(condition.contains(&next.to_string()), "{condition}");
        assert!(condition.contains("topic IN ('it''s')"), "{condition}");
    }
}
