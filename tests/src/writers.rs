//! Services that write messages in transactions of every shape, and what is true afterwards.
//!
//! What was committed is a row of the table `expected`, written in the same transaction as its
//! message: nothing but Postgres decides what is true.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use sqlx::{Executor, Row};
use tailrace_outbox::journal::{self, Retention};
use tailrace_outbox::schema;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::interval;
use uuid::Uuid;

use crate::client::{APPLICATION, Client, Way};
use crate::process::Process;
use crate::site::Site;
use crate::writer::{Habit, Writer};

/// Of so many connections one is through tokio-postgres, where every way to write is taken.
const TOKIO_POSTGRES_EVERY: usize = 4;

/// Between two transactions of a writer that is to go on for long.
const PACE: Duration = Duration::from_millis(20);

/// A server's process that is told to end has ended by then.
const END_MAX_MS: i64 = 20_000;

/// A message that was committed, as the database remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its id.
    pub id: Uuid,
    /// Its topic.
    pub topic: String,
    /// Its key.
    pub key: Option<String>,
    /// Its place among the committed messages of its key, counted from 1 under a row lock.
    pub place: i64,
    /// Its payload.
    pub payload: String,
}

/// What was written.
#[derive(Debug, Default)]
pub struct Written {
    /// Source transactions that committed with at least one message.
    pub committed: usize,
    /// Messages of these transactions.
    pub messages: usize,
    /// How many of them came in which way.
    pub ways: BTreeMap<Way, usize>,
    /// Messages that were written and then rolled back: they must never show.
    pub rolled_back: Vec<Uuid>,
    /// Connections that the server ended between the last write and the end of the commit.
    pub cut_off: usize,
}

impl Written {
    async fn of_all(mut tasks: JoinSet<Written>) -> Written {
        let mut all = Written::default();
        while let Some(written) = tasks.join_next().await {
            all.add(written.expect("a writer does not panic"));
        }
        all
    }

    /// Takes in what another has written.
    pub fn add(&mut self, other: Written) {
        self.committed += other.committed;
        self.messages += other.messages;
        for (way, count) in other.ways {
            *self.ways.entry(way).or_default() += count;
        }
        self.rolled_back.extend(other.rolled_back);
        self.cut_off += other.cut_off;
    }
}

/// Random numbers that a seed repeats.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// From `SEED`, or from a seed of its own, which it prints.
    ///
    /// # Panics
    ///
    /// When `SEED` is no number.
    #[expect(clippy::print_stdout, reason = "a failing test shows what was printed")]
    pub fn new(name: &str) -> Self {
        let seed = match std::env::var("SEED") {
            Ok(seed) => seed.parse().expect("SEED is a number"),
            Err(_) => RandomState::new().build_hasher().finish() >> 32,
        };
        println!("{name}: SEED={seed}");
        Dice(seed)
    }

    /// The next number below `limit` (splitmix64, <https://prng.di.unimi.it/splitmix64.c>).
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    /// Dice of their own for a part of the work.
    pub fn fork(&mut self) -> Self {
        Dice(self.seed())
    }

    /// A seed for dice elsewhere.
    pub fn seed(&mut self) -> u64 {
        self.below(u64::MAX)
    }

    /// From a seed of other dice.
    pub fn from_seed(seed: u64) -> Self {
        Dice(seed)
    }
}

impl Site {
    /// Makes the tables of the writers.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn prepare_writers(&self) {
        self.pool
            .execute(
                "create table place (key text primary key, last bigint not null);
                 create table expected (id uuid primary key, topic text not null, key text,
                     place bigint not null, payload text not null);
                 create table noise (id bigserial primary key, text text)",
            )
            .await
            .expect("the tables are made");
    }

    /// Makes the journal, and the SQL functions with it. Before the relay's first start, so that
    /// it publishes them.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn prepare_journal(&self) {
        let mut connection = self.connect().await;
        schema::install(&mut connection).await.expect("the schema is installed");
        let retention = Retention::default();
        journal::maintain(&mut connection, &retention).await.expect("there are partitions");
    }

    /// Writes in so many transactions that publish something, over several connections at once;
    /// among them others that do not.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn write(&self, transactions: usize, writers: usize, dice: &mut Dice) -> Written {
        self.share_out(transactions, writers, Habit::Plain, dice, |done| done.committed).await
    }

    /// Writes at least so many messages that are committed, in every way there is, over several
    /// connections at once, some of which the server ends now and then. Demands
    /// [`prepare_journal`](Self::prepare_journal).
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn write_in_every_way(
        &self,
        messages: usize,
        connections: usize,
        dice: &mut Dice,
    ) -> Written {
        self.share_out(messages, connections, Habit::Every, dice, |done| done.messages).await
    }

    /// Has writers do their shares of `total`, as `done` counts it.
    async fn share_out(
        &self,
        total: usize,
        writers: usize,
        habit: Habit,
        dice: &mut Dice,
        done: fn(&Written) -> usize,
    ) -> Written {
        let mut tasks = JoinSet::new();
        for at in 0..writers {
            let share = total / writers + usize::from(at < total % writers);
            let mut writer = self.writer(at, habit, dice).await;
            tasks.spawn(async move {
                while done(&writer.written) < share {
                    writer.transaction().await.expect("the writer's server serves");
                }
                writer.written
            });
        }
        Written::of_all(tasks).await
    }

    /// Writes over several connections, cuts the server off, and answers when every writer has
    /// felt it. What became of a commit that got no answer is in the table `expected`, as for
    /// every other.
    ///
    /// # Panics
    ///
    /// When the server refuses before it is cut off.
    pub async fn write_until_cut(
        &self,
        writers: usize,
        dice: &mut Dice,
        cut: impl Future<Output = ()>,
    ) -> Written {
        let mut tasks = JoinSet::new();
        for at in 0..writers {
            let mut writer = self.writer(at, Habit::Plain, dice).await;
            tasks.spawn(async move {
                while writer.transaction().await.is_ok() {}
                writer.written
            });
        }
        cut.await;
        Written::of_all(tasks).await
    }

    /// Writes over several connections, at an even pace, while `work` is under way.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn write_during(
        &self,
        writers: usize,
        dice: &mut Dice,
        work: impl Future<Output = ()>,
    ) -> Written {
        let mut tasks = JoinSet::new();
        let (ends, ended) = watch::channel(false);
        for at in 0..writers {
            let mut writer = self.writer(at, Habit::Plain, dice).await;
            let ended = ended.clone();
            tasks.spawn(async move {
                let mut pace = interval(PACE);
                while !*ended.borrow() {
                    pace.tick().await;
                    writer.transaction().await.expect("the writer's server serves");
                }
                writer.written
            });
        }
        work.await;
        ends.send_replace(true);
        Written::of_all(tasks).await
    }

    async fn writer(&self, at: usize, habit: Habit, dice: &mut Dice) -> Writer {
        let url = self.url.as_str();
        let client = match habit {
            Habit::Every if at.is_multiple_of(TOKIO_POSTGRES_EVERY) => {
                Client::through_tokio_postgres(url).await
            }
            Habit::Every | Habit::Plain => Client::through_sqlx(url).await,
        };
        let client = client.expect("the server takes a connection");
        Writer::new(url, &self.topics, habit, dice.fork(), client)
    }

    /// Starts a process that writes in every way and ends itself by SIGKILL after so many
    /// transactions: with messages written and not committed or, if so told, so many
    /// microseconds after it has begun to commit them.
    pub fn doomed_writer(
        &self,
        transactions: u64,
        commits_for_micros: Option<u64>,
        dice: &mut Dice,
    ) -> Process {
        let mut arguments = vec!["writer".to_owned()];
        let mut give = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        give("--database-url", self.url.clone());
        for topic in &self.topics {
            give("--topic", topic.clone());
        }
        give("--seed", dice.seed().to_string());
        give("--transactions", transactions.to_string());
        if let Some(micros) = commits_for_micros {
            give("--commits-for-micros", micros.to_string());
        }
        self.start(arguments)
    }

    /// Ends what the server still does for writers that are gone, so that what is committed
    /// stays so.
    ///
    /// # Panics
    ///
    /// When the server does not answer.
    pub async fn writers_are_gone(&self) {
        // It waits for each, and answers false for one that has ended by itself.
        sqlx::query(
            "select pg_terminate_backend(pid, $2) from pg_stat_activity \
             where datname = current_database() and application_name = $1",
        )
        .bind(APPLICATION)
        .bind(END_MAX_MS)
        .execute(&self.pool)
        .await
        .expect("the server answers");
    }

    /// How many messages have been committed.
    ///
    /// # Panics
    ///
    /// When the server does not answer.
    pub async fn expected_count(&self) -> u64 {
        let count = sqlx::query_scalar("select count(*) from expected").fetch_one(&self.pool);
        let count: i64 = count.await.expect("the server answers");
        u64::try_from(count).expect("a count")
    }

    /// What has been committed.
    ///
    /// # Panics
    ///
    /// When the server does not answer.
    pub async fn expected(&self) -> BTreeMap<Uuid, Expected> {
        let rows = sqlx::query("select id, topic, key, place, payload from expected")
            .fetch_all(&self.pool)
            .await
            .expect("the server answers");
        rows.iter()
            .map(|row| {
                let expected = Expected {
                    id: row.get(0),
                    topic: row.get(1),
                    key: row.get(2),
                    place: row.get(3),
                    payload: row.get(4),
                };
                (expected.id, expected)
            })
            .collect()
    }
}
