//! A Postgres server of our own: made, started, stopped and killed.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sqlx::Connection;
use tokio::time::{sleep, timeout};

use super::binaries::Binaries;
use super::login::ACCESS;
use super::{ANSWER_MAX, connect};
use crate::certificates::{Certificates, write_secret};
use crate::error::{Error, Kind};
use crate::home::{Farewell, Home};
use crate::ports;
use crate::process::{Process, log_end, log_to, run};
use crate::server::Server;
use crate::settings::Settings;
use crate::stack::blocking;
use crate::tree;
use crate::unique::random;

/// Recovery after a kill is part of it.
const START_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(30);
const KILL_MAX: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_secs(10);
const INITDB_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// How often a new server may find that its port was taken in the meantime.
const PORTS_MAX: u32 = 5;

/// The longest path of a socket's directory that leaves room for the socket's name on macOS, where
/// a path has 104 bytes.
const SOCKET_DIRECTORY_MAX: usize = 80;

const TLS: &str = "
ssl = on
ssl_cert_file = 'server.pem'
ssl_key_file = 'server.key'
ssl_ca_file = 'ca.pem'
";

pub(super) struct Cluster {
    settings: Settings,
    /// As they were given; `binaries` may be a copy in the home.
    origin: Binaries,
    binaries: Binaries,
    password: String,
    state: Mutex<State>,
    /// After the process: it removes the directory.
    home: Home,
}

struct State {
    port: Option<u16>,
    process: Option<Process>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("home", &self.home).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Makes the data directory. Each has an identity of its own, as a copy of a ready-made one
    /// would not: the relay tells servers apart by it.
    pub(super) fn create(binaries: Binaries, settings: &Settings) -> Result<Self, Error> {
        let home = home(settings)?;
        let origin = binaries.clone();
        let binaries = reachable(binaries, settings, &home)?;
        let password = format!("{:016x}", random());
        let password_file = home.path().join("password");
        let failed = |error| Error::new(Kind::Server, "cannot write the password").caused_by(error);
        fs::write(&password_file, &password).map_err(failed)?;
        home.give(&password_file).map_err(failed)?;
        let mut command = home.command(
            &binaries.program("initdb"),
            [
                "--username=postgres",
                "--pwfile=password",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-locale",
                "--no-sync",
                "--no-instructions",
                "--pgdata=data",
            ],
        );
        run(&home, "initdb", &mut command, INITDB_MAX)?;
        configure(&home)?;
        Ok(Cluster::stopped(settings.clone(), origin, binaries, password, home))
    }

    fn stopped(
        settings: Settings,
        origin: Binaries,
        binaries: Binaries,
        password: String,
        home: Home,
    ) -> Self {
        let state = Mutex::new(State { port: None, process: None });
        Cluster { settings, origin, binaries, password, state, home }
    }

    /// Another server with a copy of the data, of those paths that `keeps` agrees to, and with
    /// settings that outdo those in the data.
    pub(super) fn copy(
        &self,
        keeps: &dyn Fn(&Path) -> bool,
        settings: &str,
    ) -> Result<Self, Error> {
        let home = home(&self.settings)?;
        let binaries = reachable(self.origin.clone(), &self.settings, &home)?;
        let data = home.path().join("data");
        let work = || {
            tree::copy(&self.home.path().join("data"), &data, &home, keeps)?;
            let sockets = format!("unix_socket_directories = '{}'\n", sockets(&home));
            append(&data.join("postgresql.auto.conf"), &(settings.to_owned() + &sockets))
        };
        work().map_err(|error: std::io::Error| {
            Error::new(Kind::Server, "cannot copy the data of a Postgres").caused_by(error)
        })?;
        let (settings, origin) = (self.settings.clone(), self.origin.clone());
        Ok(Cluster::stopped(settings, origin, binaries, self.password.clone(), home))
    }

    /// Writes a file of the data directory.
    pub(super) fn write_data(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.home.path().join("data").join(name);
        fs::write(&path, text).and_then(|()| self.home.give(&path)).map_err(|error| {
            Error::new(Kind::Server, format!("cannot write {name}")).caused_by(error)
        })
    }

    /// Has it speak TLS from its start on, to clients of these certificates.
    pub(super) fn secure(&self, certificates: &Certificates) -> Result<(), Error> {
        let data = self.home.path().join("data");
        let work = || {
            let key = fs::read_to_string(certificates.server_key())?;
            write_secret(&data.join("server.key"), &key)?;
            fs::copy(certificates.server_certificate(), data.join("server.pem"))?;
            fs::copy(certificates.misnamed_certificate(), data.join("misnamed.pem"))?;
            fs::copy(certificates.ca(), data.join("ca.pem"))?;
            for name in ["server.key", "server.pem", "misnamed.pem", "ca.pem"] {
                self.home.give(&data.join(name))?;
            }
            let access = data.join("pg_hba.conf");
            fs::write(&access, ACCESS.to_owned() + &fs::read_to_string(&access)?)?;
            append(&data.join("postgresql.conf"), TLS)
        };
        work().map_err(|error: std::io::Error| {
            Error::new(Kind::Server, "cannot set up TLS for Postgres").caused_by(error)
        })
    }

    /// Starts the server, or starts it again, and answers with its port and URL when it serves.
    pub(super) async fn start(self: &Arc<Self>) -> Result<(u16, String), Error> {
        let mut attempts = 0;
        loop {
            let cluster = Arc::clone(self);
            let (port, kept) = blocking(move || cluster.spawn()).await?;
            attempts += 1;
            match self.serve(port).await {
                Ok(url) => return Ok((port, url)),
                // A port that was in use before is part of the server's identity.
                Err(error) if kept || attempts == PORTS_MAX || !self.lost_port() => {
                    return Err(error);
                }
                Err(_) => self.with(|state| state.port = None),
            }
        }
    }

    /// The port, and whether it is that of an earlier life.
    fn spawn(&self) -> Result<(u16, bool), Error> {
        if self.with(|state| state.process.is_some()) {
            self.stop()?;
        }
        let (port, kept) = match self.with(|state| state.port) {
            Some(port) => (port, true),
            None => (ports::free()?, false),
        };
        // The log is of this life alone, so that an error shows nothing older.
        fs::remove_file(self.log()).ok();
        let port_argument = port.to_string();
        let mut command = self
            .home
            .command(&self.binaries.program("postgres"), ["-D", "data", "-p", &port_argument]);
        log_to(&mut command, &self.log())?;
        let process = Process::spawn(&self.home, &mut command)?;
        self.with(|state| *state = State { port: Some(port), process: Some(process) });
        Ok((port, kept))
    }

    async fn serve(self: &Arc<Self>, port: u16) -> Result<String, Error> {
        let url = format!(
            "postgres://postgres:{}@127.0.0.1:{port}/postgres?sslmode=disable",
            self.password
        );
        let deadline = Instant::now() + START_MAX;
        loop {
            let answer = timeout(ANSWER_MAX, connect(&url)).await;
            if let Ok(Ok(connection)) = answer {
                connection.close().await.ok();
                return Ok(url);
            }
            let ended = self.with(|state| match &mut state.process {
                Some(process) => process.ended(),
                None => Ok(None),
            })?;
            if ended.is_some() || Instant::now() >= deadline {
                let text = format!("Postgres does not start:\n{}", log_end(&self.log()));
                if ended.is_some() {
                    self.with(|state| state.process = None);
                }
                return Err(Error::new(Kind::Server, text));
            }
            sleep(POLL).await;
        }
    }

    fn end(&self, how: impl FnOnce(&mut Process) -> Result<(), Error>) -> Result<(), Error> {
        self.with(|state| {
            if let Some(process) = &mut state.process {
                how(process)?;
            }
            state.process = None;
            Ok(())
        })
    }

    fn lost_port(&self) -> bool {
        log_end(&self.log()).contains("could not bind")
    }

    #[cfg(test)]
    pub(super) fn directory(&self) -> PathBuf {
        self.home.path().to_owned()
    }

    fn log(&self) -> PathBuf {
        self.home.path().join("server.log")
    }

    /// A panic under the lock leaves a state that is still true.
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Server for Cluster {
    fn kill(&self) -> Result<(), Error> {
        self.end(|process| process.kill(KILL_MAX))
    }

    fn stop(&self) -> Result<(), Error> {
        self.end(|process| {
            process.resume();
            process.signal(Signal::INT);
            match process.wait(STOP_MAX)? {
                Some(_) => Ok(()),
                None => {
                    Err(Error::new(Kind::Server, format!("Postgres does not stop in {STOP_MAX:?}")))
                }
            }
        })
    }

    fn pause(&self) -> Result<(), Error> {
        self.with(|state| match &state.process {
            Some(process) => process.pause(PAUSE_MAX),
            None => Ok(()),
        })
    }

    fn resume(&self) -> Result<(), Error> {
        self.with(|state| {
            if let Some(process) = &state.process {
                process.resume();
            }
        });
        Ok(())
    }

    fn restart(&self) -> Result<(), Error> {
        self.spawn().map(drop)
    }
}

impl Drop for Cluster {
    /// An immediate shutdown: it writes nothing, but frees the shared memory, which SIGKILL would
    /// leave to the machine.
    fn drop(&mut self) {
        self.end(|process| {
            process.resume();
            process.signal(Signal::QUIT);
            match process.wait(KILL_MAX)? {
                Some(_) => Ok(()),
                None => process.kill(KILL_MAX),
            }
        })
        .ok();
    }
}

/// The settings are in the file rather than on the command line, so that a test can change them
/// with `alter system`. Where a setting is not the default, tests want many slots and
/// prepared transactions, and nothing may be left in the machine's shared memory.
fn configure(home: &Home) -> Result<(), Error> {
    let settings = format!(
        "
listen_addresses = '127.0.0.1'
unix_socket_directories = '{}'
wal_level = logical
max_connections = 200
max_wal_senders = 50
max_replication_slots = 100
max_prepared_transactions = 20
dynamic_shared_memory_type = mmap
",
        sockets(home)
    );
    append(&home.path().join("data").join("postgresql.conf"), &settings)
        .map_err(|error| Error::new(Kind::Server, "cannot write postgresql.conf").caused_by(error))
}

fn home(settings: &Settings) -> Result<Home, Error> {
    let user = settings.user.clone();
    Home::create(&settings.temporary, "tailrace_postgres", Farewell::Quit, user)
}

/// The directory of the server's socket, for a setting.
fn sockets(home: &Home) -> String {
    let path = home.path();
    if path.as_os_str().len() <= SOCKET_DIRECTORY_MAX {
        path.display().to_string().replace('\'', "''")
    } else {
        String::new()
    }
}

fn append(file: &Path, text: &str) -> std::io::Result<()> {
    File::options().append(true).open(file)?.write_all(text.as_bytes())
}

/// The programs at a place where the server's user can run them: root's own cache may lie under a
/// closed home directory, then they are copied.
fn reachable(binaries: Binaries, settings: &Settings, home: &Home) -> Result<Binaries, Error> {
    let Some(user) = &settings.user else { return Ok(binaries) };
    if user.reaches(&binaries.program("")) {
        return Ok(binaries);
    }
    let copy = home.path().join("postgres");
    tree::copy(binaries.root(), &copy, home, &|_| true).map_err(|error| {
        let text = format!("cannot copy {} for the user of Postgres", binaries.root().display());
        Error::new(Kind::Server, text).caused_by(error)
    })?;
    Ok(binaries.moved(&copy))
}
