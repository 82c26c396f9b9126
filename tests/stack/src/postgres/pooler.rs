//! A PgBouncer in front of a Postgres.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cache;
use crate::error::{Error, Kind};
use crate::home::{Farewell, Home};
use crate::ports;
use crate::process::{Process, log_end, log_to, run};
use crate::settings::Settings;

const START_MAX: Duration = Duration::from_secs(10);
const STOP_MAX: Duration = Duration::from_secs(10);
const FETCH_MAX: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(5);

/// How often a new pooler may find that its port was taken in the meantime.
const PORTS_MAX: u32 = 5;

/// Where distributors put it, which is in no ordinary user's search path.
const PLACE: &str = "/usr/sbin/pgbouncer";

/// What Debian's package needs beyond what every system has.
const PACKAGES: &str = "apt-get download pgbouncer $(apt-cache depends -i pgbouncer | \
                        sed -n 's/^ *Depends: \\(lib.*\\)$/\\1/p' | grep -v '^libc6$') && \
                        mkdir unpacked && for package in *.deb; do \
                        dpkg-deb -x \"$package\" unpacked || exit 1; done";

/// A PgBouncer in transaction mode: many clients share few connections to the server, each for
/// the length of a transaction. Dropping it ends it.
///
/// Where none is installed, Debian's package is fetched once and unpacked in the cache.
#[derive(Debug)]
pub struct Pooler {
    port: u16,
    login: String,
    process: Process,
    /// After the process: it removes the directory.
    _home: Home,
}

/// A program, and the directory of the libraries that came with it.
struct Program {
    path: PathBuf,
    libraries: Option<PathBuf>,
}

impl Pooler {
    pub(super) fn start(url: &str, servers: u32, settings: &Settings) -> Result<Self, Error> {
        let program = find(settings)?;
        let user = settings.user.clone();
        let home = Home::create(&settings.temporary, "tailrace_pooler", Farewell::Kill, user)?;
        let (login, place) = split(url);
        let mut attempts = 0;
        loop {
            let port = ports::free()?;
            configure(&home, port, login, place, servers).map_err(|error| {
                Error::new(Kind::Server, "cannot configure PgBouncer").caused_by(error)
            })?;
            let log = home.path().join("pooler.log");
            fs::remove_file(&log).ok();
            let mut command = home.command(&program.path, ["pgbouncer.ini"]);
            if let Some(libraries) = &program.libraries {
                command.env("LD_LIBRARY_PATH", libraries);
            }
            log_to(&mut command, &log)?;
            let mut process = Process::spawn(&home, &mut command)?;
            attempts += 1;
            match listens(&mut process, port, &log) {
                Ok(()) => {
                    let login = login.to_owned();
                    return Ok(Pooler { port, login, process, _home: home });
                }
                Err(_) if attempts < PORTS_MAX && log_end(&log).contains("in use") => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The superuser's URL to a database through the pooler.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{}@127.0.0.1:{}/{database}?sslmode=disable", self.login, self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.process.signal(Signal::INT);
        if !matches!(self.process.wait(STOP_MAX), Ok(Some(_))) {
            self.process.kill(STOP_MAX).ok();
        }
    }
}

/// Its login, and `host:port`.
fn split(url: &str) -> (&str, &str) {
    let (_, rest) = url.split_once("://").unwrap_or(("", url));
    let (login, rest) = rest.split_once('@').unwrap_or(("postgres", rest));
    (login, rest.split('/').next().unwrap_or(rest))
}

fn configure(
    home: &Home,
    port: u16,
    login: &str,
    place: &str,
    servers: u32,
) -> std::io::Result<()> {
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (host, server_port) = place.split_once(':').unwrap_or((place, "5432"));
    let settings = format!(
        "[databases]
* = host={host} port={server_port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = users.txt
pool_mode = transaction
default_pool_size = {servers}
max_client_conn = 200
"
    );
    for (name, text) in
        [("pgbouncer.ini", settings), ("users.txt", format!("\"{user}\" \"{password}\"\n"))]
    {
        let path = home.path().join(name);
        fs::write(&path, text)?;
        home.give(&path)?;
    }
    Ok(())
}

fn listens(process: &mut Process, port: u16, log: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + START_MAX;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if process.ended()?.is_some() || Instant::now() >= deadline {
            process.kill(STOP_MAX)?;
            let text = format!("PgBouncer does not start:\n{}", log_end(log));
            return Err(Error::new(Kind::Server, text));
        }
        thread::sleep(POLL);
    }
    Ok(())
}

fn find(settings: &Settings) -> Result<Program, Error> {
    let installed = settings.program("pgbouncer");
    let installed = installed.or_else(|| Some(PathBuf::from(PLACE)).filter(|path| path.is_file()));
    if let Some(path) = installed {
        return Ok(Program { path, libraries: None });
    }
    let unpacked = cache::entry(&settings.cache, "pgbouncer-of-debian", |home| {
        let mut command = home.command(Path::new("/bin/sh"), ["-c", PACKAGES]);
        command.env("PATH", &settings.path);
        run(home, "fetch", &mut command, FETCH_MAX)?;
        Ok(home.path().join("unpacked"))
    });
    let unpacked = unpacked.map_err(|error| {
        let text = "there is no PgBouncer: install it (`apt-get install pgbouncer`, `brew install \
                    pgbouncer`); where apt-get knows its package it is fetched without that";
        Error::new(Kind::Missing, text).caused_by(error)
    })?;
    let libraries = unpacked.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    Ok(Program { path: unpacked.join("usr/sbin/pgbouncer"), libraries: Some(libraries) })
}
