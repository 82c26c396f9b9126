//! A Kafka broker of our own: made, started, stopped and killed.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::libraries::{Classes, Install};
use super::topic;
use crate::error::{Error, Kind};
use crate::home::{Farewell, Home};
use crate::ports;
use crate::process::{Process, log_end, log_to, run};
use crate::settings::Settings;
use crate::unique::random;

/// Recovery of the log after a kill is part of it.
const START_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(30);
const KILL_MAX: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_secs(10);
const FORMAT_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// How often a new broker may find that a port was taken in the meantime.
const PORTS_MAX: u32 = 5;

const NODE: u32 = 1;

/// A broker of a test does not live long enough to earn back what the optimising compiler costs:
/// on two busy cores a start takes half as long again with it.
const QUICK_COMPILER: &str = "-XX:TieredStopAtLevel=1";

/// Only warnings, into the broker's own log.
const LOG4J: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN">
  <Appenders>
    <Console name="log"><PatternLayout pattern="%d %p %m (%c)%n%throwable"/></Console>
  </Appenders>
  <Loggers>
    <Root level="WARN"><AppenderRef ref="log"/></Root>
  </Loggers>
</Configuration>
"#;

pub(super) struct Broker {
    install: Install,
    port: u16,
    cluster: String,
    process: Mutex<Option<Process>>,
    /// After the process: it removes the directory.
    home: Home,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Broker {
    /// Makes a broker and starts it.
    pub(super) fn create(install: Install, settings: &Settings) -> Result<Self, Error> {
        let home = Home::create(&settings.temporary, "tailrace_kafka", Farewell::Kill, None)?;
        let log4j = home.path().join("log4j2.xml");
        fs::write(&log4j, LOG4J).map_err(unwritten)?;
        let mut broker =
            Broker { install, port: 0, cluster: cluster_id(), process: Mutex::new(None), home };
        broker.format()?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            broker.choose_ports()?;
            match broker.start() {
                Ok(()) => return Ok(broker),
                Err(_) if attempts < PORTS_MAX && broker.lost_port() => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(super) fn restart(&self) -> Result<(), Error> {
        self.stop()?;
        self.start()
    }

    pub(super) fn stop(&self) -> Result<(), Error> {
        self.end(|process| {
            process.resume();
            process.signal(Signal::TERM);
            match process.wait(STOP_MAX)? {
                Some(_) => Ok(()),
                None => {
                    Err(Error::new(Kind::Server, format!("Kafka does not stop in {STOP_MAX:?}")))
                }
            }
        })
    }

    pub(super) fn pause(&self) -> Result<(), Error> {
        self.with(|slot| match slot {
            Some(process) => process.pause(PAUSE_MAX),
            None => Ok(()),
        })
    }

    pub(super) fn resume(&self) {
        self.with(|slot| {
            if let Some(process) = slot {
                process.resume();
            }
        });
    }

    pub(super) fn kill(&self) -> Result<(), Error> {
        self.end(|process| process.kill(KILL_MAX))
    }

    /// Gives the data directory its identity and its features: those of the version, so that
    /// transactions are of version 2 and the new group protocol is on.
    fn format(&mut self) -> Result<(), Error> {
        self.choose_ports()?;
        let mut options = Vec::new();
        if let Classes::Read(archive) = self.install.classes() {
            options.push(option("-XX:SharedArchiveFile=", archive));
        }
        let mut command = self.java(&options, "kafka.tools.StorageTool");
        command.args(["format", "--cluster-id", &self.cluster, "--config", "server.properties"]);
        run(&self.home, "format", &mut command, FORMAT_MAX)
    }

    fn choose_ports(&mut self) -> Result<(), Error> {
        let controller = ports::free()?;
        self.port = loop {
            let port = ports::free()?;
            if port != controller {
                break port;
            }
        };
        let data = self.home.path().join("data");
        let properties = properties(self.port, controller, &data.display().to_string());
        fs::write(self.home.path().join("server.properties"), properties).map_err(unwritten)
    }

    fn start(&self) -> Result<(), Error> {
        // The log is of this life alone, so that an error shows nothing older.
        fs::remove_file(self.log()).ok();
        let mut options = vec![OsString::from("-Xmx768m")];
        match self.install.classes() {
            Classes::None => {}
            Classes::Read(archive) => options.push(option("-XX:SharedArchiveFile=", archive)),
            Classes::Write(archive) => options.push(option("-XX:ArchiveClassesAtExit=", archive)),
        }
        let mut command = self.java(&options, "kafka.Kafka");
        command.arg("server.properties");
        log_to(&mut command, &self.log())?;
        let process = Process::spawn(&self.home, &mut command)?;
        self.with(|slot| *slot = Some(process));
        let deadline = Instant::now() + START_MAX;
        let listens = || TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok();
        while !listens() {
            let ended = self.with(|slot| slot.as_mut().map(Process::ended)).transpose()?;
            if ended.flatten().is_some() || Instant::now() >= deadline {
                let error = format!("Kafka does not start:\n{}", log_end(&self.log()));
                self.kill()?;
                return Err(Error::new(Kind::Server, error));
            }
            thread::sleep(POLL);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        topic::wait_for_cluster(&self.address(), &self.cluster, left)
    }

    fn java(&self, options: &[OsString], class: &str) -> Command {
        let mut command = self.home.command(self.install.java(), options);
        command
            .args([
                QUICK_COMPILER,
                "-XX:+UseSerialGC",
                "-Dlog4j2.configurationFile=log4j2.xml",
                "-cp",
            ])
            .arg(self.install.class_path())
            .arg(class);
        command
    }

    fn end(&self, how: impl FnOnce(&mut Process) -> Result<(), Error>) -> Result<(), Error> {
        self.with(|slot| {
            if let Some(process) = slot {
                how(process)?;
            }
            *slot = None;
            Ok(())
        })
    }

    fn lost_port(&self) -> bool {
        log_end(&self.log()).contains("Address already in use")
    }

    #[cfg(test)]
    pub(super) fn directory(&self) -> PathBuf {
        self.home.path().to_owned()
    }

    fn log(&self) -> PathBuf {
        self.home.path().join("server.log")
    }

    /// A panic under the lock leaves a state that is still true.
    fn with<T>(&self, work: impl FnOnce(&mut Option<Process>) -> T) -> T {
        work(&mut self.process.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // The watcher tries again.
        self.kill().ok();
    }
}

/// One node that is broker and controller. What has a replication factor of 3 by default has 1
/// here, or a transaction would wait for brokers that never come; the inner topics are small, so
/// that they are created quickly; and a group does not wait for more members.
fn properties(port: u16, controller: u16, data: &str) -> String {
    format!(
        "process.roles=broker,controller
node.id={NODE}
controller.quorum.voters={NODE}@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
"
    )
}

fn option(name: &str, file: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push(file);
    option
}

/// 16 random bytes in base64 without padding: 22 digits, of which the last has two bits.
fn cluster_id() -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let digit = || {
        let number = usize::try_from(random() % DIGITS.len() as u64);
        number.ok().and_then(|number| DIGITS.get(number)).map_or('A', |digit| char::from(*digit))
    };
    std::iter::repeat_with(digit).take(21).chain(['A']).collect()
}

fn unwritten(error: std::io::Error) -> Error {
    Error::new(Kind::Server, "cannot write the configuration of Kafka").caused_by(error)
}
