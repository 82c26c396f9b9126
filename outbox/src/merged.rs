//! The merged write: the message travels inside the business statement.

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{
    Arguments, AssertSqlSafe, Encode, Execute, FromRow, PgConnection, Postgres, Row, SqlStr, Type,
    ValueRef,
};

use crate::blame::Business;
use crate::outbox::{Answer, Place};
use crate::statement::{Statement, must_have_room, must_return, must_take};
use crate::write::place;
use crate::{Error, Kind, Message, Outbox, Store};

static DEFAULT: Outbox = Outbox::new(Store::Wal);

const DOING: &str = "the merged write failed";

/// Begins a merged write to the default store: [`Outbox::merge`].
pub fn merge<'q>(statement: impl Execute<'q, Postgres>) -> Merge<'static> {
    DEFAULT.merge(statement)
}

impl Outbox {
    /// Begins a merged write: a business statement that takes a message along.
    ///
    /// One statement to the database for both, so the message costs no round trip. Takes the
    /// text of an INSERT, UPDATE, DELETE or MERGE, or a query of sqlx with what is bound to it,
    /// also one of its macros.
    ///
    /// ```no_run
    /// # use tailrace_outbox::{Error, Message, Outbox, Store};
    /// # async fn example(tx: &mut sqlx::PgConnection, message: Message) -> Result<(), Error> {
    /// let outbox = Outbox::new(Store::Wal);
    /// let (id,): (i64,) = outbox
    ///     .merge("INSERT INTO orders (customer, total_cents) VALUES ($1, $2) RETURNING id")
    ///     .bind("acme")
    ///     .bind(1999_i64)
    ///     .message(&message)
    ///     .fetch_one(tx)
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Contract
    ///
    /// - One message per statement, however many rows the statement touches.
    /// - No row touched, no message: it would tell what did not happen.
    ///   [`fetch_one`](Merged::fetch_one), [`fetch_all`](Merged::fetch_all) and
    ///   [`execute`](Merged::execute) then fail with [`Kind::NoRow`];
    ///   [`fetch_optional`](Merged::fetch_optional) gives `None`, and
    ///   [`allow_none`](Merged::allow_none) makes it no error.
    /// - Without a message there is nothing to send: only [`Merge::message`] leads on.
    /// - The statement is prepared once per connection and text, as sqlx does it.
    /// - A statement that can not have RETURNING is refused by Postgres: a MERGE before Postgres 17,
    ///   or one on a view or table whose rules replace it by something without.
    /// - With [`Store::Journal`] and [`Store::Table`] the statement is sent inside `WITH`, and what
    ///   can not stand there is refused too: another statement that changes data in a `WITH` of
    ///   its own, or a table with rules that add statements.
    ///
    /// # A message that needs a generated id
    ///
    /// The message is bound together with the statement, so it can not hold what the statement
    /// generates. Mint the id in the service (a UUID v7 costs an index no more than a sequence
    /// does), or take the id from the sequence before (`SELECT nextval(…)`, one round trip), or
    /// have the database write the message, by the SQL function `tailrace.emit` over the row of
    /// the CTE:
    ///
    /// ```sql
    /// WITH placed AS (
    ///     INSERT INTO orders (customer, total_cents) VALUES ($1, $2) RETURNING id, customer
    /// )
    /// SELECT id, tailrace.emit('orders', 'order-' || id, 'order.placed.v1',
    ///                          jsonb_build_object('order', id, 'customer', customer))
    /// FROM placed
    /// ```
    ///
    /// There `emit` stands in the outermost SELECT, and has to: in a CTE nobody reads, it would
    /// not run.
    pub fn merge<'q>(&self, mut statement: impl Execute<'q, Postgres>) -> Merge<'_> {
        // In this order: once its arguments are taken, a mapped query says that it is not.
        let persistent = statement.persistent();
        let arguments = statement.take_arguments();
        Merge {
            outbox: self,
            arguments: arguments
                .map(Option::unwrap_or_default)
                .map_err(|error| unbound(sqlx::Error::Encode(error))),
            persistent: persistent && self.prepares(),
            text: statement.sql(),
        }
    }
}

/// A business statement that waits for its message.
///
/// Made by [`merge()`] or [`Outbox::merge`].
#[derive(Debug)]
#[must_use = "nothing is sent before the message is given and the statement is run"]
pub struct Merge<'o> {
    outbox: &'o Outbox,
    text: SqlStr,
    arguments: Result<PgArguments, Error>,
    persistent: bool,
}

impl<'o> Merge<'o> {
    /// Binds the statement's next parameter.
    ///
    /// A value that does not encode is an error when the statement is run.
    pub fn bind<'t>(mut self, value: impl Encode<'t, Postgres> + Type<Postgres>) -> Self {
        if let Ok(arguments) = &mut self.arguments
            && let Err(error) = arguments.add(value)
        {
            self.arguments = Err(unbound(sqlx::Error::Encode(error)));
        }
        self
    }

    /// The message that the statement takes along.
    pub fn message<'m>(self, message: &'m Message) -> Merged<'o, 'm> {
        Merged { merge: self, message, allow_none: false }
    }
}

/// A business statement with its message, ready to run.
///
/// Every way to run it needs one round trip and takes the caller's connection or transaction
/// (`&mut *tx`). On a connection without a transaction statement and message are one of their
/// own, and are committed at once.
///
/// # Errors
///
/// Before anything is sent: [`Kind::Invalid`] for a text that is not one statement that changes
/// data, or if more or fewer values are bound than it has parameters; [`Kind::Unmapped`] for what
/// the table of [`Store::Table`] can not hold. After it: [`Kind::NoRow`], upon which the transaction
/// is still good; [`Kind::Ended`], with debug assertions, if sqlx takes a transaction for open and it
/// is not; otherwise what the database says, of the business statement too, sorted by
/// [`Error::kind`], with [`Error::sqlstate`]. The transaction has then failed: roll it back. Only a
/// row that is not of the type asked for is an error without a SQLSTATE, and after everything is
/// done: a transaction can still be rolled back, but without one statement and message are
/// committed.
#[derive(Debug)]
#[must_use = "nothing is sent before the statement is run"]
pub struct Merged<'o, 'm> {
    merge: Merge<'o>,
    message: &'m Message,
    allow_none: bool,
}

impl Merged<'_, '_> {
    /// Makes it no error if the statement touches no row; there is no message then.
    pub fn allow_none(mut self) -> Self {
        self.allow_none = true;
        self
    }

    /// Runs a statement with RETURNING and gives its first row.
    ///
    /// No row is [`Kind::NoRow`], also with [`Merged::allow_none`].
    ///
    /// # Errors
    ///
    /// See [`Merged`].
    pub async fn fetch_one<T>(self, connection: &mut PgConnection) -> Result<T, Error>
    where
        T: for<'r> FromRow<'r, PgRow>,
    {
        self.fetch_optional(connection).await?.ok_or_else(Error::no_row)
    }

    /// Runs a statement with RETURNING and gives its first row, if there is one.
    ///
    /// # Errors
    ///
    /// See [`Merged`]; no row is none.
    pub async fn fetch_optional<T>(self, connection: &mut PgConnection) -> Result<Option<T>, Error>
    where
        T: for<'r> FromRow<'r, PgRow>,
    {
        let rows = self.rows(connection).await?;
        rows.first().map(T::from_row).transpose().map_err(unread)
    }

    /// Runs a statement with RETURNING and gives all of its rows.
    ///
    /// # Errors
    ///
    /// See [`Merged`].
    pub async fn fetch_all<T>(self, connection: &mut PgConnection) -> Result<Vec<T>, Error>
    where
        T: for<'r> FromRow<'r, PgRow>,
    {
        let allow_none = self.allow_none;
        let rows = self.rows(connection).await?;
        if rows.is_empty() && !allow_none {
            return Err(Error::no_row());
        }
        rows.iter().map(|row| T::from_row(row).map_err(unread)).collect()
    }

    /// Runs a statement, with RETURNING or without, and gives the number of rows it touched.
    ///
    /// With RETURNING, the number of rows it returns.
    ///
    /// # Errors
    ///
    /// See [`Merged`].
    pub async fn execute(self, connection: &mut PgConnection) -> Result<u64, Error> {
        let allow_none = self.allow_none;
        match self.touch(connection).await? {
            0 if !allow_none => Err(Error::no_row()),
            touched => Ok(touched),
        }
    }

    async fn touch(self, connection: &mut PgConnection) -> Result<u64, Error> {
        let outbox = self.merge.outbox;
        #[cfg(feature = "testing")]
        let message = self.message;
        let (query, business) = self.query(Answer::Count, place(connection))?;
        let failed = |error| business.explain(failed(error), outbox.mapping());
        let touched = if outbox.counts() {
            let row = query.fetch_one(&mut *connection).await.map_err(failed)?;
            let touched = count(&row)?;
            if touched > 0 {
                must_be_written(&row)?;
            }
            touched
        } else {
            // The rows say no more than their number does, and there may be many.
            query.execute(&mut *connection).await.map_err(failed)?.rows_affected()
        };
        #[cfg(feature = "testing")]
        if touched > 0 {
            crate::testing::note(outbox, connection, std::slice::from_ref(message)).await?;
        }
        Ok(touched)
    }

    /// The rows of an answer, each of which says that the message was written.
    async fn rows(self, connection: &mut PgConnection) -> Result<Vec<PgRow>, Error> {
        let outbox = self.merge.outbox;
        #[cfg(feature = "testing")]
        let message = self.message;
        let (query, business) = self.query(Answer::Rows, place(connection))?;
        let failed = |error| business.explain(failed(error), outbox.mapping());
        let rows = query.fetch_all(&mut *connection).await.map_err(failed)?;
        rows.iter().try_for_each(must_be_written)?;
        #[cfg(feature = "testing")]
        if !rows.is_empty() {
            crate::testing::note(outbox, connection, std::slice::from_ref(message)).await?;
        }
        Ok(rows)
    }

    /// The whole statement, and everything bound to it.
    fn query(
        self,
        answer: Answer,
        place: Place,
    ) -> Result<(Query<'static, Postgres, PgArguments>, Business), Error> {
        let Merge { outbox, text, arguments, persistent } = self.merge;
        outbox.must_be_usable()?;
        let mut arguments = arguments?;
        let statement = Statement::read(text.as_str())?;
        must_take(statement.parameters(), arguments.len())?;
        must_have_room(arguments.len(), outbox.parameters())?;
        if answer == Answer::Rows {
            must_return(statement.has_returning())?;
        }
        let text = outbox.merged(&statement, answer, arguments.len() + 1, place);
        outbox.bind(self.message, &mut arguments)?;
        let business = Business::within(&text, statement.text());
        Ok((sqlx::query_with(AssertSqlSafe(text), arguments).persistent(persistent), business))
    }
}

/// What the row of [`Answer::Count`] says.
fn count(row: &PgRow) -> Result<u64, Error> {
    let count: i64 = row.try_get(0).map_err(failed)?;
    Ok(u64::try_from(count).expect("a count is not negative"))
}

/// Fails unless the row says that the message was written.
fn must_be_written(row: &PgRow) -> Result<(), Error> {
    let last = row.len().checked_sub(1).expect("the statement has a column of its own");
    if row.try_get_raw(last).map_err(failed)?.is_null() {
        return Err(Error::unwritten());
    }
    Ok(())
}

fn unbound(error: sqlx::Error) -> Error {
    Error::invalid("a value of the business statement does not encode").caused_by(error)
}

/// A row that is not what the caller takes it for: only known when everything has been done.
fn unread(error: sqlx::Error) -> Error {
    let text = "the statement has run with its message, but its row is not of the type asked for";
    Error::new(Kind::Database, text)
        .mended_by("roll back; without a transaction it is committed and the message published")
        .caused_by(error)
}

fn failed(error: sqlx::Error) -> Error {
    Error::database(DOING, error)
}

#[cfg(test)]
mod tests;
