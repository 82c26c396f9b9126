//! A suite of tests for handlers: whatever Kafka and processes do, their effects have to be the same.
//!
//! It gives sample messages to a consumer again and again, each time with another accident, and compares what a query
//! finds afterwards with what it finds where nothing happened. What differs names the accident, and what is usually
//! behind it. It needs a Kafka and a Postgres; the database should be one of its own, since the effects in it are reset
//! before each run.
//!
//! ```no_run
//! # use serde::Deserialize;
//! # use tailrace_idempotency::*;
//! use tailrace_idempotency::conformance::{Sample, Suite};
//!
//! # #[derive(Deserialize)]
//! # struct Deposit { account: String, cents: i64 }
//! # async fn book(cx: Cx<'_>, deposit: Deposit) -> Result<Outcome, BoxError> { Ok(Outcome::Done) }
//! # async fn test(brokers: &str, database_url: &str) {
//! let deposits = (0..30).map(|number| {
//!     let account = format!("account-{}", number % 3);
//!     let payload = format!(r#"{{"account":"{account}","cents":{number}}}"#);
//!     Sample::new("deposit.v1", account, payload)
//! });
//! Suite::new(brokers, database_url)
//!     .samples(deposits)
//!     .effects("select account, sum(cents) from booking group by account order by account")
//!     .reset("truncate booking")
//!     .check(|process| {
//!         Consumer::new(process.config()).topic(process.topic()).on("deposit.v1", book)
//!     })
//!     .await
//!     .unwrap();
//! # }
//! ```
//!
//! # The accidents
//! | accident | what it finds |
//! |---|---|
//! | the same again, under another name | state outside of the database, effects that depend on the clock or on chance |
//! | each record comes twice | effects at a duplicate, which only a handler with ids of its own can have |
//! | other keys first, one message in a transaction | effects that depend on the order across keys or on what shares a batch |
//! | deaths at five points: the transaction is fenced; its handlers have run; it is committed; a call is prepared; a call is made | effects outside of the transaction, state in memory |
//! | the transaction is rolled back and repeated in the same process | the same |
//! | a former owner goes on after the next one has taken its partition | effects outside of the transaction |
//! | a second process joins within a batch | the same |
//!
//! # How a process dies
//! Each process of a run is a runtime on a thread of its own, with connections and handlers of its own: the function
//! given to [`Suite::check`] is called for each. At a death the runtime is shut down at the point where it is, without a
//! word to Postgres, and what its tasks were about to do is not done; a next process then begins. That needs no second
//! program and shows what a SIGKILL shows, but for two things: statics, and what the function shares between its calls,
//! outlive it. The first accident finds both. A handler that blocks its thread is not interrupted.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::config::Config;
use crate::consumer::Consumer;
use crate::error::BoxError;
use crate::schema;

use process::Plant;
use run::{ACCIDENTS, Run};
use topic::Topics;

mod process;
mod run;
mod topic;

/// A message to be given to the consumer.
///
/// The suite mints its id, once, so that it is the same in each run.
#[derive(Clone)]
pub struct Sample {
    message_type: String,
    key: Vec<u8>,
    payload: Vec<u8>,
    headers: Vec<(String, String)>,
    id: Uuid,
}

impl Sample {
    /// A message of a type, with its key and payload.
    pub fn new(
        message_type: impl Into<String>,
        key: impl Into<Vec<u8>>,
        payload: impl Into<Vec<u8>>,
    ) -> Self {
        let (message_type, key, payload) = (message_type.into(), key.into(), payload.into());
        Self { message_type, key, payload, headers: Vec::new(), id: Uuid::now_v7() }
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

impl fmt::Debug for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sample")
            .field("type", &self.message_type)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// What a process of a run is made with.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Member {
    config: Config,
    topic: String,
}

impl Member {
    /// The configuration for its consumer, with a pool of its own. Options may be set, and the state given; the name,
    /// the size of batches, lanes and waits are the suite's.
    pub fn config(&self) -> Config {
        self.config.clone()
    }

    /// The topic that it has to subscribe.
    pub fn topic(&self) -> &str {
        &self.topic
    }
}

type Outside = (Box<dyn Fn() -> String + Send + Sync>, Box<dyn Fn() + Send + Sync>);

/// The suite, and what it has to know of a consumer.
#[must_use = "a suite does nothing until it checks"]
pub struct Suite {
    brokers: String,
    database_url: String,
    samples: Vec<Sample>,
    effects: String,
    reset: String,
    outside: Option<Outside>,
    deadline: Duration,
}

impl Suite {
    /// A suite on these brokers, on which it makes topics of its own, and on this database, which has the tables of the
    /// handlers and gets those of this crate.
    pub fn new(brokers: impl Into<String>, database_url: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
            database_url: database_url.into(),
            samples: Vec::new(),
            effects: String::new(),
            reset: String::new(),
            outside: None,
            deadline: Duration::from_secs(60),
        }
    }

    /// The messages: of every type that has a handler, in two keys at least, and thirty or more, so that there are
    /// several batches. Each has to succeed in the end.
    pub fn samples(mut self, samples: impl IntoIterator<Item = Sample>) -> Self {
        self.samples.extend(samples);
        self
    }

    /// The query that reads the effects. It has to be the same for the same effects: without times of the clock, numbers
    /// of sequences, and columns whose order across keys is free, and with an `order by`.
    pub fn effects(mut self, query: impl Into<String>) -> Self {
        self.effects = query.into();
        self
    }

    /// The statements that bring the database back to what it was before the first message.
    pub fn reset(mut self, statements: impl Into<String>) -> Self {
        self.reset = statements.into();
        self
    }

    /// Reads effects outside of the database, such as what a stand-in for a provider was asked for, and resets them.
    /// They are compared as those in the database are; what a call may do more than once must count once by its key.
    /// Default: there are none.
    pub fn outside(
        mut self,
        read: impl Fn() -> String + Send + Sync + 'static,
        reset: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        self.outside = Some((Box::new(read), Box::new(reset)));
        self
    }

    /// How long a run may take. Default: 60 s.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs all accidents, each after the other, up to the first that makes a difference. `consumer` makes the consumer
    /// of a process, once for each.
    ///
    /// # Errors
    /// What the accident was, and what was found instead of what.
    pub async fn check<S: Send + Sync + 'static>(
        &self,
        consumer: impl Fn(&Member) -> Consumer<S> + Send + Sync + 'static,
    ) -> Result<(), Finding> {
        let failed = |error: BoxError| Finding::new("the suite cannot run", error.to_string());
        self.validate()?;
        let pool = PgPoolOptions::new().max_connections(4).connect(&self.database_url).await;
        let pool = pool.map_err(|error| failed(error.into()))?;
        let installed =
            async { schema::install(&mut *pool.acquire().await?).await.map_err(BoxError::from) };
        installed.await.map_err(failed)?;
        let topics = Topics::new(&self.brokers).map_err(failed)?;
        let makes_calls = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&makes_calls);
        let plant: Plant = Arc::new(move |member: &Member| {
            let consumer = consumer(member);
            seen.fetch_or(consumer.makes_calls(), Ordering::Relaxed);
            consumer.into_runner()
        });

        let mut usual = None;
        for accident in ACCIDENTS {
            if accident.is_about_calls() && !makes_calls.load(Ordering::Relaxed) {
                continue;
            }
            self.reset_all(&pool).await.map_err(failed)?;
            let topic = topics.make().await.map_err(failed)?;
            let run = Run { suite: self, pool: &pool, topic: &topic, plant: &plant, accident };
            let ran = tokio::time::timeout(self.deadline, run.go(&topics)).await;
            topics.drop(&topic).await;
            match ran {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(Finding::new(accident.name(), error.to_string())),
                Err(_) => {
                    let text = format!("not all messages were seen to within {:?}", self.deadline);
                    return Err(Finding::new(accident.name(), text + &run.what_is_left().await));
                }
            }
            let found = self.found(&pool, &run.consumer()).await.map_err(failed)?;
            let usual = usual.get_or_insert_with(|| found.clone());
            if *usual != found {
                let text = format!(
                    "found\n  {found}\nwhere without it there is\n  {usual}\n{}",
                    accident.behind()
                );
                return Err(Finding::new(accident.name(), text));
            }
        }
        pool.close().await;
        Ok(())
    }

    fn validate(&self) -> Result<(), Finding> {
        let keys: std::collections::HashSet<_> = self.samples.iter().map(|s| &s.key).collect();
        let mut faults = Vec::new();
        if keys.len() < 2 || self.samples.len() < 2 * run::BATCH_RECORDS {
            faults.push(format!(
                "it needs {} samples or more, of two keys or more",
                2 * run::BATCH_RECORDS
            ));
        }
        if self.effects.trim().is_empty() {
            faults.push("it needs a query that reads the effects".to_owned());
        }
        if self.reset.trim().is_empty() {
            faults.push("it needs statements that reset the effects".to_owned());
        }
        if faults.is_empty() {
            return Ok(());
        }
        Err(Finding::new("the suite cannot run", faults.join("; ")))
    }

    async fn reset_all(&self, pool: &PgPool) -> Result<(), BoxError> {
        sqlx::raw_sql(AssertSqlSafe(self.reset.clone())).execute(pool).await?;
        if let Some((_, reset)) = &self.outside {
            reset();
        }
        Ok(())
    }

    /// The effects, and what was given up instead.
    async fn found(&self, pool: &PgPool, consumer: &str) -> Result<String, BoxError> {
        let query = format!(
            "SELECT coalesce(json_agg(effects)::text, 'nothing') FROM ({}) AS effects",
            self.effects.trim_end_matches([';', ' ', '\n'])
        );
        let mut found: String = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(pool).await?;
        let letters: i64 =
            sqlx::query_scalar("SELECT count(*) FROM tailrace.dead_letter WHERE consumer = $1")
                .bind(consumer)
                .fetch_one(pool)
                .await?;
        if letters > 0 {
            found.push_str(&format!(", and {letters} dead letters"));
        }
        if let Some((read, _)) = &self.outside {
            found.push_str(&format!(", and outside: {}", read()));
        }
        Ok(found)
    }
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No url: it has a password.
        f.debug_struct("Suite").field("samples", &self.samples.len()).finish_non_exhaustive()
    }
}

/// A handler does not keep what its consumer promises, or the suite can not tell.
#[derive(Clone, PartialEq, Eq)]
pub struct Finding {
    accident: String,
    text: String,
}

impl Finding {
    fn new(accident: impl Into<String>, text: impl Into<String>) -> Self {
        Self { accident: accident.into(), text: text.into() }
    }

    /// What had happened.
    pub fn accident(&self) -> &str {
        &self.accident
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.accident, self.text)
    }
}

impl fmt::Debug for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What `unwrap` shows is for people.
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Finding {}

#[cfg(test)]
mod tests;
