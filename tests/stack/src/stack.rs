//! Chooses where each server comes from, and starts both.

use std::fs::File;
use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::cache;
use crate::error::{Error, Kind};
use crate::kafka::{self, Kafka};
use crate::maven::Maven;
use crate::postgres::{self, Postgres};
use crate::settings::{DATABASE_URL, KAFKA_BROKERS, PG_VERSION, Settings};

/// Which servers a stack has, and whether they can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// A Postgres.
    pub postgres: bool,
    /// A Kafka.
    pub kafka: bool,
    /// The servers will be stopped or killed: none is taken from the environment, and one such
    /// stack runs at a time on this machine.
    pub breakable: bool,
}

impl Needs {
    /// A Postgres and a Kafka.
    pub const BOTH: Needs = Needs { postgres: true, kafka: true, breakable: false };
    /// A Postgres alone.
    pub const POSTGRES: Needs = Needs { kafka: false, ..Needs::BOTH };
    /// A Kafka alone.
    pub const KAFKA: Needs = Needs { postgres: false, ..Needs::BOTH };

    /// The same servers, to be stopped and killed.
    pub const fn breakable(self) -> Needs {
        Needs { breakable: true, ..self }
    }
}

/// A Postgres and a Kafka, or one of them.
///
/// Dropping it ends the servers that it started and removes their directories; so does any end of
/// this process. It belongs to no runtime: a stack that one test's runtime started serves all
/// others.
#[derive(Debug)]
pub struct Stack {
    postgres: Option<Postgres>,
    kafka: Option<Kafka>,
    /// Closed after the servers have ended: fields are dropped in this order.
    _breaking: Option<File>,
}

impl Stack {
    /// Brings the servers up and answers when both serve.
    ///
    /// The first start on a machine fetches them, which takes as long as 60 MB take; later ones
    /// need no network. Fails with one error that lists every way to provide the servers when
    /// there is none here.
    pub async fn start(needs: Needs) -> Result<Stack, Error> {
        Stack::start_in(needs, Settings::from_environment()?).await
    }

    /// The stack of this process, with both servers, started by the first that asks.
    ///
    /// It ends with the process.
    ///
    /// # Panics
    ///
    /// When there is no stack to be had, with the text of the error; for each that asks.
    pub async fn shared() -> &'static Stack {
        static SHARED: OnceCell<Result<Stack, Error>> = OnceCell::const_new();
        match SHARED.get_or_init(|| Stack::start(Needs::BOTH)).await {
            Ok(stack) => stack,
            Err(error) => panic!("{error:?}"),
        }
    }

    pub(crate) async fn start_in(needs: Needs, settings: Settings) -> Result<Stack, Error> {
        let settings = Arc::new(settings);
        let for_plan = Arc::clone(&settings);
        let plan = blocking(move || Plan::make(needs, &for_plan)).await?;
        let (postgres, kafka) = tokio::try_join!(
            async {
                match plan.postgres {
                    Some(way) => Postgres::start(way, &settings).await.map(Some),
                    None => Ok(None),
                }
            },
            async {
                match plan.kafka {
                    Some(way) => Kafka::start(way, &settings).await.map(Some),
                    None => Ok(None),
                }
            },
        )?;
        Ok(Stack { postgres, kafka, _breaking: plan.breaking })
    }

    /// Its Postgres.
    ///
    /// # Panics
    ///
    /// When the stack was started without one.
    pub fn postgres(&self) -> &Postgres {
        self.postgres.as_ref().expect("the stack was started with a Postgres")
    }

    /// Its Kafka.
    ///
    /// # Panics
    ///
    /// When the stack was started without one.
    pub fn kafka(&self) -> &Kafka {
        self.kafka.as_ref().expect("the stack was started with a Kafka")
    }
}

/// Where each server comes from. Docker will be one more way, between the environment and Maven.
struct Plan {
    postgres: Option<postgres::Way>,
    kafka: Option<kafka::Way>,
    breaking: Option<File>,
}

impl Plan {
    /// Looks at everything before it fetches anything, so that all that is missing is one error.
    fn make(needs: Needs, settings: &Settings) -> Result<Plan, Error> {
        let maven = Maven::find(settings);
        let postgres =
            needs.postgres.then(|| postgres::Source::find(needs, settings, maven.as_ref()));
        let kafka = needs.kafka.then(|| kafka::Source::find(needs, settings, maven.as_ref()));
        let missing: Vec<&str> = [
            postgres.as_ref().and_then(|source| source.as_ref().err()),
            kafka.as_ref().and_then(|source| source.as_ref().err()),
        ]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
        if !missing.is_empty() {
            return Err(every_way(needs, &missing));
        }
        let breaking =
            needs.breakable.then(|| cache::lock(&settings.cache, "breakable")).transpose()?;
        let postgres = postgres.and_then(Result::ok);
        let kafka = kafka.and_then(Result::ok);
        Ok(Plan {
            postgres: postgres.map(|source| source.fetch(settings)).transpose()?,
            kafka: kafka.map(|source| source.fetch(settings)).transpose()?,
            breaking,
        })
    }
}

fn every_way(needs: Needs, missing: &[&str]) -> Error {
    let mut text = String::from("there is no server to run on here:\n");
    for what in missing {
        text.push_str(&format!("  - {what}\n"));
    }
    text.push_str("any one of these ways mends it:\n");
    text.push_str("  - local servers: install Java 17 or later and Maven, so that `java` and `mvn` are found; the rest is fetched once\n");
    if needs.postgres {
        text.push_str(&format!(
            "  - an installed Postgres, 15 or later (`apt install postgresql`, `brew install postgresql@18`), serves where Maven is missing; {PG_VERSION} picks among several\n"
        ));
    }
    if needs.breakable {
        text.push_str("  - servers of your own do not do here: this run kills its servers\n");
    } else {
        text.push_str(&format!(
            "  - servers of your own: set {DATABASE_URL} (a superuser's URL; wal_level=logical) and {KAFKA_BROKERS} (host:port, with commas between several)\n"
        ));
    }
    text.push_str("  - servers in Docker will be one more way; this version does not use it yet");
    Error::new(Kind::Missing, text)
}

/// Runs what blocks on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(Kind::Server, "the work was not finished").caused_by(error)),
    }
}

/// Tells which way was taken and why, in one line.
#[expect(
    clippy::print_stderr,
    reason = "a person who waits for a test wants to know on what; there is no subscriber in a test binary"
)]
pub(crate) fn tell(line: &str) {
    eprintln!("stack: {line}");
}
