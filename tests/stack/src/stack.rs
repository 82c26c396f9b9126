//! Chooses where each server comes from, and starts both.

use std::fs::File;
use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::cache;
use crate::certificates::Certificates;
use crate::error::{Error, Kind};
use crate::kafka::{self, Kafka};
use crate::maven::{self, Maven};
use crate::postgres::{self, Postgres};
use crate::settings::{DATABASE_URL, KAFKA_BROKERS, PG_VERSION, Settings};

/// Which servers a stack has, and what can be done to them.
///
/// ```
/// use tailrace_stack::Needs;
///
/// let needs = Needs::KAFKA.brokers(3).breakable();
/// assert!(!needs.postgres && needs.breakable);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// A Postgres.
    pub postgres: bool,
    /// A Kafka.
    pub kafka: bool,
    /// The servers will be stopped or killed: none is taken from the environment, and one such
    /// stack runs at a time on this machine. A lone Kafka is then of the newest version that
    /// ends every transaction after its death (4.0; KAFKA-20734), unless the environment names one.
    pub breakable: bool,
    /// How many brokers the Kafka has; with more than one it is never taken from the environment.
    pub brokers: u32,
    /// A proxy in front of each broker: it is never taken from the environment.
    pub proxied: bool,
    /// Both servers speak TLS: none is taken from the environment.
    pub tls: bool,
    /// The Kafka asks whether a client may.
    pub authorizer: bool,
    /// The broker is given the optimising compiler, which costs at the start and gains later.
    pub measured: bool,
    /// The Postgres is of this major version, whatever the environment says: it is never taken
    /// from there.
    pub postgres_version: Option<u32>,
}

impl Needs {
    /// A Postgres and a Kafka.
    pub const BOTH: Needs = Needs {
        postgres: true,
        kafka: true,
        breakable: false,
        brokers: 1,
        proxied: false,
        tls: false,
        authorizer: false,
        measured: false,
        postgres_version: None,
    };
    /// A Postgres alone.
    pub const POSTGRES: Needs = Needs { kafka: false, ..Needs::BOTH };
    /// A Kafka alone.
    pub const KAFKA: Needs = Needs { postgres: false, ..Needs::BOTH };

    /// The same servers, to be stopped and killed.
    pub const fn breakable(self) -> Needs {
        Needs { breakable: true, ..self }
    }

    /// The same with a Kafka of so many brokers, each of about 350 MB of memory. Topics then have
    /// up to three replicas.
    pub const fn brokers(self, brokers: u32) -> Needs {
        Needs { brokers, ..self }
    }

    /// The same with a [`Proxy`](crate::Proxy) in front of each broker. It has to be asked for
    /// here, because clients follow the address that a broker advertises from its start on. A
    /// Postgres takes a proxy at any time.
    pub const fn proxied(self) -> Needs {
        Needs { proxied: true, ..self }
    }

    /// The same servers with certificates, for clients that come by
    /// [`Postgres::tls_url`] and [`Kafka::secure_client`]. The other ways stay open.
    pub const fn tls(self) -> Needs {
        Needs { tls: true, ..self }
    }

    /// The same with TLS and a Kafka that asks whether a client may: who comes by
    /// [`Kafka::secure_client`] may do what [`Kafka::allow`] says, at first nothing, and who comes
    /// by the other ways may do everything.
    pub const fn authorizer(self) -> Needs {
        Needs { tls: true, authorizer: true, ..self }
    }

    /// The same for taking figures: a broker of our own runs as it would in production, at the
    /// price of a slower start.
    pub const fn measured(self) -> Needs {
        Needs { measured: true, ..self }
    }

    /// The same with a Postgres of this major version, 15 to 18.
    pub const fn postgres_version(self, major: u32) -> Needs {
        Needs { postgres_version: Some(major), ..self }
    }

    /// Whether the Postgres has to be one of our own.
    pub(crate) const fn own_postgres(self) -> bool {
        self.breakable || self.tls || self.postgres_version.is_some()
    }

    /// Whether servers in Docker can be what is asked for.
    pub(crate) const fn fits_docker(self) -> bool {
        self.brokers == 1 && !self.proxied && !self.tls
    }

    /// Whether a Kafka dies of which no other broker goes on.
    const fn kills_lone_kafka(self) -> bool {
        self.kafka && self.breakable && self.brokers == 1
    }

    /// Whether the Kafka has to be one of our own.
    pub(crate) const fn own_kafka(self) -> bool {
        self.breakable || self.brokers != 1 || self.proxied || self.tls
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
    certificates: Option<Certificates>,
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
        let postgres_version = needs.postgres_version.or(settings.postgres_version);
        let lone = || needs.kills_lone_kafka().then(|| maven::version("kafka-lone").to_owned());
        let kafka_version = settings.kafka_version.clone().or_else(lone);
        let settings = Arc::new(Settings { postgres_version, kafka_version, ..settings });
        let for_plan = Arc::clone(&settings);
        let plan = blocking(move || Plan::make(needs, &for_plan)).await?;
        let certificates = needs.tls.then(|| Certificates::create(&settings)).transpose()?;
        let (postgres, kafka) = tokio::try_join!(
            async {
                match plan.postgres {
                    Some(way) => {
                        Postgres::start(way, &settings, certificates.as_ref()).await.map(Some)
                    }
                    None => Ok(None),
                }
            },
            async {
                match plan.kafka {
                    Some(way) => {
                        Kafka::start(way, needs, &settings, certificates.as_ref()).await.map(Some)
                    }
                    None => Ok(None),
                }
            },
        )?;
        Ok(Stack { postgres, kafka, certificates, _breaking: plan.breaking })
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

    /// What its servers and their clients prove with who they are.
    ///
    /// # Panics
    ///
    /// When the stack was started without [`Needs::tls`].
    pub fn certificates(&self) -> &Certificates {
        self.certificates.as_ref().expect("the stack was started with Needs::tls()")
    }
}

/// Where each server comes from.
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
        let no_postgres = postgres.as_ref().and_then(|source| source.as_ref().err());
        let no_kafka = kafka.as_ref().and_then(|source| source.as_ref().err());
        if no_postgres.is_some() || no_kafka.is_some() {
            return Err(every_way(needs, no_postgres, no_kafka));
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

fn every_way(needs: Needs, no_postgres: Option<&String>, no_kafka: Option<&String>) -> Error {
    let mut text = String::from("there are no servers to run on:");
    for what in [no_postgres, no_kafka].into_iter().flatten() {
        text += &format!("\n  - {what}");
    }
    text += "\nany of these ways mends it:";
    text += "\n  - local servers: install Java 17 or later and Maven, so that `java` and `mvn` are in \
             the PATH; the servers themselves are fetched once and kept";
    if no_postgres.is_some() {
        text += &format!(
            "\n  - for Postgres alone: install it, 15 or later (`apt install postgresql`, \
             `brew install postgresql@18`); it serves where Maven is missing, and {PG_VERSION} \
             picks among several"
        );
    }
    text += &if needs.breakable {
        format!(
            "\n  - servers of your own ({DATABASE_URL}, {KAFKA_BROKERS}) do not help here: this \
             run kills its servers"
        )
    } else {
        format!(
            "\n  - servers of your own: set {DATABASE_URL} (a superuser's URL, to a server with \
             wal_level=logical) and {KAFKA_BROKERS} (host:port, with commas between several)"
        )
    };
    text += if cfg!(feature = "docker") {
        "\n  - servers in Docker: start an engine that this user may use (one broker, without TLS)"
    } else {
        "\n  - servers in Docker: start an engine, and build with `--features tailrace-stack/docker`"
    };
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
