//! Where the programs of a Postgres server come from.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;

use lzma_rust2::XzReader;

use crate::cache;
use crate::error::{Error, Kind};
use crate::maven::{self, Maven};
#[cfg(not(feature = "docker"))]
use crate::settings::without_docker;
use crate::settings::{DATABASE_URL, PG_VERSION, Settings};
use crate::stack::Needs;

/// The version that is fetched when none is asked for.
const VERSION: u32 = 18;
const VERSION_MIN: u32 = 15;
const FETCH_BYTES: u64 = 19_000_000;

/// What could provide a Postgres; nothing has been fetched for it yet.
#[derive(Debug)]
pub(crate) enum Source<'a> {
    Environment(String),
    Docker,
    /// `None` in place of Maven when the files are in the cache.
    Maven {
        maven: Option<&'a Maven>,
        artifact: Artifact,
    },
    Installed(Binaries),
}

/// What provides a Postgres.
#[derive(Debug)]
pub(crate) enum Way {
    Environment(String),
    /// The version of the image.
    #[cfg(feature = "docker")]
    Docker(u32),
    Local(Binaries),
}

/// A directory with `initdb` and `postgres`.
#[derive(Clone, Debug)]
pub(crate) struct Binaries {
    folder: PathBuf,
    why: String,
}

impl Binaries {
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Why it was taken, for a person.
    pub(crate) fn why(&self) -> &str {
        &self.why
    }

    /// The directory above, which holds the libraries too.
    pub(crate) fn root(&self) -> &Path {
        self.folder.parent().unwrap_or(&self.folder)
    }

    /// The same programs at another place.
    pub(crate) fn moved(self, root: &Path) -> Self {
        Binaries { folder: root.join("bin"), ..self }
    }
}

/// One of the archives that are published for embedding.
#[derive(Debug)]
pub(crate) struct Artifact {
    platform: String,
    version: &'static str,
}

impl Artifact {
    fn of(major: u32) -> Option<Self> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64v8",
            _ => return None,
        };
        let system = match std::env::consts::OS {
            "linux" => "linux",
            "macos" => "darwin",
            _ => return None,
        };
        let version = maven::version(&format!("postgres-{major}"));
        Some(Artifact { platform: format!("{system}-{architecture}"), version })
    }

    fn name(&self) -> String {
        format!("postgres-{}-{}", self.version, self.platform)
    }
}

impl<'a> Source<'a> {
    /// The first way that is open; if none is, why.
    pub(crate) fn find(
        needs: Needs,
        settings: &Settings,
        maven: Option<&'a Maven>,
    ) -> Result<Self, String> {
        if let (Some(url), false) = (&settings.database_url, needs.own_postgres()) {
            return Ok(Source::Environment(url.clone()));
        }
        let docker = |serves: bool| (serves && needs.fits_docker()).then_some(Source::Docker);
        if let Some(source) = docker(settings.docker.is_asked_for()) {
            return Ok(source);
        }
        Source::local(settings, maven)
            .or_else(|missing| docker(settings.docker.answers()).ok_or(missing))
    }

    fn local(settings: &Settings, maven: Option<&'a Maven>) -> Result<Self, String> {
        let artifact = Artifact::of(settings.postgres_version.unwrap_or(VERSION));
        if let Some(artifact) = artifact {
            let cached = settings.cache.join(artifact.name()).exists();
            if cached || maven.is_some() {
                let maven = maven.filter(|_| !cached);
                return Ok(Source::Maven { maven, artifact });
            }
        }
        installed(settings).map(Source::Installed).ok_or_else(|| {
            let wanted = settings
                .postgres_version
                .map_or_else(String::new, |version| format!(" {version} ({PG_VERSION})"));
            format!(
                "no Postgres{wanted}: {DATABASE_URL} is not set, Maven (`mvn`) is not found, and none is installed"
            )
        })
    }

    /// Gets the files, if they are not here yet.
    pub(crate) fn fetch(self, settings: &Settings) -> Result<Way, Error> {
        match self {
            Source::Environment(url) => Ok(Way::Environment(url)),
            #[cfg(feature = "docker")]
            Source::Docker => Ok(Way::Docker(settings.postgres_version.unwrap_or(VERSION))),
            #[cfg(not(feature = "docker"))]
            Source::Docker => Err(without_docker()),
            Source::Installed(binaries) => Ok(Way::Local(binaries)),
            Source::Maven { maven, artifact } => {
                let name = artifact.name();
                let root = cache::entry(&settings.cache, &name, |home| {
                    let maven = maven.ok_or_else(|| {
                        Error::new(Kind::Download, format!("{name} has just left the cache"))
                    })?;
                    let coordinates = format!(
                        "-Dartifact=io.zonky.test.postgres:embedded-postgres-binaries-{}:{}",
                        artifact.platform, artifact.version
                    );
                    let what = format!("Postgres {}", artifact.version);
                    let files = maven.fetch(home, &what, FETCH_BYTES, "unpack", &[&coordinates])?;
                    unpack(&files, &home.path().join("unpacked"))
                })?;
                let why = format!("local, from {}", root.display());
                Ok(Way::Local(Binaries { folder: root.join("bin"), why }))
            }
        }
    }
}

/// Unpacks the one `.txz` in the directory.
fn unpack(files: &Path, into: &Path) -> Result<PathBuf, Error> {
    let work = || -> std::io::Result<()> {
        for file in fs::read_dir(files)? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "txz") {
                let archive = XzReader::new(BufReader::new(File::open(path)?), true);
                return tar::Archive::new(archive).unpack(into);
            }
        }
        Err(std::io::Error::other("there is no .txz in it"))
    };
    work().map_err(|error| {
        Error::new(Kind::Download, "cannot unpack the archive of Postgres").caused_by(error)
    })?;
    Ok(into.to_owned())
}

/// The newest installed server, or the one of the version that was asked for.
fn installed(settings: &Settings) -> Option<Binaries> {
    let listed = settings
        .postgres_places
        .iter()
        .filter_map(|place| fs::read_dir(place).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    let configured = settings.program("pg_config").and_then(|program| {
        let output = Command::new(program).arg("--bindir").output().ok()?;
        Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim_end()))
    });
    listed
        .chain(configured)
        .filter(|folder| folder.join("initdb").is_file())
        .filter_map(|folder| Some((version(&folder)?, folder)))
        .filter(|(version, _)| match settings.postgres_version {
            Some(wanted) => *version == wanted,
            None => *version >= VERSION_MIN,
        })
        .max()
        .map(|(version, folder)| {
            let why = format!("Maven is not found, {version} is installed in {}", folder.display());
            Binaries { folder, why }
        })
}

fn version(folder: &Path) -> Option<u32> {
    let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    major_version(&String::from_utf8(output.stdout).ok()?)
}

/// The major version in `postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)`.
pub(crate) fn major_version(text: &str) -> Option<u32> {
    text.split_whitespace().nth(2)?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
