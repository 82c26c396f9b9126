//! A Postgres in Docker.

use std::sync::Arc;

use testcontainers_modules::postgres::Postgres as Image;
use testcontainers_modules::testcontainers::ImageExt;

use crate::docker::Container;
use crate::error::Error;
use crate::server::Server;
use crate::settings::Settings;
use crate::unique::random;

/// They stand in place of the image's own, which turn fsync off. As for a local server, a relay
/// under test wants many slots.
const COMMAND: [&str; 10] = [
    "-c",
    "wal_level=logical",
    "-c",
    "max_connections=200",
    "-c",
    "max_wal_senders=50",
    "-c",
    "max_replication_slots=100",
    "-c",
    "max_prepared_transactions=20",
];

/// The postmaster is the first process; the signal asks for a shutdown that waits for nobody.
const STOP: &str = "kill -s INT 1";

/// A server that has been started.
pub(super) struct Started {
    pub(super) server: Arc<dyn Server>,
    pub(super) host: String,
    pub(super) port: u16,
    /// Of its superuser.
    pub(super) url: String,
}

pub(super) fn start(settings: &Settings, version: u32) -> Result<Started, Error> {
    let password = format!("{:016x}", random());
    let container = Container::start(settings, "tailrace_postgres", 5432, || {
        Image::default().with_password(&password).with_tag(version.to_string()).with_cmd(COMMAND)
    })?;
    let (host, port) = container.address();
    let url = format!("postgres://postgres:{password}@{host}:{port}/postgres?sslmode=disable");
    let host = host.to_owned();
    Ok(Started { server: Arc::new(container), host, port, url })
}

impl Server for Container<Image> {
    fn kill(&self) -> Result<(), Error> {
        self.kill()
    }

    fn stop(&self) -> Result<(), Error> {
        self.stop_by(STOP)
    }

    fn pause(&self) -> Result<(), Error> {
        self.pause()
    }

    fn resume(&self) -> Result<(), Error> {
        self.resume()
    }

    fn restart(&self) -> Result<(), Error> {
        self.stop_by(STOP)?;
        self.start_again()
    }
}
