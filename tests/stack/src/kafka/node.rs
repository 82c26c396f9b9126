//! One node of a Kafka of our own: made, started, stopped and killed.

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

use super::cluster::Shape;
use super::libraries::{Classes, Install};
use super::properties::{AUTHORIZER, properties};
use super::secure::{KEYSTORE, Secure};
use crate::error::{Error, Kind};
use crate::home::{Farewell, Home};
use crate::process::{Process, log_end, log_to, run};
use crate::proxy::Proxy;
use crate::settings::Settings;

const STOP_MAX: Duration = Duration::from_secs(30);
const KILL_MAX: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_secs(10);
const FORMAT_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

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

/// The ports of a node, and the proxy through which the second of its addresses leads.
#[derive(Debug)]
pub(super) struct Listeners {
    pub(super) client: u16,
    pub(super) controller: u16,
    pub(super) proxied: Option<(u16, Proxy)>,
    pub(super) secure: Option<u16>,
}

/// One node is a broker and a controller.
pub(super) struct Node {
    install: Install,
    number: u32,
    measured: bool,
    listeners: Option<Listeners>,
    process: Mutex<Option<Process>>,
    /// After the process: it removes the directory.
    home: Home,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Node {
    /// Makes its directory. Before anything else it has to [`listen`](Node::listen).
    pub(super) fn create(
        install: Install,
        settings: &Settings,
        number: u32,
        measured: bool,
    ) -> Result<Self, Error> {
        let home = Home::create(&settings.temporary, "tailrace_kafka", Farewell::Kill, None)?;
        fs::write(home.path().join("log4j2.xml"), LOG4J).map_err(unwritten)?;
        Ok(Node { install, number, measured, listeners: None, process: Mutex::new(None), home })
    }

    /// Takes these ports from the next start on; `voters` are the numbers and controller ports of
    /// all nodes.
    pub(super) fn listen(
        &mut self,
        listeners: Listeners,
        voters: &[(u32, u16)],
        shape: &Shape,
    ) -> Result<(), Error> {
        let data = self.home.path().join("data").display().to_string();
        let mut text = properties(self.number, &listeners, voters, &data);
        if let Some(secure) = &shape.secure {
            text += &secure.properties();
        }
        if shape.authorizer {
            text += AUTHORIZER;
        }
        self.listeners = Some(listeners);
        fs::write(self.home.path().join("server.properties"), text).map_err(unwritten)
    }

    /// From 1.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    pub(super) fn secure_address(&self) -> Option<String> {
        let port = self.listeners.as_ref()?.secure?;
        Some(format!("localhost:{port}"))
    }

    pub(super) fn proxy(&self) -> Option<&Proxy> {
        let (_, proxy) = self.listeners.as_ref()?.proxied.as_ref()?;
        Some(proxy)
    }

    fn port(&self) -> u16 {
        self.listeners.as_ref().expect("a node listens before it is used").client
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
    pub(super) fn format(&self, cluster: &str, secure: Option<&Secure>) -> Result<(), Error> {
        let mut options = Vec::new();
        if let Classes::Read(archive) = self.install.classes() {
            options.push(option("-XX:SharedArchiveFile=", archive));
        }
        let mut command = self.java(&options, "kafka.tools.StorageTool");
        command.args(["format", "--cluster-id", cluster, "--config", "server.properties"]);
        if let Some(secure) = secure {
            secure.write(&self.home.path().join(KEYSTORE)).map_err(unwritten)?;
            command.args(["--add-scram", &secure.user()]);
        }
        run(&self.home, "format", &mut command, FORMAT_MAX)
    }

    /// Starts it and answers when it listens.
    pub(super) fn start(&self, deadline: Instant) -> Result<(), Error> {
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
        let port = self.port();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let running = match Instant::now() >= deadline {
                true => Err(self.failed()),
                false => self.is_running(),
            };
            if running.is_err() {
                self.kill()?;
                return running;
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Fails with the end of its log if it has ended.
    pub(super) fn is_running(&self) -> Result<(), Error> {
        let ended = self.with(|slot| slot.as_mut().map(Process::ended)).transpose()?;
        match ended.flatten() {
            Some(_) => Err(self.failed()),
            None => Ok(()),
        }
    }

    fn failed(&self) -> Error {
        Error::new(Kind::Server, format!("Kafka does not start:\n{}", log_end(&self.log())))
    }

    fn java(&self, options: &[OsString], class: &str) -> Command {
        let mut command = self.home.command(self.install.java(), options);
        if !self.measured {
            command.arg(QUICK_COMPILER);
        }
        command
            .args(["-XX:+UseSerialGC", "-Dlog4j2.configurationFile=log4j2.xml", "-cp"])
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

    pub(super) fn lost_port(&self) -> bool {
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

impl Drop for Node {
    fn drop(&mut self) {
        // The watcher tries again.
        self.kill().ok();
    }
}

fn option(name: &str, file: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push(file);
    option
}

fn unwritten(error: std::io::Error) -> Error {
    Error::new(Kind::Server, "cannot write the configuration of Kafka").caused_by(error)
}
