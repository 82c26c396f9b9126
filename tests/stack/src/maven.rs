//! Fetches the servers through Maven, with a progress bar.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::{Error, Kind};
use crate::home::Home;
use crate::process::Process;
use crate::settings::{DATABASE_URL, KAFKA_BROKERS, Settings};
use crate::stack::tell;

const POM: &str = include_str!("../pom.xml");

/// A slow line fetches the largest part, 60 MB, in this time.
const FETCH_MAX: Duration = Duration::from_secs(10 * 60);
const KILL_MAX: Duration = Duration::from_secs(5);

/// How many of Maven's last lines are looked at for the reason of a failure.
const LINES_KEPT: usize = 20;

/// A Maven that can be called.
#[derive(Debug)]
pub(crate) struct Maven {
    program: PathBuf,
    path: OsString,
}

impl Maven {
    pub(crate) fn find(settings: &Settings) -> Option<Self> {
        let program = settings.program("mvn")?;
        Some(Maven { program, path: settings.path.clone() })
    }

    /// Runs one goal of the dependency plugin on the stack's `pom.xml`, in a new directory, which
    /// is the answer.
    ///
    /// `bytes` is about how much a machine that never ran Maven has to fetch, for the bar.
    pub(crate) fn fetch(
        &self,
        home: &Home,
        what: &str,
        bytes: u64,
        goal: &str,
        arguments: &[&str],
    ) -> Result<PathBuf, Error> {
        let failed =
            |text: String| Error::new(Kind::Download, format!("cannot fetch {what}: {text}"));
        let (pom, files) = (home.path().join("pom.xml"), home.path().join("files"));
        fs::write(&pom, POM).map_err(|error| failed("no place for it".into()).caused_by(error))?;

        let plugin = version("dependency-plugin");
        let goal = format!("org.apache.maven.plugins:maven-dependency-plugin:{plugin}:{goal}");
        let mut output = OsString::from("-DoutputDirectory=");
        output.push(&files);
        let mut command = home.command(&self.program, ["--batch-mode", "--file"]);
        command.arg(&pom).arg(goal).args(arguments).arg(output);
        command.env("PATH", &self.path).stdout(Stdio::piped());

        let mut process = Process::spawn(home, &mut command)?;
        let stdout = process.child().stdout.take().expect("the output is a pipe");
        let bar = bar(what, bytes);
        if bar.is_hidden() {
            tell(&format!("fetching {what}, about {} MB", bytes / 1_000_000));
        }
        let shown = bar.clone();
        let reader = thread::spawn(move || follow(stdout, &shown));
        let status = process.wait(FETCH_MAX)?;
        if status.is_none() {
            process.kill(KILL_MAX)?;
        }
        let last = reader.join().unwrap_or_default();
        bar.finish_and_clear();
        let last = reason(&last);
        match status {
            Some(status) if status.success() => Ok(files),
            Some(status) => Err(failed(format!("Maven ended with {status}:\n{last}"))),
            None => Err(failed(format!("not done in {FETCH_MAX:?}:\n{last}"))),
        }
    }
}

/// What a person needs of Maven's last lines, and the way that does without Maven.
fn reason(lines: &[String]) -> String {
    let error = lines
        .iter()
        .filter_map(|line| line.strip_prefix("[ERROR] "))
        .find(|text| !text.is_empty())
        .map(str::to_owned);
    // The first error tells what happened; the others are advice on Maven's own switches.
    let shown = error.unwrap_or_else(|| lines.join("\n"));
    format!("{shown}\nservers of your own need no download: set {DATABASE_URL} and {KAFKA_BROKERS}")
}

/// The version that `pom.xml` pins.
pub(crate) fn version(name: &str) -> &'static str {
    let (open, close) = (format!("<{name}.version>"), format!("</{name}.version>"));
    POM.split_once(&open)
        .and_then(|(_, rest)| rest.split_once(&close))
        .map(|(version, _)| version)
        .expect("pom.xml pins every version that is asked for")
}

fn bar(what: &str, bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{spinner} {prefix} {bar:30} {bytes} of about {total_bytes}, {elapsed}",
    )
    .expect("the template is valid");
    let bar = ProgressBar::new(bytes).with_style(style).with_prefix(format!("fetching {what}"));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Moves the bar by what Maven says it has downloaded; answers with its last lines.
fn follow(output: impl Read, bar: &ProgressBar) -> Vec<String> {
    let mut last = Vec::new();
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        bar.inc(downloaded(&line).unwrap_or(0));
        if bar.length() < Some(bar.position()) {
            bar.set_length(bar.position());
        }
        if last.len() == LINES_KEPT {
            last.remove(0);
        }
        last.push(line);
    }
    last
}

/// The size in `[INFO] Downloaded from central: https://… (3.9 kB at 23 kB/s)`.
pub(crate) fn downloaded(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("Downloaded from ")?;
    let (_, size) = rest.rsplit_once('(')?;
    let mut words = size.split(' ');
    let number: f64 = words.next()?.parse().ok()?;
    let unit = match words.next()? {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    // A size for a progress bar: neither the sign nor the fraction can matter.
    Some((number * unit) as u64)
}
