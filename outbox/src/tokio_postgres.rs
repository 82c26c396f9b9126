//! Writing through clients and transactions of tokio-postgres.
//!
//! The same ways to write as the ones over sqlx, as functions that take the [`Outbox`] and
//! anything that is a [`GenericClient`]: a client, a transaction, one of a pool's.
//!
//! One thing is not the same: this client does not tell whether it takes a transaction for open, so
//! a write in one that was ended by a `COMMIT` sent as text is not told from a write without a
//! transaction, and is published at once. [`Kind::Ended`] comes over sqlx alone.
//!
//! ```no_run
//! # #[cfg(feature = "tokio-postgres")]
//! # async fn example(client: &mut ::tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use tailrace_outbox::{Message, Outbox, Store, tokio_postgres};
//!
//! static OUTBOX: Outbox = Outbox::new(Store::Wal);
//!
//! // Once, when the service starts, and once per connection.
//! tokio_postgres::check(&OUTBOX, client).await?;
//! let place = tokio_postgres::prepare(
//!     &OUTBOX,
//!     client,
//!     "INSERT INTO orders (customer, total_cents) VALUES ($1, $2) RETURNING id",
//! )
//! .await?;
//!
//! let message = Message::builder("orders", "order.placed.v1").source("/orders").json(&1).build()?;
//! let tx = client.transaction().await?;
//! let row = place.query_one(&tx, &[&"acme", &1999_i64], &message).await?;
//! tx.commit().await?;
//! # let _id: i64 = row.get(0);
//! # Ok(())
//! # }
//! ```

use ::tokio_postgres::error::ErrorPosition;
use ::tokio_postgres::types::{FromSql, ToSql, Type};
use ::tokio_postgres::{GenericClient, Row, Statement as Handle};

#[cfg(doc)]
use crate::Kind;
use crate::blame::Business;
use crate::check::{self, QUERY, Reply};
use crate::error::Said;
use crate::mapping::Mapping;
use crate::outbox::rows::{self, Value as Part, Values as Parts};
use crate::outbox::{Answer, Place, incomplete, must_fit};
use crate::statement::{Statement, must_have_room, must_return, must_take};
use crate::{Error, Message, Outbox, frame};

const DOING: &str = "the message could not be written";

/// Writes a message in the transaction that is open on this client.
///
/// One round trip, which [`prepare`] saves; no prepared statement is left behind in the session. On a client
/// without a transaction the message is one of its own and is published at once.
///
/// # Errors
///
/// Before anything is sent, [`Kind::Unmapped`] or [`Kind::Invalid`] for what the table of
/// [`Store::Table`](crate::Store::Table) can not hold. [`Kind::Aborted`] if the transaction had
/// failed before; otherwise what the database says, sorted by [`Error::kind`]. The transaction has
/// then failed: roll it back.
pub async fn write<C: GenericClient + Sync>(
    outbox: &Outbox,
    client: &C,
    message: &Message,
) -> Result<(), Error> {
    outbox.must_be_usable()?;
    let parameters = Parameters::of(outbox.mapping(), message)?;
    let rows = client
        .query_typed(&outbox.one(Place::Anywhere), &parameters.typed())
        .await
        .map_err(|error| failed(DOING, error).in_our_statement())?;
    // A trigger may have kept the row out.
    if rows.is_empty() { Err(Error::unwritten()) } else { Ok(()) }
}

/// Writes messages in one statement, in the order given.
///
/// One round trip whatever their number, or none if there is no message.
///
/// # Errors
///
/// [`Kind::TooLarge`], before anything is sent, for more than
/// [`BATCH_MESSAGES_MAX`](crate::BATCH_MESSAGES_MAX) messages or
/// [`BATCH_BYTES_MAX`](crate::BATCH_BYTES_MAX) bytes; otherwise as [`write()`].
pub async fn write_all<C: GenericClient + Sync>(
    outbox: &Outbox,
    client: &C,
    messages: &[Message],
) -> Result<(), Error> {
    match messages {
        [] => return Ok(()),
        // One message may be larger than a batch.
        [message] => return write(outbox, client, message).await,
        _ => {}
    }
    outbox.must_be_usable()?;
    must_fit(messages)?;
    let many = outbox.many(Place::Anywhere);
    let rows = match outbox.mapping() {
        None => {
            let frames: Vec<Vec<u8>> = messages.iter().map(frame::encode).collect();
            client.query_typed(&many, &[(&frames, Type::BYTEA_ARRAY)]).await
        }
        Some(mapping) => {
            let rows = messages.iter().map(|message| rows::row(mapping, message));
            let rows = rows.collect::<Result<Vec<_>, Error>>()?;
            let arrays = rows::arrays(mapping, &rows);
            let arrays: Vec<_> = arrays.iter().map(array).collect();
            client.query_typed(&many, &arrays).await
        }
    };
    let rows = rows.map_err(|error| failed(DOING, error).in_our_statement())?;
    let written: Option<i64> = rows.first().and_then(|row| row.try_get(0).ok());
    if written.and_then(|count| usize::try_from(count).ok()) != Some(messages.len()) {
        return Err(incomplete());
    }
    Ok(())
}

/// What a statement is given for a message.
enum Parameters<'m> {
    Frame(Vec<u8>),
    Row(Vec<Part<'m>>),
}

impl<'m> Parameters<'m> {
    fn of(mapping: Option<&Mapping>, message: &'m Message) -> Result<Self, Error> {
        Ok(match mapping {
            None => Parameters::Frame(frame::encode(message)),
            Some(mapping) => Parameters::Row(rows::row(mapping, message)?),
        })
    }

    fn typed(&self) -> Vec<(&(dyn ToSql + Sync), Type)> {
        match self {
            Parameters::Frame(frame) => vec![(frame, Type::BYTEA)],
            Parameters::Row(row) => row.iter().map(single).collect(),
        }
    }
}

fn single<'p>(part: &'p Part<'_>) -> (&'p (dyn ToSql + Sync), Type) {
    match part {
        Part::Uuid(uuid) => (uuid, Type::UUID),
        Part::Micros(micros) => (micros, Type::INT8),
        Part::Text(text) => (text, Type::TEXT),
        Part::Bytes(bytes) => (bytes, Type::BYTEA),
        Part::Bool(bool) => (bool, Type::BOOL),
    }
}

fn array<'p>(parts: &'p Parts<'_>) -> (&'p (dyn ToSql + Sync), Type) {
    match parts {
        Parts::Uuids(uuids) => (uuids, Type::UUID_ARRAY),
        Parts::Micros(micros) => (micros, Type::INT8_ARRAY),
        Parts::Texts(texts) => (texts, Type::TEXT_ARRAY),
        Parts::Bytes(bytes) => (bytes, Type::BYTEA_ARRAY),
        Parts::Bools(bools) => (bools, Type::BOOL_ARRAY),
    }
}

/// Fails unless what is written now would reach a relay.
///
/// For the start of a service. Sends one query and needs no privilege.
///
/// # Errors
///
/// [`Kind::Setup`] with how to mend it; otherwise what the database says, sorted by
/// [`Error::kind`].
pub async fn check<C: GenericClient + Sync>(outbox: &Outbox, client: &C) -> Result<(), Error> {
    let slot = outbox.slot_name();
    outbox.must_be_usable()?;
    check::must_be_slot(slot)?;
    let schema = outbox.mapping().map(Mapping::schema);
    let table = outbox.mapping().map(Mapping::table);
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&slot, Type::TEXT), (&schema, Type::TEXT), (&table, Type::TEXT)];
    let rows = client
        .query_typed(QUERY, &parameters)
        .await
        .map_err(|error| failed(check::DOING, error))?;
    let row = rows.first().expect("the query has one row");
    let answer: &str = row.try_get(0).map_err(|error| failed(check::DOING, error))?;
    Reply::read(answer).judge(slot, outbox.mapping())
}

/// Prepares a business statement that takes a message along.
///
/// The text is an INSERT, UPDATE, DELETE or MERGE. Like every prepared statement it belongs to
/// the connection of `client`; prepare it once for each and keep it.
///
/// # Errors
///
/// [`Kind::Invalid`], before anything is sent, for a text that is not one statement that changes
/// data; otherwise what the database says.
pub async fn prepare<C: GenericClient + Sync>(
    outbox: &Outbox,
    client: &C,
    statement: &str,
) -> Result<Prepared, Error> {
    outbox.must_be_usable()?;
    let statement = Statement::read(statement)?;
    let returns = statement.has_returning();
    let answer = if returns { Answer::Rows } else { Answer::Count };
    must_have_room(statement.parameters(), outbox.parameters())?;
    let text = outbox.merged(&statement, answer, statement.parameters() + 1, Place::Anywhere);
    let business = Business::within(&text, statement.text());
    let mapping = outbox.mapping().cloned();
    let handle = client.prepare(&text).await.map_err(|error| {
        let error = failed("the merged write could not be prepared", error);
        business.explain(error, mapping.as_ref())
    })?;
    Ok(Prepared { handle, mapping, business, returns, parameters: statement.parameters() })
}

/// Runs a merged write without preparing it, with the type of each value, and gives the number of
/// rows it touched.
///
/// For a connection through a pooler that hands it to another client after each transaction, and
/// that does not know prepared statements: nothing is left in the session. One round trip, in
/// which the server plans the statement anew.
///
/// # Errors
///
/// See [`Prepared`], and [`Kind::Invalid`], before anything is sent, for a text that is not one
/// statement that changes data. No row is [`Kind::NoRow`].
pub async fn execute_typed<C: GenericClient + Sync>(
    outbox: &Outbox,
    client: &C,
    statement: &str,
    values: &TypedValues<'_>,
    message: &Message,
) -> Result<u64, Error> {
    let rows = run_typed(outbox, client, statement, Answer::Count, values, message).await?;
    let touched = if outbox.counts() {
        rows.first().expect("a count has one row").try_get(0).map_err(merged)?
    } else {
        i64::try_from(rows.len()).expect("so many rows fit no memory")
    };
    if touched == 0 {
        return Err(Error::no_row());
    }
    rows.iter().try_for_each(must_be_written)?;
    Ok(u64::try_from(touched).expect("a count is not negative"))
}

/// Runs a merged write with RETURNING without preparing it, with the type of each value, and gives
/// its rows, none of them if it touched none.
///
/// Each row has one more column at its end, which is ours. As [`execute_typed`] otherwise.
///
/// # Errors
///
/// See [`execute_typed`]; no row is none, and [`Kind::Invalid`] for a statement without RETURNING.
pub async fn query_typed<C: GenericClient + Sync>(
    outbox: &Outbox,
    client: &C,
    statement: &str,
    values: &TypedValues<'_>,
    message: &Message,
) -> Result<Vec<Row>, Error> {
    let rows = run_typed(outbox, client, statement, Answer::Rows, values, message).await?;
    rows.iter().try_for_each(must_be_written)?;
    Ok(rows)
}

async fn run_typed<C: GenericClient + Sync>(
    outbox: &Outbox,
    client: &C,
    statement: &str,
    answer: Answer,
    values: &TypedValues<'_>,
    message: &Message,
) -> Result<Vec<Row>, Error> {
    let statement = Statement::read(statement)?;
    must_take(statement.parameters(), values.len())?;
    if answer == Answer::Rows {
        must_return(statement.has_returning())?;
    }
    let text = outbox.merged(&statement, answer, statement.parameters() + 1, Place::Anywhere);
    let parameters = Parameters::of(outbox.mapping(), message)?;
    let all: Vec<_> = values.iter().cloned().chain(parameters.typed()).collect();
    client.query_typed(&text, &all).await.map_err(merged)
}

/// The values of a statement's parameters, each with its type.
pub type TypedValues<'a> = [(&'a (dyn ToSql + Sync), Type)];

/// A merged write: the message travels inside the business statement and costs no round trip.
///
/// Made by [`prepare`]. Every way to run it takes the values of the statement's parameters and
/// the message, and one round trip. There is one message per statement, however many rows it
/// touches, and none if it touches no row: it would tell what did not happen.
///
/// # Errors
///
/// Before anything is sent: [`Kind::Invalid`] for too few or too many values, and for rows asked
/// of a statement without RETURNING; [`Kind::Unmapped`] for what the table of
/// [`Store::Table`](crate::Store::Table) can not hold. After it: [`Kind::NoRow`], upon which the transaction is
/// still good; otherwise what the database says, of the business statement too, sorted by
/// [`Error::kind`], with [`Error::sqlstate`]. The transaction has then failed: roll it back.
#[derive(Clone)]
pub struct Prepared {
    handle: Handle,
    mapping: Option<Mapping>,
    business: Business,
    returns: bool,
    parameters: usize,
}

/// The values of a statement's parameters.
pub type Values<'a> = [&'a (dyn ToSql + Sync)];

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared")
            .field("returns", &self.returns)
            .field("parameters", &self.parameters)
            .finish_non_exhaustive()
    }
}

impl Prepared {
    /// Runs a statement with RETURNING and gives its first row.
    ///
    /// The row has one more column at its end, which is ours.
    ///
    /// # Errors
    ///
    /// See [`Prepared`]; no row is [`Kind::NoRow`].
    pub async fn query_one<C: GenericClient + Sync>(
        &self,
        client: &C,
        values: &Values<'_>,
        message: &Message,
    ) -> Result<Row, Error> {
        self.query_opt(client, values, message).await?.ok_or_else(Error::no_row)
    }

    /// Runs a statement with RETURNING and gives its first row, if there is one.
    ///
    /// # Errors
    ///
    /// See [`Prepared`]; no row is none.
    pub async fn query_opt<C: GenericClient + Sync>(
        &self,
        client: &C,
        values: &Values<'_>,
        message: &Message,
    ) -> Result<Option<Row>, Error> {
        Ok(self.query(client, values, message).await?.into_iter().next())
    }

    /// Runs a statement with RETURNING and gives its rows, none of them if it touched none.
    ///
    /// # Errors
    ///
    /// See [`Prepared`]; no row is none.
    pub async fn query<C: GenericClient + Sync>(
        &self,
        client: &C,
        values: &Values<'_>,
        message: &Message,
    ) -> Result<Vec<Row>, Error> {
        must_return(self.returns)?;
        let rows = self.run(client, values, message).await?;
        rows.iter().try_for_each(must_be_written)?;
        Ok(rows)
    }

    /// Runs a statement, with RETURNING or without, and gives the number of rows it touched.
    ///
    /// # Errors
    ///
    /// See [`Prepared`]; no row is [`Kind::NoRow`].
    pub async fn execute<C: GenericClient + Sync>(
        &self,
        client: &C,
        values: &Values<'_>,
        message: &Message,
    ) -> Result<u64, Error> {
        let rows = self.run(client, values, message).await?;
        let touched = if self.returns || self.mapping.is_none() {
            i64::try_from(rows.len()).expect("so many rows fit no memory")
        } else {
            rows.first().expect("a count has one row").try_get(0).map_err(merged)?
        };
        if touched == 0 {
            return Err(Error::no_row());
        }
        rows.iter().try_for_each(must_be_written)?;
        Ok(u64::try_from(touched).expect("a count is not negative"))
    }

    async fn run<C: GenericClient + Sync>(
        &self,
        client: &C,
        values: &Values<'_>,
        message: &Message,
    ) -> Result<Vec<Row>, Error> {
        must_take(self.parameters, values.len())?;
        let parameters = Parameters::of(self.mapping.as_ref(), message)?;
        let message = parameters.typed().into_iter().map(|(value, _)| value);
        let all: Vec<_> = values.iter().copied().chain(message).collect();
        client
            .query(&self.handle, &all)
            .await
            .map_err(|error| self.business.explain(merged(error), self.mapping.as_ref()))
    }
}

/// A value of whatever type, of which only its being there counts.
struct Present;

impl FromSql<'_> for Present {
    fn from_sql(
        _: &Type,
        _: &[u8],
    ) -> Result<Self, Box<dyn std::error::Error + Sync + Send + 'static>> {
        Ok(Present)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Fails unless the row says that the message was written.
fn must_be_written(row: &Row) -> Result<(), Error> {
    let last = row.len().checked_sub(1).expect("the statement has a column of its own");
    match row.try_get::<_, Option<Present>>(last).map_err(merged)? {
        Some(Present) => Ok(()),
        None => Err(Error::unwritten()),
    }
}

fn merged(error: ::tokio_postgres::Error) -> Error {
    failed("the merged write failed", error)
}

fn failed(doing: &'static str, error: ::tokio_postgres::Error) -> Error {
    let said = error.as_db_error().map(|fault| Said {
        state: fault.code().code().to_owned(),
        message: fault.message().to_owned(),
        position: match fault.position() {
            Some(ErrorPosition::Original(place)) => usize::try_from(*place).ok(),
            _ => None,
        },
    });
    let io = std::error::Error::source(&error).is_some_and(|source| source.is::<std::io::Error>());
    Error::sorted(doing, said, io || error.is_closed()).caused_by(error)
}

#[cfg(test)]
#[cfg(feature = "sqlx")]
mod tests;
