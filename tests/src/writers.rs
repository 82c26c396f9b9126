//! Services that write messages in transactions of every shape, and what is true afterwards.
//!
//! What was committed is a row of the table `expected`, written in the same transaction as its
//! message: nothing but Postgres decides what is true.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use sqlx::{Connection, Executor, PgConnection, Row};
use tailrace_outbox::Message;
use uuid::Uuid;

use crate::site::Site;

/// Keys that transactions share.
const KEYS: u64 = 24;

/// Messages of the big transaction, each with a payload of about this many bytes.
const BIG_MESSAGES: usize = 120;
const BIG_PAYLOAD_BYTES: usize = 400;

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
    /// Messages that were written and then rolled back: they must never show.
    pub rolled_back: Vec<Uuid>,
}

impl Written {
    /// Takes in what another has written.
    pub fn add(&mut self, other: Written) {
        self.committed += other.committed;
        self.rolled_back.extend(other.rolled_back);
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
        Dice(self.below(u64::MAX))
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

    /// Writes in so many transactions that publish something, over several connections at once;
    /// among them others that do not.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn write(&self, transactions: usize, writers: usize, dice: &mut Dice) -> Written {
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..writers {
            let share = transactions / writers + usize::from(writer < transactions % writers);
            let mut writer = Writer {
                connection: self.connect().await,
                topics: self.topics.clone(),
                dice: dice.fork(),
                written: Written::default(),
            };
            tasks.spawn(async move {
                while writer.written.committed < share {
                    writer.transaction().await.expect("the writer's server serves");
                }
                writer.connection.close().await.expect("a connection can be closed");
                writer.written
            });
        }
        let mut written = Written::default();
        while let Some(part) = tasks.join_next().await {
            written.add(part.expect("a writer does not panic"));
        }
        written
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
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..writers {
            let mut writer = Writer {
                connection: self.connect().await,
                topics: self.topics.clone(),
                dice: dice.fork(),
                written: Written::default(),
            };
            tasks.spawn(async move {
                while writer.transaction().await.is_ok() {}
                writer.written
            });
        }
        cut.await;
        let mut written = Written::default();
        while let Some(part) = tasks.join_next().await {
            written.add(part.expect("a writer does not panic"));
        }
        written
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

struct Writer {
    connection: PgConnection,
    topics: Vec<String>,
    dice: Dice,
    written: Written,
}

impl Writer {
    async fn transaction(&mut self) -> Result<(), sqlx::Error> {
        match self.dice.below(20) {
            0..=7 => self.one().await,
            8..=11 => self.several_with_rows_between().await,
            12..=13 => self.rolled_back().await,
            14..=16 => self.rolled_back_to_a_savepoint().await,
            17 => self.of_other_prefixes().await,
            18 => self.without_a_key().await,
            _ => self.big().await,
        }
    }

    async fn one(&mut self) -> Result<(), sqlx::Error> {
        let key = self.key();
        self.begin().await?;
        self.message(Some(key), 20).await?;
        self.commit().await
    }

    async fn several_with_rows_between(&mut self) -> Result<(), sqlx::Error> {
        // In the order of the keys, so that no two writers wait for each other.
        let mut keys: Vec<u64> = (0..4).map(|_| self.key()).collect();
        keys.sort_unstable();
        self.begin().await?;
        for key in keys {
            self.noise().await?;
            self.message(Some(key), 40).await?;
        }
        self.noise().await?;
        self.commit().await
    }

    async fn rolled_back(&mut self) -> Result<(), sqlx::Error> {
        let key = self.key();
        self.begin().await?;
        let first = self.message(Some(key), 20).await?;
        let second = self.message(Some(key), 20).await?;
        self.connection.execute("rollback").await?;
        self.written.rolled_back.extend([first, second]);
        Ok(())
    }

    async fn rolled_back_to_a_savepoint(&mut self) -> Result<(), sqlx::Error> {
        let key = self.key();
        self.begin().await?;
        self.message(Some(key), 20).await?;
        self.connection.execute("savepoint inner_part").await?;
        self.noise().await?;
        let inside = self.message(Some(key), 20).await?;
        self.connection.execute("rollback to savepoint inner_part").await?;
        self.written.rolled_back.push(inside);
        self.message(Some(key), 20).await?;
        self.connection.execute("savepoint kept_part").await?;
        self.message(Some(key), 20).await?;
        self.connection.execute("release savepoint kept_part").await?;
        self.commit().await
    }

    /// Messages of other programs, and one outside of any transaction, with bytes that are no
    /// frame: whoever took them for ours would stop there.
    async fn of_other_prefixes(&mut self) -> Result<(), sqlx::Error> {
        let key = self.key();
        self.begin().await?;
        self.connection.execute("select pg_logical_emit_message(true, 'tailrac', 'no')").await?;
        self.message(Some(key), 20).await?;
        self.connection.execute("select pg_logical_emit_message(true, 'tailrace2', 'no')").await?;
        self.connection.execute("select pg_logical_emit_message(false, 'tailrace', 'no')").await?;
        self.commit().await
    }

    async fn without_a_key(&mut self) -> Result<(), sqlx::Error> {
        self.begin().await?;
        self.message(None, 20).await?;
        self.commit().await
    }

    async fn big(&mut self) -> Result<(), sqlx::Error> {
        let mut keys: Vec<u64> = (0..3).map(|_| self.key()).collect();
        keys.sort_unstable();
        self.begin().await?;
        for at in 0..BIG_MESSAGES {
            let key = keys.get(at * keys.len() / BIG_MESSAGES).copied();
            self.message(key, BIG_PAYLOAD_BYTES).await?;
        }
        self.commit().await
    }

    async fn begin(&mut self) -> Result<(), sqlx::Error> {
        self.connection.execute("begin").await.map(|_| ())
    }

    async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.connection.execute("commit").await?;
        self.written.committed += 1;
        Ok(())
    }

    async fn noise(&mut self) -> Result<(), sqlx::Error> {
        self.connection.execute("insert into noise (text) values ('a row')").await.map(|_| ())
    }

    /// A message and its row in `expected`.
    async fn message(&mut self, key: Option<u64>, bytes: usize) -> Result<Uuid, sqlx::Error> {
        let topic_count = self.topics.len() as u64;
        let topic_at = usize::try_from(key.unwrap_or(0) % topic_count).expect("a small number");
        let topic = self.topics.get(topic_at).expect("below the number of topics").clone();
        let key = key.map(|key| format!("key-{key}"));
        let place: i64 = match &key {
            None => 0,
            Some(key) => sqlx::query(
                "insert into place values ($1, 1) on conflict (key) \
                 do update set last = place.last + 1 returning last",
            )
            .bind(key)
            .fetch_one(&mut self.connection)
            .await?
            .try_get(0)?,
        };
        let payload = format!("{{\"place\":{place},\"text\":\"{}\"}}", "x".repeat(bytes));
        let mut builder = Message::builder(&topic, "thing.happened.v1")
            .source("/writers")
            .header("place", place.to_string())
            .payload(payload.clone());
        if let Some(key) = &key {
            builder = builder.key(key.as_str()).subject(format!("subject of {key}"));
        }
        let message = builder.build().expect("the message keeps every rule");
        sqlx::query("insert into expected values ($1, $2, $3, $4, $5)")
            .bind(message.id())
            .bind(&topic)
            .bind(&key)
            .bind(place)
            .bind(&payload)
            .execute(&mut self.connection)
            .await?;
        tailrace_outbox::write(&mut self.connection, &message)
            .await
            .map_err(|error| sqlx::Error::Protocol(error.to_string()))?;
        Ok(message.id())
    }

    fn key(&mut self) -> u64 {
        self.dice.below(KEYS)
    }
}
