//! A database, a slot and a publication for each test.

use std::time::Duration;

use tailrace_stack::{Database, Postgres, Stack};
use tokio::time::{Instant, timeout};

use crate::error::Error;
use crate::lsn::Lsn;
use crate::pgoutput::{Change, decode};
use crate::replication::{Client, Endpoint, Event, Large, Stream, quote_identifier, quote_literal};

/// No answer of a healthy server takes so long.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

/// A database of its own with a slot and an empty publication, all named after the test.
pub(super) struct Source {
    pub(super) url: String,
    pub(super) endpoint: Endpoint,
    pub(super) slot: String,
    pub(super) publication: String,
    pub(super) sql: Client,
    /// Keeps the database on a server that drops it.
    _database: Database,
}

impl Source {
    /// As [`Source::without_slot`], and the slot.
    pub(super) async fn new(name: &str) -> Source {
        let mut source = Source::without_slot(name).await;
        source.make_slot().await;
        source
    }

    pub(super) async fn make_slot(&mut self) {
        self.try_make_slot().await.unwrap();
    }

    pub(super) async fn try_make_slot(&mut self) -> Result<(), Error> {
        let slot = quote_literal(&self.slot);
        let sql = format!("SELECT pg_create_logical_replication_slot({slot}, 'pgoutput')");
        self.sql.query(&sql).await.map(drop)
    }

    pub(super) async fn without_slot(name: &str) -> Source {
        Source::on(Stack::shared().await.postgres(), name).await
    }

    /// As [`Source::without_slot`], on a server that the test may break.
    pub(super) async fn on(postgres: &Postgres, name: &str) -> Source {
        let database = postgres.fresh_database(name).await.unwrap();
        let url = database.url().to_owned();
        let endpoint = Endpoint::parse(&url).unwrap();
        let mut sql = Client::connect(&endpoint).await.unwrap();
        let publication = format!("{name}_publication");
        sql.query(&format!("CREATE PUBLICATION {}", quote_identifier(&publication))).await.unwrap();
        // Slots belong to the whole server, and the database's name is unique there.
        let slot = endpoint.database().to_owned();
        Source { url, endpoint, slot, publication, sql, _database: database }
    }

    pub(super) async fn stream(&self) -> Stream {
        self.try_stream().await.unwrap()
    }

    pub(super) async fn try_stream(&self) -> Result<Stream, Error> {
        self.try_stream_with(Large::AtCommit).await
    }

    pub(super) async fn try_stream_with(&self, large: Large) -> Result<Stream, Error> {
        Client::connect(&self.endpoint)
            .await?
            .start_replication(&self.slot, &self.publication, large)
            .await
    }

    pub(super) async fn run(&mut self, sql: &str) {
        self.sql.query(sql).await.unwrap();
    }

    /// The only value that the query returns.
    pub(super) async fn value(&mut self, sql: &str) -> String {
        let rows = self.sql.query(sql).await.unwrap();
        rows[0].get(0).unwrap_or_default().to_owned()
    }

    /// Asks until the query's only value is true.
    pub(super) async fn until(&mut self, sql: &str) {
        let deadline = Instant::now() + DEADLINE;
        while self.value(sql).await != "t" {
            assert!(Instant::now() < deadline, "never came true: {sql}");
        }
    }

    /// The same place with another role, password or database.
    pub(super) fn endpoint_with(&self, parameters: &str) -> Endpoint {
        let separator = if self.url.contains('?') { '&' } else { '?' };
        Endpoint::parse(&format!("{}{separator}{parameters}", self.url)).unwrap()
    }
}

/// The next event; the test fails when it does not come or is an error.
pub(super) async fn next(stream: &mut Stream) -> Event<'_> {
    timeout(DEADLINE, stream.next()).await.expect("the stream goes on").unwrap()
}

/// Reads until the stream ends in the error that is returned.
pub(super) async fn until_error(stream: &mut Stream) -> Error {
    loop {
        match timeout(DEADLINE, stream.next()).await.expect("the stream ends") {
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

/// Shows the changes up to and with so many commits, one line each.
pub(super) async fn until_commits(stream: &mut Stream, mut commits: usize) -> Vec<String> {
    let mut lines = Vec::new();
    while commits > 0 {
        let Event::Data { wal_start, body, .. } = next(stream).await else { continue };
        let change = decode(body, wal_start).unwrap();
        commits -= usize::from(matches!(change, Change::Commit { .. }));
        lines.push(show(&change));
    }
    lines
}

fn show(change: &Change<'_>) -> String {
    match change {
        Change::Begin { .. } => "begin".into(),
        Change::Commit { commit_lsn, end_lsn, .. } => {
            assert!(Lsn(0) < *commit_lsn && commit_lsn < end_lsn);
            "commit".into()
        }
        Change::Message { transactional, prefix, content, .. } => {
            let content = String::from_utf8_lossy(content);
            format!("{prefix} {content}{}", if *transactional { "" } else { " alone" })
        }
        other => format!("{other:?}"),
    }
}
