//! Read models: tables that are built from topics, and built anew beside the live ones.
//!
//! ```no_run
//! # use serde::Deserialize;
//! # use tailrace_idempotency::{BoxError, Config, Consumer, Cx, Outcome, Projection};
//! #[derive(Deserialize)]
//! struct OrderPlaced {
//!     customer: i64,
//!     cents: i64,
//! }
//!
//! // The table stands in the schema of the build that the transaction writes to.
//! async fn placed(cx: Cx<'_>, order: OrderPlaced) -> Result<Outcome, BoxError> {
//!     sqlx::query(
//!         "insert into turnover as t (customer, cents) values ($1, $2)
//!          on conflict (customer) do update set cents = t.cents + excluded.cents",
//!     )
//!     .bind(order.customer)
//!     .bind(order.cents)
//!     .execute(cx.conn)
//!     .await?;
//!     Ok(Outcome::Done)
//! }
//!
//! # async fn run(pool: sqlx::PgPool, stop: impl Future<Output = ()>) -> Result<(), BoxError> {
//! let consumer = Consumer::new(Config::new("customers", "localhost:9092", pool))
//!     .topic("orders")
//!     .on("order.placed.v1", placed);
//! let tables = "create table turnover (customer bigint primary key, cents bigint not null)";
//! // Readers ask `customers.turnover`. Another number, and it is built anew beside what they see.
//! Projection::new(consumer, 1, tables).run(stop).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What readers see
//! - The tables of a read model are in the schema that has its name. Before its first build is complete there is none.
//! - While another build is under way, the live one, which is kept up to date as before.
//! - From one statement to the next, after the switch, the new one: complete, and never older than what they have seen
//!   of the live one. The switch is one transaction that takes no lock on a table. A statement that is under way
//!   finishes with the build that it began with.
//!
//! # What may happen to a build
//! A process that dies leaves it as it is; the next one of its version goes on where it was. Several build together: the
//! partitions are shared as in any group of consumers. A higher version, or other tables under its version, give it up
//! and begin another. While it has parked messages it is not switched to.

use std::fmt;
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, Postgres};
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{self, Start};
use crate::consumer::{Consumer, Runner, prepare};
use crate::error::{Error, Kind};
use crate::metrics::Report;
use crate::retry::OutOfHorizon;
use crate::used::Used;

use builds::{Builds, Switched};
use choice::{Build, State, Wanted};
use ends::Ends;

mod builds;
mod choice;
mod ends;

/// With what is added to it, a name stays below the 63 bytes of a name in Postgres.
const NAME_BYTES_MAX: usize = 40;
/// How often a build is looked after.
const BUILD_TICK: Duration = Duration::from_millis(200);
/// How often it is looked whether another build has become the one to work at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often a switch is tried that has to wait.
const SWITCH_EVERY: Duration = Duration::from_secs(1);

type Tell = Box<dyn Fn(&Progress) + Send + Sync>;

/// A consumer that keeps a read model: tables in Postgres that hold what its topics say, for queries.
///
/// Its consumer's name is that of the read model and of the schema that readers use; the Kafka group of a build is that
/// name with the number of the build. Handlers find the tables without a schema, by the `search_path` of their
/// transaction; statements of theirs that name the schema would write past a build. The consumer begins each topic at its
/// beginning, applies messages of any age ([`OutOfHorizon::Process`]) and makes no calls.
///
/// The role makes a schema for each build, so it needs `CREATE` on the database. The pool needs two connections at
/// least.
#[must_use = "a projection does nothing until it runs"]
pub struct Projection {
    runner: Runner,
    builds: Builds,
    version: u32,
    faults: Vec<String>,
    keep_former: bool,
    on_progress: Option<Tell>,
}

impl Projection {
    /// A read model that this version of the code builds with this consumer.
    ///
    /// `tables` are the statements that make its tables, without a schema's name; they run in one transaction when a
    /// build begins. Other statements, and other handlers, need a higher version.
    pub fn new<S: Send + Sync + 'static>(
        consumer: Consumer<S>,
        version: u32,
        tables: impl Into<String>,
    ) -> Self {
        let mut faults = consumer.faults();
        if consumer.makes_calls() {
            faults.push("a read model is built anew from its topics and makes no calls".to_owned());
        }
        let mut runner = consumer.into_runner();
        let options = &mut runner.options;
        let name = options.consumer.clone();
        if !is_name(&name) {
            faults.push(format!(
                "the name of a read model is that of a schema: 1 to {NAME_BYTES_MAX} small letters, digits and \
                 underscores, a letter first, and not public, tailrace or pg_"
            ));
        }
        if options.start != Start::Earliest {
            faults.push("a read model begins at the beginning of its topics".to_owned());
        }
        if options.pool.options().get_max_connections() < 2 {
            faults.push("a read model needs a pool of two connections at least".to_owned());
        }
        if version > i32::MAX.unsigned_abs() {
            faults.push("the version is too high".to_owned());
        }
        options.policy.out_of_horizon = OutOfHorizon::Process;
        // A build is complete at the end of its topics, where markers of transactions may stand and no record.
        options.kafka_properties.push(("enable.partition.eof".to_owned(), "true".to_owned()));
        let builds = Builds { name, tables: tables.into(), readers: Vec::new() };
        Self { runner, builds, version, faults, keep_former: false, on_progress: None }
    }

    /// A role that is given the right to read all tables of each build. Default: none but their owner.
    pub fn reader(mut self, role: impl Into<String>) -> Self {
        self.builds.readers.push(role.into());
        self
    }

    /// Whether the build that is replaced is kept, so that [`switch_back`] can go back to it. One is kept at most;
    /// processes of its version that still run keep it up to date. Default: no, it is dropped.
    pub fn keep_former(mut self, keep: bool) -> Self {
        self.keep_former = keep;
        self
    }

    /// Is told how far a build is, five times a second, and what becomes of it. Default: nobody is.
    pub fn on_progress(mut self, tell: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        self.on_progress = Some(Box::new(tell));
        self
    }

    /// Keeps the read model up to date until `shutdown` resolves. Where this version of it has not been built, it is
    /// built first, beside the live one, and switched to.
    ///
    /// # Errors
    /// As [`Consumer::run`]. [`Kind::Conflict`] if a higher version has replaced this one, or if this version is known
    /// with other tables or topics.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<Report, Error> {
        let (_, report) = self.work(false, shutdown).await?;
        Ok(report)
    }

    /// Builds this version beside the live one, also where that has the same version, switches to it and ends. A build
    /// that another process has begun is shared, one that died is continued. Processes that keep the read model up to
    /// date by [`run`](Self::run) move over by themselves.
    ///
    /// The answer's phase is [`Phase::Live`], or [`Phase::Building`] if `shutdown` was first.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn rebuild(self, shutdown: impl Future<Output = ()>) -> Result<Progress, Error> {
        let (progress, _) = self.work(true, shutdown).await?;
        Ok(progress)
    }

    async fn work(
        self,
        anew: bool,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(Progress, Report), Error> {
        config::faults(self.faults.clone())?;
        let mut shutdown = pin!(shutdown);
        let (pool, options) = (&self.runner.options.pool, &self.runner.options);
        let sends_letters = options.policy.dead_letter_topic.is_some();
        prepare(pool, options.start_deadline, sends_letters).await?;
        let version = i32::try_from(self.version).unwrap_or(i32::MAX);
        let wanted = Wanted { version, definition: self.definition(), anew };
        loop {
            let mut conn = Used::new(self.connection().await?);
            let build = self.builds.choose(&mut conn, &wanted).await;
            drop(conn.unused());
            let build = build?;
            let mut watch = Watch::new(&self, &wanted, build)?;
            match self.work_at(&mut watch, shutdown.as_mut()).await? {
                (Why::Moved, _) => {}
                (Why::Stopped | Why::Switched, report) => return Ok((watch.progress, report)),
            }
        }
    }

    /// Runs the consumer of a build until it is told to stop, or until there is no point in it any more.
    async fn work_at(
        &self,
        watch: &mut Watch<'_>,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(Why, Report), Error> {
        let mut runner = self.runner.clone();
        runner.options.consumer = self.builds.consumer(watch.build.number);
        runner.entering = self.builds.entering(watch.build.number);
        let (stop, stopped) = oneshot::channel::<()>();
        let mut running = pin!(runner.run(async { drop(stopped.await) }));
        let mut stop = Some(stop);
        let mut why = None;
        let mut tick = interval(BUILD_TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ended = loop {
            let found = tokio::select! {
                ended = &mut running => break ended,
                () = &mut shutdown, if why.is_none() => Ok(Some(Why::Stopped)),
                _ = tick.tick(), if why.is_none() => watch.look().await,
            };
            match found {
                Ok(None) => {}
                Ok(found) => {
                    why = found;
                    drop(stop.take());
                }
                // Brokers that are just restarting are waited for like the database.
                Err(error) if error.is_transient() || error.kind() == Kind::Kafka => {
                    tracing::warn!(error = %error, "a build is looked after again later");
                }
                Err(error) => return Err(error),
            }
        };
        match (why, ended) {
            (Some(why), Ok(report)) => {
                if why == Why::Switched {
                    watch.sweep().await;
                }
                Ok((why, report))
            }
            (Some(Why::Moved), Err(_)) => Ok((Why::Moved, Report::default())),
            (Some(_), Err(error)) => Err(error),
            (None, ended) => {
                // Its transactions fail when the build is gone; then the reason for that is what counts.
                match watch.is_still_ours().await {
                    Ok(false) => Ok((Why::Moved, Report::default())),
                    _ => ended.map(|report| (Why::Stopped, report)),
                }
            }
        }
    }

    async fn connection(&self) -> Result<PoolConnection<Postgres>, Error> {
        let acquired = self.runner.options.pool.acquire().await;
        acquired.map_err(|error| Error::database("no connection to postgres", error))
    }

    fn definition(&self) -> Vec<u8> {
        let mut topics: Vec<&str> = self.runner.topics.iter().map(|topic| &**topic).collect();
        topics.sort_unstable();
        let mut digest = Sha256::new();
        for part in [&[&*self.builds.tables], topics.as_slice()].concat() {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        digest.finalize().to_vec()
    }
}

impl fmt::Debug for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Projection")
            .field("name", &self.builds.name)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// Goes back to the build that was kept when the live one replaced it, in one transaction; answers with its version.
/// Going back once more undoes it.
///
/// It is as old as the last process that kept it up to date: start one of its version, or expect readers to see an older
/// state.
///
/// # Errors
/// [`Kind::Conflict`] if none was kept ([`Projection::keep_former`]), or if a batch is under way for long.
pub async fn switch_back(conn: &mut PgConnection, name: &str) -> Result<u32, Error> {
    if !is_name(name) {
        return Err(Error::new(Kind::Config, "no read model has such a name"));
    }
    let builds = Builds { name: name.to_owned(), tables: String::new(), readers: Vec::new() };
    Ok(builds.back(conn).await?.unsigned_abs())
}

/// How far a build of a read model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// What it is to readers.
    pub phase: Phase,
    /// The version of the code that builds it.
    pub version: u32,
    /// Counts the builds of the read model.
    pub build: u32,
    /// Offsets that it has passed, over all processes that build it and all that did so before.
    pub done: u64,
    /// Offsets that the topics have, which may grow meanwhile. Some of them are no records.
    pub total: u64,
    /// Messages that wait to be tried again: until there is none, the build is not switched to.
    pub parked: u64,
}

/// What a build is to readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// It is beside the live one, and not complete.
    Building,
    /// It is what they see.
    Live,
    /// It was replaced, and is kept up to date for going back.
    Former,
}

/// What is left of a build.
#[derive(Debug, Clone, Copy, Default)]
struct Remaining {
    done: u64,
    total: u64,
}

/// Why a process stops to work at a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Stopped,
    /// It was built, and that was all that was asked for.
    Switched,
    /// Another one has become the one to work at, or this one is gone.
    Moved,
}

/// Looks after a build while its consumer runs.
struct Watch<'p> {
    projection: &'p Projection,
    wanted: &'p Wanted,
    build: Build,
    ends: Ends,
    progress: Progress,
    looked: Option<Instant>,
    /// Why nothing could be dropped, as it was told last.
    told: Option<String>,
}

impl<'p> Watch<'p> {
    fn new(projection: &'p Projection, wanted: &'p Wanted, build: Build) -> Result<Self, Error> {
        let Runner { options, topics, .. } = &projection.runner;
        let progress = Progress {
            phase: phase(build.state),
            version: build.version.unsigned_abs(),
            build: build.number.unsigned_abs(),
            done: 0,
            total: 0,
            parked: 0,
        };
        let ends = Ends::new(options, topics)?;
        Ok(Self { projection, wanted, build, ends, progress, looked: None, told: None })
    }

    async fn look(&mut self) -> Result<Option<Why>, Error> {
        match self.build.state {
            State::Building => self.look_after_build().await,
            State::Live | State::Former | State::Leaving => self.look_for_another().await,
        }
    }

    async fn look_after_build(&mut self) -> Result<Option<Why>, Error> {
        let builds = &self.projection.builds;
        let mut conn = self.projection.connection().await?;
        let consumer = builds.consumer(self.build.number);
        let Remaining { done, total } = self.ends.remaining(&mut conn, &consumer).await?;
        let parked = builds.parked(&mut conn, self.build.number).await?.unsigned_abs();
        self.progress = Progress { done, total, parked, ..self.progress };
        self.tell();
        if done < total || parked > 0 || !self.is_due(SWITCH_EVERY) {
            return Ok(None);
        }
        let topics: Vec<String> =
            self.projection.runner.topics.iter().map(|topic| topic.to_string()).collect();
        let keep = self.projection.keep_former;
        let Progress { version, build, .. } = self.progress;
        let mut used = Used::new(conn);
        let switched = builds.switch(&mut used, self.build.number, &topics, keep).await;
        let mut conn = used.unused();
        match switched? {
            Switched::NotYet => return Ok(None),
            Switched::Done => {
                tracing::info!(projection = %builds.name, version, build, "the read model is switched to a new build");
            }
            // Whoever was faster has switched to it; or it was given up.
            Switched::Elsewhere => {
                let state = builds.state(&mut conn, self.build.number).await?;
                if state != Some(State::Live) {
                    return Ok(Some(Why::Moved));
                }
            }
        }
        drop(conn);
        self.build.state = State::Live;
        self.progress.phase = Phase::Live;
        self.tell();
        if self.wanted.anew {
            return Ok(Some(Why::Switched));
        }
        self.sweep().await;
        Ok(None)
    }

    async fn look_for_another(&mut self) -> Result<Option<Why>, Error> {
        if self.looked.is_none() {
            self.tell();
        }
        if !self.is_due(LOOK_EVERY) {
            return Ok(None);
        }
        if !self.is_still_ours().await? {
            return Ok(Some(Why::Moved));
        }
        self.sweep().await;
        Ok(None)
    }

    async fn is_still_ours(&mut self) -> Result<bool, Error> {
        let mut conn = self.projection.connection().await?;
        let wanted = Wanted {
            anew: self.wanted.anew && self.build.state == State::Building,
            ..self.wanted.clone()
        };
        let found = self.projection.builds.look(&mut conn, &wanted).await?;
        let Some(found) = found.filter(|found| found.number == self.build.number) else {
            return Ok(false);
        };
        if found.state != self.build.state {
            self.build.state = found.state;
            self.progress.phase = phase(found.state);
            self.tell();
        }
        Ok(true)
    }

    /// Drops what was replaced. That it is not possible now is no reason to end.
    async fn sweep(&mut self) {
        let swept = async {
            let mut conn = Used::new(self.projection.connection().await?);
            let swept = self.projection.builds.sweep(&mut conn).await;
            drop(conn.unused());
            swept
        };
        let told = match swept.await {
            Ok(()) => None,
            Err(error) if error.is_transient() => return,
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = &told
            && self.told != told
        {
            tracing::warn!(error, "a former build of a read model is not dropped");
        }
        self.told = told;
    }

    fn is_due(&mut self, every: Duration) -> bool {
        let due = self.looked.is_none_or(|looked| looked.elapsed() >= every);
        if due {
            self.looked = Some(Instant::now());
        }
        due
    }

    fn tell(&self) {
        if let Some(tell) = &self.projection.on_progress {
            tell(&self.progress);
        }
    }
}

fn phase(state: State) -> Phase {
    match state {
        State::Building => Phase::Building,
        State::Live => Phase::Live,
        State::Former | State::Leaving => Phase::Former,
    }
}

/// Whether it can stand in a statement as the name of a schema of ours.
fn is_name(name: &str) -> bool {
    let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(letters)
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && !matches!(name, "public" | "tailrace")
        && !name.starts_with("pg_")
}

#[cfg(test)]
mod tests;
