//! `tailrace inbox list` and `show`.

use std::fmt::Write as _;

use clap::Args;
use comfy_table::{Table, presets};
use serde::Serialize;
use tailrace_idempotency::inbox::{self, Entry, Place};

use super::Chosen;
use super::words::{age, bytes_of, hex, readable, short};
use crate::answer::Answer;
use crate::database::Database;
use crate::error::Error;

#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    chosen: Chosen,
    /// Show at most so many
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

impl List {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let mut connection = self.database.connect().await?;
        let filter = self.chosen.filter();
        let total = inbox::count(&mut connection, &filter).await?;
        let entries = inbox::list(&mut connection, &filter, self.limit).await?;
        if self.json {
            let messages = entries.iter().map(|entry| Message::of(entry, false)).collect();
            return Ok(json(&Messages { total, messages }).into());
        }
        if entries.is_empty() {
            return Ok("nothing is set aside that fits\n".to_owned().into());
        }
        let mut text = table(&entries);
        let _ = match total - entries.len() as u64 {
            0 => writeln!(text, "{total} messages"),
            more => {
                writeln!(text, "{} messages, and {more} more: --limit shows them", entries.len())
            }
        };
        Ok(text.into())
    }
}

fn table(entries: &[Entry]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_BORDERS_ONLY)
        .set_header(["message", "state", "type", "key", "reason", "tries", "age", "next try"]);
    for entry in entries {
        table.add_row([
            entry.place.to_string(),
            entry.state.to_string(),
            short(entry.message_type.as_deref().unwrap_or("-")),
            short(&entry.key.as_ref().map_or_else(|| "-".to_owned(), |key| readable(key))),
            entry.reason.clone().unwrap_or_else(|| "-".to_owned()),
            entry.attempts.to_string(),
            age(entry.age),
            entry.retry_in.map_or_else(|| "-".to_owned(), |wait| format!("in {}", age(wait))),
        ]);
    }
    format!("{table}\n")
}

#[derive(Args)]
pub(crate) struct Show {
    #[command(flatten)]
    database: Database,
    /// The message, as `list` shows it
    message: Place,
    /// Show payload and headers' values too
    #[arg(long)]
    payload: bool,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let mut connection = self.database.connect().await?;
        let entry = inbox::get(&mut connection, &self.message).await?;
        let history = inbox::history(&mut connection, &entry).await?;
        if self.json {
            let done = history.iter().map(|step| Step {
                at: &step.at,
                actor: &step.actor,
                action: &step.action,
                note: step.note.as_deref(),
            });
            let shown = Shown { message: Message::of(&entry, self.payload), done: done.collect() };
            return Ok(json(&shown).into());
        }
        let mut text = properties(&entry);
        for (name, value) in &entry.headers {
            let value = match value {
                _ if !self.payload => "(--payload shows it)".to_owned(),
                Some(value) => readable(value),
                None => "(null)".to_owned(),
            };
            let _ = writeln!(text, "header       {name}: {value}");
        }
        for step in history {
            let note = step.note.map(|note| format!(": {note}")).unwrap_or_default();
            let _ =
                writeln!(text, "done         {} {} by {}{note}", step.at, step.action, step.actor);
        }
        if self.payload {
            let payload = entry.payload.as_deref().map(|payload| match str::from_utf8(payload) {
                Ok(text) => text.to_owned(),
                Err(_) => format!("0x{}", hex(payload)),
            });
            let _ = writeln!(text, "\n{}", payload.unwrap_or_else(|| "(no payload)".to_owned()));
        }
        Ok(text.into())
    }
}

fn properties(entry: &Entry) -> String {
    let none = || "-".to_owned();
    let payload = match entry.payload_bytes {
        Some(bytes) => bytes_of(bytes),
        None => "none".to_owned(),
    };
    let lines = [
        ("message", entry.place.to_string()),
        ("state", entry.state.to_string()),
        (
            "record",
            format!("topic {} partition {} offset {}", entry.topic, entry.partition, entry.offset),
        ),
        ("consumer", entry.consumer.clone()),
        ("id", entry.message_id.map_or_else(none, |id| id.to_string())),
        ("type", entry.message_type.clone().unwrap_or_else(none)),
        ("key", entry.key.as_deref().map_or_else(none, readable)),
        ("reason", entry.reason.clone().unwrap_or_else(none)),
        ("detail", entry.detail.clone().unwrap_or_else(none)),
        ("tries", format!("{}, and {} retries by hand", entry.attempts, entry.hand_retries)),
        ("age", age(entry.age)),
        ("next try", entry.retry_in.map_or_else(none, |wait| format!("in {}", age(wait)))),
        (
            "key's queue",
            format!(
                "{}, {} behind it",
                if entry.is_first { "the first" } else { "behind another message" },
                entry.behind
            ),
        ),
        ("payload", payload),
    ];
    lines.iter().map(|(name, value)| format!("{name:<11}  {value}\n")).collect()
}

pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("names, texts and numbers are valid JSON") + "\n"
}

#[derive(Serialize)]
struct Messages<'a> {
    /// How many fit, also those beyond the limit.
    total: u64,
    messages: Vec<Message<'a>>,
}

#[derive(Serialize)]
struct Shown<'a> {
    message: Message<'a>,
    done: Vec<Step<'a>>,
}

#[derive(Serialize)]
struct Step<'a> {
    at: &'a str,
    actor: &'a str,
    action: &'a str,
    note: Option<&'a str>,
}

#[derive(Serialize)]
struct Message<'a> {
    message: String,
    state: &'static str,
    consumer: &'a str,
    topic: &'a str,
    partition: i32,
    offset: i64,
    id: Option<String>,
    r#type: Option<&'a str>,
    key_hex: Option<String>,
    reason: Option<&'a str>,
    detail: Option<&'a str>,
    attempts: u32,
    hand_retries: u32,
    age_seconds: u64,
    retry_in_seconds: Option<u64>,
    written_at: Option<f64>,
    is_first: bool,
    behind: u64,
    payload_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_hex: Option<String>,
}

impl<'a> Message<'a> {
    fn of(entry: &'a Entry, with_payload: bool) -> Self {
        let payload = entry.payload.as_deref().filter(|_| with_payload);
        Message {
            message: entry.place.to_string(),
            state: entry.state.name(),
            consumer: &entry.consumer,
            topic: &entry.topic,
            partition: entry.partition,
            offset: entry.offset,
            id: entry.message_id.map(|id| id.to_string()),
            r#type: entry.message_type.as_deref(),
            key_hex: entry.key.as_deref().map(hex),
            reason: entry.reason.as_deref(),
            detail: entry.detail.as_deref(),
            attempts: entry.attempts,
            hand_retries: entry.hand_retries,
            age_seconds: entry.age.as_secs(),
            retry_in_seconds: entry.retry_in.map(|wait| wait.as_secs()),
            written_at: entry.written_at,
            is_first: entry.is_first,
            behind: entry.behind,
            payload_bytes: entry.payload_bytes,
            payload_hex: payload.map(hex),
        }
    }
}
