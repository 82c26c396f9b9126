//! Where the Java runtime and the libraries of a Kafka broker come from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cluster::{Cluster, Shape};
use crate::cache;
use crate::error::{Error, Kind};
use crate::home::Home;
use crate::maven::{self, Maven};
use crate::server::Server;
#[cfg(not(feature = "docker"))]
use crate::settings::without_docker;
use crate::settings::{KAFKA_BROKERS, Settings};
use crate::stack::{Needs, tell};

/// The oldest Java that a Kafka 4 broker runs on.
const JAVA_MIN: u32 = 17;
const FETCH_BYTES: u64 = 46_000_000;
const ARCHIVE: &str = "classes.jsa";

/// What could provide a Kafka; nothing has been fetched for it yet.
#[derive(Debug)]
pub(crate) enum Source<'a> {
    Environment(String),
    Docker,
    /// `None` in place of Maven when the files are in the cache.
    Maven {
        maven: Option<&'a Maven>,
        java: Java,
    },
}

/// What provides a Kafka.
#[derive(Debug)]
pub(crate) enum Way {
    Environment(String),
    #[cfg(feature = "docker")]
    Docker,
    Local(Install),
}

/// A Java runtime and a directory of jars.
#[derive(Clone, Debug)]
pub(crate) struct Install {
    java: Java,
    libraries: PathBuf,
    classes: Classes,
}

/// What the runtime does with an archive of the broker's classes, loaded and checked in advance:
/// with it a broker is up in half the time, which every test binary spends.
#[derive(Clone, Debug)]
pub(super) enum Classes {
    None,
    Read(PathBuf),
    /// Written when the broker stops in order.
    Write(PathBuf),
}

/// A Java runtime that is new enough.
#[derive(Clone, Debug)]
pub(crate) struct Java {
    program: PathBuf,
    /// Such as `17.0.15`.
    version: String,
}

impl Install {
    pub(crate) fn java(&self) -> &Path {
        &self.java.program
    }

    pub(super) fn classes(&self) -> &Classes {
        &self.classes
    }

    /// All jars, in the notation of the class path.
    pub(crate) fn class_path(&self) -> PathBuf {
        self.libraries.join("*")
    }

    /// Why it was taken, for a person.
    pub(crate) fn why(&self) -> String {
        format!("local, from {}", self.libraries.display())
    }
}

impl<'a> Source<'a> {
    /// The first way that is open; if none is, why.
    pub(crate) fn find(
        needs: Needs,
        settings: &Settings,
        maven: Option<&'a Maven>,
    ) -> Result<Self, String> {
        if let (Some(brokers), false) = (&settings.kafka_brokers, needs.own_kafka()) {
            return Ok(Source::Environment(brokers.clone()));
        }
        let docker = |serves: bool| (serves && needs.fits_docker()).then_some(Source::Docker);
        if let Some(source) = docker(settings.docker.is_asked_for()) {
            return Ok(source);
        }
        Source::local(settings, maven)
            .or_else(|missing| docker(settings.docker.answers()).ok_or(missing))
    }

    fn local(settings: &Settings, maven: Option<&'a Maven>) -> Result<Self, String> {
        let cached = settings.cache.join(entry(settings)).exists();
        let mut missing = Vec::new();
        let java = java(settings);
        if let Err(text) = &java {
            missing.push(text.clone());
        }
        if !cached && maven.is_none() {
            missing.push("Maven (`mvn`) is not found".to_owned());
        }
        match java {
            Ok(java) if missing.is_empty() => {
                Ok(Source::Maven { maven: maven.filter(|_| !cached), java })
            }
            _ => Err(format!("no Kafka: {KAFKA_BROKERS} is not set, {}", missing.join(", "))),
        }
    }

    /// Gets the files, if they are not here yet.
    pub(crate) fn fetch(self, settings: &Settings) -> Result<Way, Error> {
        match self {
            Source::Environment(brokers) => Ok(Way::Environment(brokers)),
            #[cfg(feature = "docker")]
            Source::Docker => Ok(Way::Docker),
            #[cfg(not(feature = "docker"))]
            Source::Docker => Err(without_docker()),
            Source::Maven { maven, java } => {
                let libraries = cache::entry(&settings.cache, &entry(settings), |home| {
                    let maven = maven.ok_or_else(|| {
                        Error::new(Kind::Download, "Kafka has just left the cache")
                    })?;
                    let what = format!("Kafka {}", version(settings));
                    // What is said here outdoes the file.
                    let chosen = format!("-Dkafka.version={}", version(settings));
                    let arguments = ["-DincludeScope=runtime", &chosen];
                    maven.fetch(home, &what, FETCH_BYTES, "copy-dependencies", &arguments)
                })?;
                let name = format!("{}-java-{}", entry(settings), java.version);
                let install = Install { java, libraries, classes: Classes::None };
                let kept = cache::entry(&settings.cache, &name, |home| {
                    tell("preparing the classes of Kafka, once, for quick starts");
                    train(&install, settings, home)
                })?;
                // A runtime that cannot write archives leaves an empty directory.
                let archive = kept.join(ARCHIVE);
                let classes = match archive.is_file() {
                    true => Classes::Read(archive),
                    false => Classes::None,
                };
                Ok(Way::Local(Install { classes, ..install }))
            }
        }
    }
}

fn version(settings: &Settings) -> &str {
    settings.kafka_version.as_deref().unwrap_or_else(|| maven::version("kafka"))
}

fn entry(settings: &Settings) -> String {
    format!("kafka-{}-log4j-{}", version(settings), maven::version("log4j"))
}

/// Runs a broker once, to archive the classes that it loads.
fn train(install: &Install, settings: &Settings, home: &Home) -> Result<PathBuf, Error> {
    let folder = home.path().join("classes");
    fs::create_dir(&folder).map_err(|error| {
        Error::new(Kind::Download, "cannot write into the cache").caused_by(error)
    })?;
    let classes = Classes::Write(folder.join(ARCHIVE));
    let install = Install { classes, ..install.clone() };
    Cluster::create(&install, settings, &Shape::SINGLE)?.stop()?;
    Ok(folder)
}

fn java(settings: &Settings) -> Result<Java, String> {
    let at_home = settings.java_home.as_ref().map(|home| home.join("bin/java"));
    let program = at_home
        .filter(|program| program.is_file())
        .or_else(|| settings.program("java"))
        .ok_or_else(|| format!("Java {JAVA_MIN} or later (`java`) is not found"))?;
    // macOS has a `java` that only says where to get one.
    let output = Command::new(&program).arg("-version").output();
    let version =
        output.ok().and_then(|output| java_version(&String::from_utf8_lossy(&output.stderr)));
    match version {
        Some((major, version)) if major >= JAVA_MIN => Ok(Java { program, version }),
        Some((_, version)) => Err(format!(
            "{} is Java {version}, but Kafka runs on {JAVA_MIN} or later",
            program.display()
        )),
        None => Err(format!("{} does not run", program.display())),
    }
}

/// The major and the whole version in `openjdk version "17.0.15" 2025-04-15`. Before 9 it read
/// `"1.8.0_402"`, which is too old whether it is taken as 1 or as 8.
pub(crate) fn java_version(text: &str) -> Option<(u32, String)> {
    let (_, rest) = text.split_once("version \"")?;
    let (version, _) = rest.split_once('"')?;
    let major = version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    Some((major, version.to_owned()))
}
