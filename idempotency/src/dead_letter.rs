//! What is given up: a row of `tailrace.dead_letter`, and on request a message to a topic as well.
//!
//! Both are written in the transaction that moves progress past the record. The message's form is that of the relay's
//! own dead letters as the wire contract has it: key, value and headers as they came, with headers that say why.

use serde_json::{Map, Value};
use sqlx::{PgConnection, Postgres, QueryBuilder};

use crate::error::{Error, Kind, Verdict};
use crate::failure::{Cause, stored};
use crate::parked_rows::{Table, push_stored};
use crate::record::Stored;

/// Rows of one statement.
const ROWS_MAX: usize = 1000;

/// Stands for the name of the record's topic in the name of the dead letters' one.
const TOPIC: &str = "{topic}";

/// A message that is given up.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) stored: Stored,
    pub(crate) cause: Cause,
    pub(crate) attempts: u32,
}

/// Checks at the start that dead letters can be sent to a topic.
pub(crate) async fn check(conn: &mut PgConnection) -> Result<(), Error> {
    // Not by to_regprocedure: that one fails in a schema that the role may not use.
    let callable: Option<bool> = sqlx::query_scalar(
        "SELECT bool_or(has_function_privilege(p.oid, 'EXECUTE')
                        AND has_schema_privilege(n.oid, 'USAGE'))
         FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
         WHERE n.nspname = 'tailrace' AND p.proname = 'emit_bytes'",
    )
    .fetch_one(conn)
    .await
    .map_err(|error| Error::database("the function that sends dead letters is not known", error))?;
    let (text, mend) = match callable {
        Some(true) => return Ok(()),
        Some(false) => (
            "the role may not execute tailrace.emit_bytes, which sends dead letters to a topic",
            "grant it as the head of tailrace-outbox's first migration says, or leave dead_letter_topic out",
        ),
        None => (
            "tailrace.emit_bytes is missing, which sends dead letters to a topic",
            "install the tables of tailrace-outbox in this database, or leave dead_letter_topic out",
        ),
    };
    Err(Error::new(Kind::Schema, text).mended_by(mend))
}

/// Writes dead letters.
pub(crate) async fn write(
    conn: &mut PgConnection,
    table: Table<'_>,
    topic: Option<&str>,
    letters: &[Letter],
) -> Result<(), Error> {
    for letters in letters.chunks(ROWS_MAX) {
        let mut query = QueryBuilder::<Postgres>::new(
            r#"INSERT INTO tailrace.dead_letter
                   (consumer, topic, partition, "offset", key, message_id, message_type, payload,
                    header_names, header_values, written_at, reason, detail, attempts) "#,
        );
        query.push_values(letters, |mut values, letter| {
            values.push_bind(table.consumer);
            values.push_bind(&*table.partition.topic).push_bind(table.partition.number);
            push_stored(&mut values, &letter.stored);
            values.push_bind(letter.cause.reason.code());
            values.push_bind(letter.cause.detail.as_deref());
            values.push_bind(i32::try_from(letter.attempts).unwrap_or(i32::MAX));
        });
        let written = query.build().persistent(false).execute(&mut *conn).await;
        written.map_err(|error| Error::database("dead letters cannot be written", error))?;
    }
    if let Some(topic) = topic {
        let topic = topic.replace(TOPIC, &table.partition.topic);
        for letter in letters {
            send(conn, table, &topic, letter).await?;
        }
    }
    Ok(())
}

/// Sends one to the topic. A message that no topic takes (too large, an unprintable type) is in the table alone.
async fn send(
    conn: &mut PgConnection,
    table: Table<'_>,
    topic: &str,
    letter: &Letter,
) -> Result<(), Error> {
    let failed = |error| Error::database("a dead letter cannot be sent", error);
    sqlx::raw_sql("SAVEPOINT tailrace_letter").execute(&mut *conn).await.map_err(failed)?;
    let sent = emit(conn, table, topic, letter).await.map_err(failed);
    let end = match sent {
        Ok(()) => "RELEASE SAVEPOINT tailrace_letter",
        Err(error) if error.verdict() != Verdict::Stop => return Err(error),
        Err(error) => {
            tracing::warn!(
                error = %error, topic, from = %table.partition.topic, partition = table.partition.number,
                offset = letter.stored.offset, "the dead letter stands in the table alone"
            );
            "ROLLBACK TO SAVEPOINT tailrace_letter"
        }
    };
    sqlx::raw_sql(end).execute(conn).await.map_err(failed)?;
    Ok(())
}

async fn emit(
    conn: &mut PgConnection,
    table: Table<'_>,
    topic: &str,
    letter: &Letter,
) -> Result<(), sqlx::Error> {
    let Letter { stored, .. } = letter;
    let parts = Parts::of(table, letter);
    let key = stored.key.as_deref().and_then(|key| str::from_utf8(key).ok());
    // A tombstone needs a key; without one that a text can hold it is sent as an empty value.
    let tombstone = stored.payload.is_none() && key.is_some();
    let payload = stored.payload.as_deref().or((!tombstone).then_some(b""));
    sqlx::query(
        r#"SELECT tailrace.emit_bytes($1, $2, $3, $4, $5, $6, $7,
               $8::text::jsonb || jsonb_build_object('tailrace-dead-at',
                   to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')),
               $9::text::jsonb, $10, $11)"#,
    )
    .bind(topic)
    .bind(key)
    .bind(&stored.message_type)
    .bind(payload)
    .bind(parts.source)
    .bind(parts.subject)
    .bind(parts.content_type)
    .bind(Value::Object(parts.headers).to_string())
    .bind(Value::Object(parts.attributes).to_string())
    .bind(tombstone)
    .bind(stored.message_id)
    .execute(conn)
    .await?;
    Ok(())
}

/// The headers of a record as a message takes them.
#[derive(Debug, Default)]
struct Parts {
    source: Option<String>,
    subject: Option<String>,
    content_type: Option<String>,
    headers: Map<String, Value>,
    attributes: Map<String, Value>,
}

impl Parts {
    fn of(table: Table<'_>, letter: &Letter) -> Self {
        let Letter { stored: record, cause, attempts } = letter;
        let mut parts = Self::default();
        for (name, value) in record.header_names.iter().zip(&record.header_values) {
            let value = value.as_deref().and_then(|value| str::from_utf8(value).ok());
            // A message's headers are texts, each name once.
            if let Some(value) = value {
                parts.take(name, value);
            }
        }
        if let Some(key) = record.key.as_deref().filter(|key| str::from_utf8(key).is_err()) {
            let hex = key.iter().map(|byte| format!("{byte:02x}")).collect();
            parts.say("key-hex", hex);
        }
        parts.say("reason", cause.reason.code().to_owned());
        if let Some(detail) = &cause.detail {
            parts.say("detail", stored(detail));
        }
        parts.say("component", table.consumer.to_owned());
        parts.say("attempts", attempts.to_string());
        parts.say("topic", table.partition.topic.to_string());
        parts.say("partition", table.partition.number.to_string());
        parts.say("offset", record.offset.to_string());
        parts
    }

    fn say(&mut self, what: &str, value: String) {
        self.headers.insert(format!("tailrace-dead-{what}"), Value::String(value));
    }

    fn take(&mut self, name: &str, value: &str) {
        let printable = !value.is_empty() && !value.chars().any(char::is_control);
        let lower = name.to_ascii_lowercase();
        match name {
            "ce_source" => self.source = printable.then(|| value.to_owned()),
            "ce_subject" => self.subject = printable.then(|| value.to_owned()),
            "content-type" => self.content_type = printable.then(|| value.to_owned()),
            // The relay writes these itself, or the position is not that of this message.
            "ce_id" | "ce_type" | "ce_specversion" | "ce_time" | "ce_sequence" | "ce_replay" => {}
            _ if is_attribute(name) => {
                if printable {
                    put(&mut self.attributes, name, value);
                }
            }
            // Names that readers take for attributes and writers may not use.
            _ if lower.starts_with("ce_") => {}
            _ if ["traceparent", "tracestate", "content-type", ""].contains(&lower.as_str()) => {}
            _ => put(&mut self.headers, name, &value.replace('\0', "\u{fffd}")),
        }
    }
}

fn put(pairs: &mut Map<String, Value>, name: &str, value: &str) {
    pairs.entry(name).or_insert_with(|| Value::String(value.to_owned()));
}

fn is_attribute(name: &str) -> bool {
    let extension = |rest: &str| {
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    ["traceparent", "tracestate"].contains(&name) || name.strip_prefix("ce_").is_some_and(extension)
}

#[cfg(test)]
mod tests;
