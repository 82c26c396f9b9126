//! One service: a connection, and the transactions it makes.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tailrace_outbox::Message;
use uuid::Uuid;

use crate::client::{Client, Failure, Way};
use crate::writers::{Dice, Expected, Written};

/// Messages of the big transaction, each with a payload of about this many bytes.
const BIG_MESSAGES: usize = 120;
const BIG_PAYLOAD_BYTES: usize = 400;

/// A server's process that is told to end has ended by then.
const END_MAX: Duration = Duration::from_secs(20);

/// What a writer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Habit {
    /// Writes to the log, each message in a statement of its own.
    Plain,
    /// Writes in every way, and loses its connection now and then. Demands the journal.
    Every,
}

impl Habit {
    /// Keys that transactions share.
    fn keys(self) -> u64 {
        match self {
            Habit::Plain => 24,
            Habit::Every => 256,
        }
    }
}

/// A message of the transaction that is open.
struct Open {
    id: Uuid,
    way: Way,
}

/// A service that writes messages in transactions of every shape.
pub(crate) struct Writer {
    url: String,
    topics: Vec<String>,
    habit: Habit,
    dice: Dice,
    client: Client,
    open: Vec<Open>,
    pub(crate) written: Written,
}

impl Writer {
    pub(crate) fn new(
        url: &str,
        topics: &[String],
        habit: Habit,
        dice: Dice,
        client: Client,
    ) -> Self {
        Writer {
            url: url.to_owned(),
            topics: topics.to_vec(),
            habit,
            dice,
            client,
            open: Vec::new(),
            written: Written::default(),
        }
    }

    /// One transaction of whatever shape comes up.
    pub(crate) async fn transaction(&mut self) -> Result<(), Failure> {
        match self.habit {
            Habit::Plain => match self.dice.below(20) {
                0..=7 => self.one().await,
                8..=11 => self.several_with_rows_between().await,
                12..=13 => self.rolled_back().await,
                14..=16 => self.rolled_back_to_a_savepoint().await,
                17 => self.of_other_prefixes().await,
                18 => self.without_a_key().await,
                _ => self.big().await,
            },
            Habit::Every => match self.dice.below(100) {
                0..=49 => self.one().await,
                50..=64 => self.several_with_rows_between().await,
                65..=74 => self.together().await,
                75..=80 => self.rolled_back().await,
                81..=91 => self.rolled_back_to_a_savepoint().await,
                92..=93 => self.of_other_prefixes().await,
                94..=97 => self.without_a_key().await,
                98 => self.cut_off_before_the_commit().await,
                _ => self.cut_off_inside_the_commit().await,
            },
        }
    }

    /// Begins a transaction and leaves it open, with messages in it.
    pub(crate) async fn half(&mut self) -> Result<(), Failure> {
        let keys = self.keys(3);
        self.client.run("begin").await?;
        for key in keys {
            self.message(Some(key), 20).await?;
        }
        Ok(())
    }

    /// Commits what is open.
    pub(crate) async fn commit(&mut self) -> Result<(), Failure> {
        self.client.run("commit").await?;
        self.written.committed += 1;
        self.written.messages += self.open.len();
        for Open { way, .. } in self.open.drain(..) {
            *self.written.ways.entry(way).or_default() += 1;
        }
        Ok(())
    }

    async fn one(&mut self) -> Result<(), Failure> {
        let key = self.key();
        self.client.run("begin").await?;
        self.message(Some(key), 20).await?;
        self.commit().await
    }

    async fn several_with_rows_between(&mut self) -> Result<(), Failure> {
        let keys = self.keys(4);
        self.client.run("begin").await?;
        for key in keys {
            self.noise().await?;
            self.message(Some(key), 40).await?;
        }
        self.noise().await?;
        self.commit().await
    }

    async fn together(&mut self) -> Result<(), Failure> {
        let count = 2 + self.dice.below(5);
        let keys = self.keys(count);
        let way = self.pick([Way::Together, Way::TogetherIntoJournal]);
        self.client.run("begin").await?;
        let (mut expected, mut messages) = (Vec::new(), Vec::new());
        for key in keys {
            let (row, message) = self.draft(Some(key), 20).await?;
            self.open.push(Open { id: row.id, way });
            expected.push(row);
            messages.push(message);
        }
        self.client.write_all(way, &expected, &messages).await?;
        self.commit().await
    }

    async fn rolled_back(&mut self) -> Result<(), Failure> {
        let key = self.key();
        self.client.run("begin").await?;
        self.message(Some(key), 20).await?;
        self.message(Some(key), 20).await?;
        self.client.run("rollback").await?;
        self.discard_from(0);
        Ok(())
    }

    async fn rolled_back_to_a_savepoint(&mut self) -> Result<(), Failure> {
        let key = self.key();
        self.client.run("begin").await?;
        self.message(Some(key), 20).await?;
        self.client.run("savepoint inner_part").await?;
        self.noise().await?;
        self.message(Some(key), 20).await?;
        self.client.run("rollback to savepoint inner_part").await?;
        self.discard_from(1);
        self.message(Some(key), 20).await?;
        self.client.run("savepoint kept_part").await?;
        self.message(Some(key), 20).await?;
        self.client.run("release savepoint kept_part").await?;
        self.commit().await
    }

    /// Messages of other programs, and one outside of any transaction, with bytes that are no
    /// frame: whoever took them for ours would stop there.
    async fn of_other_prefixes(&mut self) -> Result<(), Failure> {
        let key = self.key();
        self.client.run("begin").await?;
        self.client.run("select pg_logical_emit_message(true, 'tailrac', 'no')").await?;
        self.message(Some(key), 20).await?;
        self.client.run("select pg_logical_emit_message(true, 'tailrace2', 'no')").await?;
        self.client.run("select pg_logical_emit_message(false, 'tailrace', 'no')").await?;
        self.commit().await
    }

    async fn without_a_key(&mut self) -> Result<(), Failure> {
        self.client.run("begin").await?;
        self.message(None, 20).await?;
        self.commit().await
    }

    async fn big(&mut self) -> Result<(), Failure> {
        let keys = self.keys(3);
        self.client.run("begin").await?;
        for at in 0..BIG_MESSAGES {
            let key = keys.get(at * keys.len() / BIG_MESSAGES).copied();
            self.message(key, BIG_PAYLOAD_BYTES).await?;
        }
        self.commit().await
    }

    /// The server ends the connection with everything written and nothing committed.
    async fn cut_off_before_the_commit(&mut self) -> Result<(), Failure> {
        self.half().await?;
        let process = self.client.process().await?;
        end_process(&self.url, process).await?;
        let commit = self.client.run("commit").await;
        assert!(commit.is_err(), "nothing can be committed on a connection that is gone");
        self.discard_from(0);
        self.written.cut_off += 1;
        self.client = self.client.again(&self.url).await?;
        Ok(())
    }

    /// The server ends the connection while it commits. Only the table `expected` knows which
    /// of the two came first.
    async fn cut_off_inside_the_commit(&mut self) -> Result<(), Failure> {
        self.half().await?;
        let process = self.client.process().await?;
        let url = self.url.clone();
        // Either way the connection is gone afterwards.
        let (_, ended) = tokio::join!(self.client.run("commit"), end_process(&url, process));
        ended?;
        self.open.clear();
        self.written.cut_off += 1;
        self.client = self.client.again(&self.url).await?;
        Ok(())
    }

    fn discard_from(&mut self, at: usize) {
        self.written.rolled_back.extend(self.open.drain(at..).map(|open| open.id));
    }

    async fn noise(&mut self) -> Result<(), Failure> {
        self.client.run("insert into noise (text) values ('a row')").await
    }

    /// A message and its row in `expected`.
    async fn message(&mut self, key: Option<u64>, bytes: usize) -> Result<(), Failure> {
        let way = match self.habit {
            Habit::Plain => Way::Separate,
            Habit::Every => self.pick([
                Way::Merged,
                Way::Separate,
                Way::MergedIntoJournal,
                Way::SeparateIntoJournal,
                Way::Emitted,
            ]),
        };
        let (expected, message) = self.draft(key, bytes).await?;
        self.client.write(way, &expected, &message).await?;
        self.open.push(Open { id: expected.id, way });
        Ok(())
    }

    /// A message with the next place of its key, and the row that goes with it.
    async fn draft(
        &mut self,
        key: Option<u64>,
        bytes: usize,
    ) -> Result<(Expected, Message), Failure> {
        let topic_count = self.topics.len() as u64;
        let topic_at = usize::try_from(key.unwrap_or(0) % topic_count).expect("a small number");
        let topic = self.topics.get(topic_at).expect("below the number of topics").clone();
        let key = key.map(|key| format!("key-{key}"));
        let place = match &key {
            None => 0,
            Some(key) => self.client.place(key).await?,
        };
        // In the form that a jsonb has as text, which is what tailrace.emit publishes.
        let payload = format!("{{\"text\": \"{}\", \"place\": {place}}}", "x".repeat(bytes));
        let mut builder = Message::builder(&topic, "thing.happened.v1")
            .source("/writers")
            .header("place", place.to_string())
            .payload(payload.clone());
        if let Some(key) = &key {
            builder = builder.key(key.as_str()).subject(format!("subject of {key}"));
        }
        let message = builder.build().expect("the message keeps every rule");
        Ok((Expected { id: message.id(), topic, key, place, payload }, message))
    }

    fn key(&mut self) -> u64 {
        self.dice.below(self.habit.keys())
    }

    /// Keys in their order, so that no two writers wait for each other.
    fn keys(&mut self, count: u64) -> Vec<u64> {
        let mut keys: Vec<u64> = (0..count).map(|_| self.key()).collect();
        keys.sort_unstable();
        keys
    }

    fn pick<const N: usize>(&mut self, ways: [Way; N]) -> Way {
        let at = usize::try_from(self.dice.below(N as u64)).expect("a small number");
        *ways.get(at).expect("below the number of ways")
    }
}

/// Has the server end one of its processes, and waits until it is gone.
async fn end_process(url: &str, process: i32) -> Result<(), Failure> {
    let mut connection = PgConnection::connect(url).await?;
    let ended: bool = sqlx::query_scalar("select pg_terminate_backend($1, $2)")
        .bind(process)
        .bind(i64::try_from(END_MAX.as_millis()).expect("a short time"))
        .fetch_one(&mut connection)
        .await?;
    assert!(ended, "process {process} of the server has not ended in {END_MAX:?}");
    connection.close().await?;
    Ok(())
}
