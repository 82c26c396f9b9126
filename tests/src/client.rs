//! A connection of a writer, through either client library, and every way to write on it.

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, Executor, PgConnection, Row};
use tailrace_outbox::tokio_postgres::Prepared;
use tailrace_outbox::{Message, Outbox, Store};
use tokio_postgres::NoTls;

use crate::writers::Expected;

/// By which the server knows a writer's connection.
pub(crate) const APPLICATION: &str = "writer";

/// Counts the committed messages of a key under a lock on its row, which is held until the end
/// of the transaction: so the count is the order of the commits.
const PLACE: &str = "insert into place values ($1, 1) on conflict (key) \
                     do update set last = place.last + 1 returning last";
const EXPECT: &str = "insert into expected values ($1, $2, $3, $4, $5)";
const EMIT: &str = "select tailrace.emit($1, $2, $3, $4::text::jsonb, source => $5, \
                    subject => $6, headers => jsonb_build_object('place', $7::text), id => $8)";

static LOG: Outbox = Outbox::new(Store::Wal);
static JOURNAL: Outbox = Outbox::new(Store::Journal);

/// What a client library or the server complains about.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How a message comes into its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Inside the business statement, to the log.
    Merged,
    /// In a statement of its own, to the log.
    Separate,
    /// With others in one statement, to the log.
    Together,
    /// Inside the business statement, to the journal.
    MergedIntoJournal,
    /// In a statement of its own, to the journal.
    SeparateIntoJournal,
    /// With others in one statement, to the journal.
    TogetherIntoJournal,
    /// By the SQL function.
    Emitted,
}

impl Way {
    /// Every way, and what it is called in a report.
    pub const ALL: [(Way, &str); 7] = [
        (Way::Merged, "written merged"),
        (Way::Separate, "written separately"),
        (Way::Together, "written by write_all"),
        (Way::MergedIntoJournal, "journal: merged"),
        (Way::SeparateIntoJournal, "journal: separately"),
        (Way::TogetherIntoJournal, "journal: by write_all"),
        (Way::Emitted, "written by tailrace.emit"),
    ];

    fn outbox(self) -> &'static Outbox {
        match self {
            Way::Merged | Way::Separate | Way::Together | Way::Emitted => &LOG,
            Way::MergedIntoJournal | Way::SeparateIntoJournal | Way::TogetherIntoJournal => {
                &JOURNAL
            }
        }
    }
}

/// A connection, and the library that it is through.
pub(crate) enum Client {
    Sqlx(PgConnection),
    TokioPostgres(Box<Through>),
}

/// What tokio-postgres wants to be prepared once for each connection.
pub(crate) struct Through {
    client: tokio_postgres::Client,
    merged: Prepared,
    merged_into_journal: Prepared,
}

impl Client {
    pub(crate) async fn through_sqlx(url: &str) -> Result<Self, Failure> {
        let options: PgConnectOptions = url.parse()?;
        let options = options.application_name(APPLICATION);
        Ok(Client::Sqlx(PgConnection::connect_with(&options).await?))
    }

    /// Demands the journal to be there.
    pub(crate) async fn through_tokio_postgres(url: &str) -> Result<Self, Failure> {
        let mut config: tokio_postgres::Config = url.parse()?;
        let (client, connection) = config.application_name(APPLICATION).connect(NoTls).await?;
        // How it ends is told to the client.
        tokio::spawn(async move { connection.await.ok() });
        let merged = tailrace_outbox::tokio_postgres::prepare(&LOG, &client, EXPECT).await?;
        let merged_into_journal =
            tailrace_outbox::tokio_postgres::prepare(&JOURNAL, &client, EXPECT).await?;
        Ok(Client::TokioPostgres(Box::new(Through { client, merged, merged_into_journal })))
    }

    /// Connects anew, through the same library.
    pub(crate) async fn again(&self, url: &str) -> Result<Self, Failure> {
        match self {
            Client::Sqlx(_) => Self::through_sqlx(url).await,
            Client::TokioPostgres(_) => Self::through_tokio_postgres(url).await,
        }
    }

    pub(crate) async fn run(&mut self, sql: &'static str) -> Result<(), Failure> {
        match self {
            Client::Sqlx(connection) => connection.execute(sql).await.map(|_| ())?,
            Client::TokioPostgres(through) => through.client.batch_execute(sql).await?,
        }
        Ok(())
    }

    /// The server's process of this connection.
    pub(crate) async fn process(&mut self) -> Result<i32, Failure> {
        let sql = "select pg_backend_pid()";
        Ok(match self {
            Client::Sqlx(connection) => sqlx::query_scalar(sql).fetch_one(&mut *connection).await?,
            Client::TokioPostgres(through) => through.client.query_one(sql, &[]).await?.get(0),
        })
    }

    pub(crate) async fn place(&mut self, key: &str) -> Result<i64, Failure> {
        Ok(match self {
            Client::Sqlx(connection) => {
                sqlx::query(PLACE).bind(key).fetch_one(&mut *connection).await?.try_get(0)?
            }
            Client::TokioPostgres(through) => {
                through.client.query_one(PLACE, &[&key]).await?.try_get(0)?
            }
        })
    }

    /// Writes a message and, as the business of this transaction, its row in `expected`.
    pub(crate) async fn write(
        &mut self,
        way: Way,
        expected: &Expected,
        message: &Message,
    ) -> Result<(), Failure> {
        match way {
            Way::Merged | Way::MergedIntoJournal => self.merge(way, expected, message).await,
            Way::Emitted => {
                self.expect(expected).await?;
                self.emit(expected, message).await
            }
            Way::Separate | Way::Together | Way::SeparateIntoJournal | Way::TogetherIntoJournal => {
                self.write_all(way, std::slice::from_ref(expected), std::slice::from_ref(message))
                    .await
            }
        }
    }

    /// Writes rows in `expected`, and then their messages with one call.
    pub(crate) async fn write_all(
        &mut self,
        way: Way,
        expected: &[Expected],
        messages: &[Message],
    ) -> Result<(), Failure> {
        for expected in expected {
            self.expect(expected).await?;
        }
        let outbox = way.outbox();
        match self {
            Client::Sqlx(connection) => outbox.write_all(connection, messages).await?,
            Client::TokioPostgres(through) => {
                let client = &through.client;
                tailrace_outbox::tokio_postgres::write_all(outbox, client, messages).await?;
            }
        }
        Ok(())
    }

    async fn merge(&mut self, way: Way, row: &Expected, message: &Message) -> Result<(), Failure> {
        let Expected { id, topic, key, place, payload } = row;
        match self {
            Client::Sqlx(connection) => {
                way.outbox()
                    .merge(EXPECT)
                    .bind(id)
                    .bind(topic)
                    .bind(key)
                    .bind(place)
                    .bind(payload)
                    .message(message)
                    .execute(connection)
                    .await?;
            }
            Client::TokioPostgres(through) => {
                let merged = match way {
                    Way::MergedIntoJournal => &through.merged_into_journal,
                    _ => &through.merged,
                };
                let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
                    [id, topic, key, place, payload];
                merged.execute(&through.client, &values, message).await?;
            }
        }
        Ok(())
    }

    async fn expect(&mut self, row: &Expected) -> Result<(), Failure> {
        let Expected { id, topic, key, place, payload } = row;
        match self {
            Client::Sqlx(connection) => {
                sqlx::query(EXPECT)
                    .bind(id)
                    .bind(topic)
                    .bind(key)
                    .bind(place)
                    .bind(payload)
                    .execute(&mut *connection)
                    .await?;
            }
            Client::TokioPostgres(through) => {
                through.client.execute(EXPECT, &[id, topic, key, place, payload]).await?;
            }
        }
        Ok(())
    }

    async fn emit(&mut self, row: &Expected, message: &Message) -> Result<(), Failure> {
        let (r#type, source, subject) = (message.r#type(), message.source(), message.subject());
        let place = row.place.to_string();
        match self {
            Client::Sqlx(connection) => {
                sqlx::query(EMIT)
                    .bind(&row.topic)
                    .bind(&row.key)
                    .bind(r#type)
                    .bind(&row.payload)
                    .bind(source)
                    .bind(subject)
                    .bind(&place)
                    .bind(row.id)
                    .execute(&mut *connection)
                    .await?;
            }
            Client::TokioPostgres(through) => {
                let values: [&(dyn tokio_postgres::types::ToSql + Sync); 8] = [
                    &row.topic,
                    &row.key,
                    &r#type,
                    &row.payload,
                    &source,
                    &subject,
                    &place,
                    &row.id,
                ];
                through.client.query_one(EMIT, &values).await?;
            }
        }
        Ok(())
    }
}
