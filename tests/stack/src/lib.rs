//! A real Postgres and a real Kafka for tests and examples, with nothing to prepare.
//!
//! [`Stack::start`] answers with servers that are ours to break, or with one error that lists
//! every way to provide them. It looks, for each server on its own, in this order:
//!
//! 1. `TAILRACE_STACK_DATABASE_URL` and `TAILRACE_STACK_KAFKA_BROKERS`: servers of your own.
//!    `DATABASE_URL` is never read: tests create and drop databases and slots, and a shell may
//!    export that one for something dear.
//! 2. Docker, in a build with the feature `docker`: where `TAILRACE_STACK_DOCKER` is set, and
//!    where the next way is closed but an engine answers. One broker, without TLS; what asks for
//!    more takes the next way.
//! 3. Local servers, fetched once through Maven by the coordinates in `pom.xml` and kept in
//!    `TAILRACE_CACHE` (default: `tailrace` in the user's cache directory; for root, in
//!    `/var/cache` where that directory is closed to others, because Postgres refuses to run as
//!    root and runs as `postgres` or `nobody`). `TAILRACE_PG_VERSION` picks the Postgres, 15 to 18
//!    (default: 18), [`Needs::postgres_version`] outdoes it, and `TAILRACE_KAFKA_VERSION` picks any
//!    Kafka that Maven has (default: those in `pom.xml`, see [`Needs::breakable`]). Where Maven is missing, an installed Postgres serves.
//!
//! Local servers end with the process that started them, however it ends (shown by the test
//! `killing_the_owner_leaves_no_server_and_no_directory`).
//!
//! ```no_run
//! # async fn example() -> Result<(), tailrace_stack::Error> {
//! use tailrace_stack::{Needs, Stack, unique};
//!
//! let stack = Stack::start(Needs::BOTH).await?;
//! let database = stack.postgres().fresh_database("orders").await?;
//! let topic = stack.kafka().fresh_topic("orders", 3).await?;
//! let group = unique("orders");
//! println!("{} {topic} {group}", database.url());
//! # Ok(())
//! # }
//! ```
//!
//! For faults, ask for more: [`Needs::breakable`] servers are killed, stopped and paused,
//! [`Needs::brokers`] makes the Kafka a replicated one, [`Needs::proxied`] and
//! [`Postgres::proxy`] let the network fail, [`Postgres::standby`] can be promoted, and with
//! [`Needs::tls`] clients have to prove who they are. With [`Needs::authorizer`] the Kafka lets them
//! do no more than [`Kafka::allow`] says.
//!
//! For tests of pages, [`axe()`] is the script of axe-core.

mod stack;

mod certificates;
mod kafka;
mod postgres;
mod proxy;

mod axe;
mod cache;
#[cfg(feature = "docker")]
mod docker;
mod error;
mod home;
mod maven;
mod ports;
mod process;
mod server;
mod settings;
mod tree;
mod unique;

#[cfg(test)]
mod tests;

pub use axe::axe;
pub use certificates::Certificates;
pub use error::{Error, Kind};
pub use kafka::{Acl, Broker, Kafka, Mechanism, Operation};
pub use postgres::{Database, Login, Pooler, Postgres, Replication};
pub use proxy::{Proxy, Towards};
pub use stack::{Needs, Stack};
pub use unique::unique;
