//! Where the Java runtime and the libraries of a Kafka broker come from.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache;
use crate::error::{Error, Kind};
use crate::maven::{self, Maven};
use crate::settings::{KAFKA_BROKERS, Settings};
use crate::stack::Needs;

/// The oldest Java that a Kafka 4 broker runs on.
const JAVA_MIN: u32 = 17;
const FETCH_BYTES: u64 = 50_000_000;

/// What could provide a Kafka; nothing has been fetched for it yet.
#[derive(Debug)]
pub(crate) enum Source<'a> {
    Environment(String),
    /// `None` in place of Maven when the files are in the cache.
    Maven {
        maven: Option<&'a Maven>,
        java: PathBuf,
    },
}

/// What provides a Kafka.
#[derive(Debug)]
pub(crate) enum Way {
    Environment(String),
    Local(Install),
}

/// A Java runtime and a directory of jars.
#[derive(Debug)]
pub(crate) struct Install {
    java: PathBuf,
    libraries: PathBuf,
}

impl Install {
    pub(crate) fn java(&self) -> &Path {
        &self.java
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
        if let (Some(brokers), false) = (&settings.kafka_brokers, needs.breakable) {
            return Ok(Source::Environment(brokers.clone()));
        }
        let cached = settings.cache.join(entry()).exists();
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
            Source::Maven { maven, java } => {
                let libraries = cache::entry(&settings.cache, &entry(), |home| {
                    let maven = maven.ok_or_else(|| {
                        Error::new(Kind::Download, "Kafka has just left the cache")
                    })?;
                    let what = format!("Kafka {}", maven::version("kafka"));
                    let arguments = ["-DincludeScope=runtime"];
                    maven.fetch(home, &what, FETCH_BYTES, "copy-dependencies", &arguments)
                })?;
                Ok(Way::Local(Install { java, libraries }))
            }
        }
    }
}

fn entry() -> String {
    format!("kafka-{}-log4j-{}", maven::version("kafka"), maven::version("log4j"))
}

fn java(settings: &Settings) -> Result<PathBuf, String> {
    let at_home = settings.java_home.as_ref().map(|home| home.join("bin/java"));
    let program = at_home
        .filter(|program| program.is_file())
        .or_else(|| settings.program("java"))
        .ok_or_else(|| format!("Java {JAVA_MIN} or later (`java`) is not found"))?;
    // macOS has a `java` that only says where to get one.
    let output = Command::new(&program).arg("-version").output();
    let version = output.ok().and_then(|output| version(&String::from_utf8_lossy(&output.stderr)));
    match version {
        Some(version) if version >= JAVA_MIN => Ok(program),
        Some(version) => Err(format!(
            "{} is Java {version}, but Kafka runs on {JAVA_MIN} or later",
            program.display()
        )),
        None => Err(format!("{} does not run", program.display())),
    }
}

/// The major version in `openjdk version "17.0.15" 2025-04-15`; before 9 it read `"1.8.0_402"`,
/// which is too old whether it is taken as 1 or as 8.
fn version(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("version \"")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
