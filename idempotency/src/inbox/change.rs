//! Changes of one message: tried again, given up, given another payload.

use std::fmt;
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};
use sqlx::{Connection, PgConnection};

use super::{Audit, By, Entry, Place, State, changed_meanwhile, quoted, rolled_back, unchanged};
use crate::error::{Error, Kind};

/// What a retry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retry {
    /// The parked message is tried at once.
    Now,
    /// The dead letter becomes the first parked message of its key, and is tried at once. So many are parked behind
    /// it; what was applied of its key since it was given up stays applied, before it.
    PutBackFirst {
        /// Parked messages of its key with a higher offset.
        behind: u64,
    },
    /// The dead letter is parked in its place behind others of its key, and is tried after them.
    PutBackBehind,
}

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now => f.write_str("is tried at once"),
            Self::PutBackFirst { behind: 0 } => f.write_str(
                "is parked and tried at once, after what was applied of its key meanwhile",
            ),
            Self::PutBackFirst { behind } => write!(
                f,
                "is parked and tried at once, after what was applied of its key meanwhile and before {behind} that are parked"
            ),
            Self::PutBackBehind => f.write_str("is parked behind earlier messages of its key"),
        }
    }
}

const IS_CALLING: &str = "its call is being made, or was broken off with the process that made it, and may have had its effect";

/// What a retry of this message would do. With `u32::MAX` retries it is done whatever speaks against it.
///
/// # Errors
/// [`Kind::Conflict`] where it can not be retried; the text says why and what can be done.
pub fn plan_retry(entry: &Entry, retries_max: u32) -> Result<Retry, Error> {
    let refused = |text: String, mend: &'static str| {
        Err(Error::new(Kind::Conflict, format!("{}: {text}", entry.place)).mended_by(mend))
    };
    if entry.hand_retries >= retries_max {
        let text = format!("it was retried by hand {} times already", entry.hand_retries);
        return refused(text, "find out why it fails; --force retries it all the same");
    }
    match entry.state {
        State::Dead if entry.message_id.is_none() || entry.message_type.is_none() => refused(
            "its record has no readable id or type, so no handler can take it".to_owned(),
            "have it written again by its producer, and discard this one",
        ),
        State::Dead if entry.is_first => Ok(Retry::PutBackFirst { behind: entry.behind }),
        State::Dead => Ok(Retry::PutBackBehind),
        State::Calling if retries_max < u32::MAX => refused(
            IS_CALLING.to_owned(),
            "whoever owns its partition repeats what was broken off by itself: start the consumer, or --force",
        ),
        _ if !entry.is_first => refused(
            "it waits for an earlier message of its key".to_owned(),
            "retry or discard the first message of the key",
        ),
        _ => Ok(Retry::Now),
    }
}

/// Retries a message as [`plan_retry`] says.
///
/// A dead letter is put back with its id, which was claimed when it was set aside; its consumer applies it without
/// another claim, and its id stays a duplicate. For one that is `too_old` or from the `future` it is a person's decision
/// that it has had no effect yet.
///
/// # Errors
/// As [`plan_retry`]; [`Kind::Conflict`] too if it has changed since it was read. What Postgres answers.
pub async fn retry(
    conn: &mut PgConnection,
    entry: &Entry,
    retries_max: u32,
    by: &By,
) -> Result<Retry, Error> {
    let planned = plan_retry(entry, retries_max)?;
    let mut tx = conn.begin().await.map_err(unchanged)?;
    let done = match &entry.place {
        Place::Dead(id) => put_back(&mut tx, entry, *id).await,
        Place::Parked { .. } => {
            set_state(
                &mut tx,
                entry,
                State::Waiting,
                "('stuck', 'waiting', 'queued', 'discard', 'calling')",
            )
            .await
        }
    };
    match done {
        Ok(true) => {}
        Ok(false) => return rolled_back(tx, changed_meanwhile(&entry.place)).await,
        Err(error) => return rolled_back(tx, error).await,
    }
    audit(entry, "retry", None).write(&mut tx, by).await?;
    tx.commit().await.map_err(unchanged)?;
    Ok(planned)
}

/// The row of the dead letter becomes one of a parked message; the first of the key waits, the others stand behind it.
async fn put_back(conn: &mut PgConnection, entry: &Entry, id: i64) -> Result<bool, Error> {
    let put = sqlx::query(
        r#"WITH letter AS (
               DELETE FROM tailrace.dead_letter WHERE id = $1 RETURNING *
           )
           INSERT INTO tailrace.parked_message
               (consumer, topic, partition, "offset", key, message_id, message_type, payload, header_names,
                header_values, written_at, state, retry_at, attempts, reason, detail)
           SELECT consumer, topic, partition, "offset", key, message_id, message_type, payload, header_names,
                  header_values, written_at, CASE WHEN first THEN 'waiting' ELSE 'queued' END,
                  CASE WHEN first THEN now() END, attempts, reason, detail
           FROM letter, LATERAL (SELECT NOT EXISTS (
               SELECT FROM tailrace.parked_message AS other
               WHERE other.consumer = letter.consumer AND other.topic = letter.topic
                 AND other.partition = letter.partition AND sha256(other.key) = sha256(letter.key)
                 AND other.key = letter.key AND other."offset" < letter."offset") AS first) AS place"#,
    )
    .bind(id)
    .execute(&mut *conn)
    .await
    .map_err(|error| match error.as_database_error().and_then(|fault| fault.code()).as_deref() {
        Some("23505") => {
            let text = format!("{}: a message is parked at its offset already", entry.place);
            Error::new(Kind::Conflict, text)
                .caused_by(error)
                .mended_by("decide about that one, or discard this dead letter")
        }
        _ => unchanged(error),
    })?;
    if put.rows_affected() == 0 {
        return Ok(false);
    }
    // Who was the first before is tried when this one is done.
    sqlx::query(
        r#"UPDATE tailrace.parked_message SET state = 'queued', retry_at = NULL
           WHERE consumer = $1 AND topic = $2 AND partition = $3 AND sha256(key) = sha256($4) AND key = $4
             AND "offset" > $5 AND state = 'waiting'"#,
    )
    .bind(&entry.consumer)
    .bind(&entry.topic)
    .bind(entry.partition)
    .bind(&entry.key)
    .bind(entry.offset)
    .execute(conn)
    .await
    .map_err(unchanged)?;
    Ok(true)
}

async fn set_state(
    conn: &mut PgConnection,
    entry: &Entry,
    state: State,
    from: &'static str,
) -> Result<bool, Error> {
    let sql = format!(
        r#"UPDATE tailrace.parked_message
           SET state = $5, retry_at = CASE WHEN $5 = 'waiting' THEN now() END
           WHERE consumer = $1 AND topic = $2 AND partition = $3 AND "offset" = $4 AND state IN {from}"#
    );
    let set = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(&entry.consumer)
        .bind(&entry.topic)
        .bind(entry.partition)
        .bind(entry.offset)
        .bind(state.name())
        .execute(conn)
        .await
        .map_err(unchanged)?;
    Ok(set.rows_affected() == 1)
}

/// What speaks against giving a message up.
///
/// # Errors
/// [`Kind::Conflict`] for one whose call is being made or was broken off.
pub fn plan_discard(entry: &Entry) -> Result<(), Error> {
    if entry.state != State::Calling {
        return Ok(());
    }
    Err(Error::new(Kind::Conflict, format!("{}: {IS_CALLING}", entry.place)).mended_by(
        "ask the other side about it; --force gives it up, and what a call that still runs has done is recorded",
    ))
}

/// Gives a message up: its consumer makes a dead letter of a parked one, and later ones of its key go on; a dead letter
/// is deleted.
///
/// # Errors
/// As [`plan_discard`]; [`Kind::Conflict`] too if it has changed since it was read. What Postgres answers.
pub async fn discard(conn: &mut PgConnection, entry: &Entry, by: &By) -> Result<(), Error> {
    plan_discard(entry)?;
    force_discard(conn, entry, by).await
}

/// As [`discard`], also for a message whose call was begun and how it ended is not known. Where it is still being made
/// and is done, that is recorded and the message counts as applied; else it becomes a dead letter.
///
/// # Errors
/// [`Kind::Conflict`] if it has changed since it was read. What Postgres answers.
pub async fn force_discard(conn: &mut PgConnection, entry: &Entry, by: &By) -> Result<(), Error> {
    let mut tx = conn.begin().await.map_err(unchanged)?;
    let done = match &entry.place {
        Place::Parked { .. } => {
            set_state(&mut tx, entry, State::Discard, "('stuck', 'waiting', 'queued', 'calling')")
                .await?
        }
        Place::Dead(id) => {
            let deleted = sqlx::query("DELETE FROM tailrace.dead_letter WHERE id = $1")
                .bind(id)
                .execute(&mut *tx)
                .await
                .map_err(unchanged)?;
            deleted.rows_affected() == 1
        }
    };
    if !done {
        return rolled_back(tx, changed_meanwhile(&entry.place)).await;
    }
    audit(entry, "discard", None).write(&mut tx, by).await?;
    tx.commit().await.map_err(unchanged)
}

/// Gives a message that waits for a person another payload; the old one stays in the audit, until it is erased.
///
/// It is applied with it when it is retried. `entry` has to come from [`get`](super::get), with its payload.
///
/// # Errors
/// [`Kind::Conflict`] for a message that its consumer is about to try by itself, for one whose call is prepared already
/// and would be made as it was, and if it has changed since it was read. What Postgres answers.
pub async fn edit(
    conn: &mut PgConnection,
    entry: &Entry,
    payload: &[u8],
    by: &By,
) -> Result<(), Error> {
    if !matches!(entry.state, State::Stuck | State::Dead | State::Calling) {
        let text =
            format!("{}: it is {}, and may be tried at any moment", entry.place, entry.state);
        return Err(Error::new(Kind::Conflict, text)
            .mended_by("edit a message that is stuck, or a dead letter"));
    }
    if entry.is_prepared {
        let text =
            format!("{}: its call is prepared already, and made with what is stored", entry.place);
        return Err(Error::new(Kind::Conflict, text)
            .mended_by("retry it as it is, or discard it and edit the dead letter"));
    }
    let mut tx = conn.begin().await.map_err(unchanged)?;
    let edited = match &entry.place {
        Place::Parked { .. } => sqlx::query(
            r#"UPDATE tailrace.parked_message SET payload = $5
               WHERE consumer = $1 AND topic = $2 AND partition = $3 AND "offset" = $4 AND state = 'stuck'
                 AND intent IS NULL AND payload IS NOT DISTINCT FROM $6"#,
        )
        .bind(&entry.consumer)
        .bind(&entry.topic)
        .bind(entry.partition)
        .bind(entry.offset),
        Place::Dead(id) => sqlx::query(
            "UPDATE tailrace.dead_letter SET payload = $2 WHERE id = $1 AND payload IS NOT DISTINCT FROM $3",
        )
        .bind(id),
    };
    let edited =
        edited.bind(payload).bind(&entry.payload).execute(&mut *tx).await.map_err(unchanged)?;
    if edited.rows_affected() != 1 {
        return rolled_back(tx, changed_meanwhile(&entry.place)).await;
    }
    let before = entry.payload.as_ref().map(|old| hex(old));
    audit(entry, "edit", Some((before, hex(payload)))).write(&mut tx, by).await?;
    tx.commit().await.map_err(unchanged)
}

/// `payload` is the old one and the new one, in hexadecimal digits.
fn audit<'a>(
    entry: &'a Entry,
    action: &'static str,
    payload: Option<(Option<String>, String)>,
) -> Audit<'a> {
    let mut before = format!("{{\"place\": {}", quoted(&entry.place.to_string()));
    let mut add = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            before.push_str(&format!(", \"{name}\": {}", quoted(value)));
        }
    };
    add("state", Some(entry.state.name()));
    add("reason", entry.reason.as_deref());
    add("message_id", entry.message_id.map(|id| id.to_string()).as_deref());
    // Not the key itself, which may be a person's: what is erased is found by its hash.
    add("key_sha256", entry.key.as_ref().map(|key| key_hash(key)).as_deref());
    let mut after = None;
    if let Some((old, new)) = payload {
        add("payload_hex", old.as_deref());
        after = Some(format!("{{\"payload_hex\": \"{new}\"}}"));
    }
    before.push('}');
    Audit {
        action,
        consumer: &entry.consumer,
        topic: Some(&entry.topic),
        partition: Some(entry.partition),
        offset: Some(entry.offset),
        before: Some(before),
        after,
    }
}

pub(super) fn key_hash(key: &[u8]) -> String {
    hex(&Sha256::digest(key))
}

fn hex(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // A string takes any text.
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}
