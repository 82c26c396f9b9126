//! What the environment says; the only place that reads it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use crate::error::{Error, Kind};
use crate::home::User;

pub(crate) const DATABASE_URL: &str = "TAILRACE_STACK_DATABASE_URL";
pub(crate) const KAFKA_BROKERS: &str = "TAILRACE_STACK_KAFKA_BROKERS";
pub(crate) const CACHE: &str = "TAILRACE_CACHE";
pub(crate) const PG_VERSION: &str = "TAILRACE_PG_VERSION";
pub(crate) const KAFKA_VERSION: &str = "TAILRACE_KAFKA_VERSION";
pub(crate) const DOCKER: &str = "TAILRACE_STACK_DOCKER";

/// Where root keeps the cache when its own cache directory is closed to the user that Postgres
/// has to run as.
const CACHE_OF_ROOT: &str = "/var/cache";

/// The environment as a value, so that a test can start a stack in another one.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) database_url: Option<String>,
    pub(crate) kafka_brokers: Option<String>,
    pub(crate) cache: PathBuf,
    /// The major version that was asked for.
    pub(crate) postgres_version: Option<u32>,
    /// The version that was asked for, as Maven knows it.
    pub(crate) kafka_version: Option<String>,
    pub(crate) path: OsString,
    pub(crate) java_home: Option<PathBuf>,
    pub(crate) docker: Docker,
    /// Directories in which the distributors put their Postgres.
    pub(crate) postgres_places: Vec<PathBuf>,
    pub(crate) temporary: PathBuf,
    /// The user that runs Postgres, which refuses to run as root; `None` is ourselves.
    pub(crate) user: Option<User>,
}

impl Settings {
    pub(crate) fn from_environment() -> Result<Self, Error> {
        let text = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let path = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let user = if geteuid().is_root() { Some(User::unprivileged()?) } else { None };
        Ok(Settings {
            database_url: text(DATABASE_URL),
            kafka_brokers: text(KAFKA_BROKERS),
            cache: cache(user.as_ref())?,
            postgres_version: text(PG_VERSION).map(|text| version(&text)).transpose()?,
            kafka_version: text(KAFKA_VERSION).map(kafka_version).transpose()?,
            path: path("PATH").unwrap_or_default(),
            java_home: path("JAVA_HOME").map(PathBuf::from),
            docker: Docker::from_environment()?,
            postgres_places: ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"]
                .map(PathBuf::from)
                .to_vec(),
            temporary: temporary(user.as_ref()),
            user,
        })
    }

    /// The program of this name in the search path.
    pub(crate) fn program(&self, name: &str) -> Option<PathBuf> {
        env::split_paths(&self.path).map(|folder| folder.join(name)).find(|path| path.is_file())
    }
}

/// Whether servers in Docker are wanted, and where an engine may answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Docker {
    asked_for: bool,
    /// An engine that is named is taken to be there.
    named: bool,
    sockets: Vec<PathBuf>,
}

impl Docker {
    fn from_environment() -> Result<Self, Error> {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let asked_for = set(DOCKER).is_some();
        if asked_for && !cfg!(feature = "docker") {
            return Err(without_docker());
        }
        let below = |folder: Option<PathBuf>, path: &str| folder.map(|folder| folder.join(path));
        let sockets = [
            Some(PathBuf::from("/var/run/docker.sock")),
            below(set("XDG_RUNTIME_DIR").map(PathBuf::from), "docker.sock"),
            below(env::home_dir(), ".docker/run/docker.sock"),
        ];
        let sockets = sockets.into_iter().flatten().collect();
        Ok(Docker { asked_for, named: set("DOCKER_HOST").is_some(), sockets })
    }

    /// As if the environment asked for it.
    #[cfg(all(test, feature = "docker"))]
    pub(crate) fn wanted() -> Self {
        Docker { asked_for: true, ..Docker::default() }
    }

    pub(crate) fn is_asked_for(&self) -> bool {
        self.asked_for
    }

    /// Whether an engine answers that this build can use.
    pub(crate) fn answers(&self) -> bool {
        let reached = || self.sockets.iter().any(|socket| UnixStream::connect(socket).is_ok());
        cfg!(feature = "docker") && (self.named || reached())
    }
}

/// Docker was asked for in a build that lacks it.
pub(crate) fn without_docker() -> Error {
    let text = "this build cannot use Docker; add `--features tailrace-stack/docker`";
    Error::new(Kind::Environment, format!("{DOCKER} is set, but {text}"))
}

fn version(text: &str) -> Result<u32, Error> {
    text.parse().ok().filter(|version| (15..=18).contains(version)).ok_or_else(|| {
        Error::new(
            Kind::Environment,
            format!("{PG_VERSION} is {text:?}; it can be 15, 16, 17 or 18"),
        )
    })
}

/// It becomes the name of a directory and an argument of Maven.
fn kafka_version(text: String) -> Result<String, Error> {
    match text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        true => Ok(text),
        false => Err(Error::new(
            Kind::Environment,
            format!("{KAFKA_VERSION} is {text:?}; it is a version such as 3.9.1"),
        )),
    }
}

fn cache(user: Option<&User>) -> Result<PathBuf, Error> {
    if let Some(cache) = env::var_os(CACHE).filter(|value| !value.is_empty()) {
        return std::path::absolute(&cache).map_err(|error| {
            Error::new(Kind::Environment, format!("{CACHE} is not a path")).caused_by(error)
        });
    }
    let home = env::home_dir().filter(|home| !home.as_os_str().is_empty());
    let caches = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| home.map(|home| home.join(".cache")));
    match (caches, user) {
        (Some(caches), None) => Ok(caches.join("tailrace")),
        (Some(caches), Some(user)) if user.reaches(&existing(&caches)) => {
            Ok(caches.join("tailrace"))
        }
        (_, Some(_)) => Ok(Path::new(CACHE_OF_ROOT).join("tailrace")),
        (None, None) => Err(Error::new(
            Kind::Environment,
            format!("no home directory to keep a cache in; set {CACHE} to a directory"),
        )),
    }
}

/// The nearest ancestor that is there: the rest will be made by us.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| fs::metadata(path).is_ok()).unwrap_or(path).to_owned()
}

fn temporary(user: Option<&User>) -> PathBuf {
    let temporary = env::temp_dir();
    match user {
        Some(user) if !user.reaches(&temporary) => PathBuf::from("/tmp"),
        _ => temporary,
    }
}
