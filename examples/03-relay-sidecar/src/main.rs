//! The relay as a sidecar: its configuration file, `cdc-relay check` that finds what is wrong, the relay at work, and
//! what it says of itself over HTTP.
//!
//! The example is the sidecar, too: it starts itself again as `cdc-relay`. The program of that name is
//! `cargo run --release -p tailrace-cdc-relay --bin cdc-relay`, and docs/operating.md is its manual.
//!
//! Needs Rust, and Java 17 with Maven for a Postgres and a Kafka of its own (or servers of yours, see README.md).
//! Run it by
//!
//! ```sh
//! cargo run --release -p example-03-relay-sidecar
//! ```
#![expect(clippy::print_stdout, reason = "what it prints is what it shows")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use sqlx::PgPool;
use tailrace_outbox::Message;
use tailrace_stack::{Needs, Stack};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What is waited for has come by then, or the example fails.
const WAIT_MAX: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Result<(), Failure> {
    if std::env::args().nth(1).as_deref() == Some("cdc-relay") {
        tailrace_cdc_relay::cli::run(std::env::args_os().skip(1)).await;
    }
    tokio::time::timeout(2 * WAIT_MAX, tell()).await?
}

async fn tell() -> Result<(), Failure> {
    let stack = Stack::start(Needs::BOTH).await?;
    let database = stack.postgres().fresh_database("sidecar").await?;
    let topic = stack.kafka().fresh_topic("orders", 1).await?;
    let pool = PgPool::connect(database.url()).await?;
    let name = database.name();
    // The role of a relay needs to log in and to replicate; somebody has forgotten the second.
    run(&pool, format!("create role {name} login password 'secret'")).await?;

    let (_, place) = database.url().split_once('@').ok_or("the stack's url has a login")?;
    let settings = include_str!("cdc-relay.toml")
        .replace("{name}", name)
        .replace("{place}", place)
        .replace("{brokers}", stack.kafka().brokers());
    let file = File::write(&settings)?;
    println!("A setting is misspelt, and the relay's role lacks a right.\n");
    check(&file.0).await?;
    let settings = settings.replace("publicaton", "publication");
    std::fs::write(&file.0, settings)?;
    println!("The setting is mended.\n");
    check(&file.0).await?;
    run(&pool, format!("alter role {name} replication; create publication {name}")).await?;
    println!("The role is mended.\n");
    check(&file.0).await?;

    println!("$ cdc-relay run --config cdc-relay.toml &");
    let (mut relay, address) = start(&file.0).await?;
    tailrace_outbox::check(&pool, name).await?;
    let message = Message::builder(&topic, "order.placed.v1").source("/orders").key("order-1");
    let message = message.json(&"a cup").build()?;
    tailrace_outbox::write(&mut *pool.acquire().await?, &message).await?;
    look(&address).await?;

    let pid = relay.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    kill_process(pid.ok_or("the relay has ended")?, Signal::TERM)?;
    println!("\nSIGTERM: {}", relay.wait().await?);
    run(&pool, format!("drop owned by {name}; drop role {name}")).await
}

async fn run(pool: &PgPool, statement: String) -> Result<(), Failure> {
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(pool).await?;
    Ok(())
}

/// Runs the preflight. Of its report, which is about twenty lines, this shows what has to be mended.
async fn check(file: &Path) -> Result<(), Failure> {
    println!("$ cdc-relay check --config cdc-relay.toml");
    let mut command = Command::new(std::env::current_exe()?);
    let ended = command.args(["cdc-relay", "check", "--config"]).arg(file).output().await?;
    let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
    let mut is_to_be_mended = false;
    for line in said.lines() {
        // How to mend something stands below it.
        is_to_be_mended = match line.split_once(' ') {
            Some(("fail" | "error:", _)) => true,
            Some(("", _)) => is_to_be_mended,
            _ => false,
        };
        if is_to_be_mended {
            println!("{line}");
        }
    }
    println!("{}\n", ended.status);
    Ok(())
}

/// Starts the sidecar; answers when it leads, with where it serves HTTP.
async fn start(file: &Path) -> Result<(Child, String), Failure> {
    let mut relay = Command::new(std::env::current_exe()?);
    let relay = relay.args(["cdc-relay", "run", "--config"]).arg(file);
    let mut relay = relay.stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    let log = relay.stderr.take().ok_or("the log is piped")?;
    let mut log = BufReader::new(log).lines();
    let mut address = String::new();
    while let Some(line) = log.next_line().await? {
        if let Some((_, at)) = line.split_once("serving http address=") {
            address = at.to_owned();
        }
        if line.contains("leading") {
            break;
        }
    }
    // A pipe that nobody reads would hold the relay up.
    tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
    Ok((relay, address))
}

/// Some of what stands in the status.
#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "they are shown")]
struct Status {
    role: String,
    messages: u64,
    dead_letters: u64,
}

/// What the relay says of itself, once the order is published.
async fn look(address: &str) -> Result<(), Failure> {
    let status = loop {
        let status: Status = serde_json::from_str(&get(address, "/status").await?)?;
        if status.messages == 1 {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    println!("An order is placed. The relay says of itself:");
    println!("  GET /readyz  {}", get(address, "/readyz").await?.trim_end());
    println!("  GET /status  {status:?}");
    let metrics = get(address, "/metrics").await?;
    let published = metrics.lines().find(|line| line.starts_with("cdc_relay_messages_total"));
    println!("  GET /metrics {}", published.unwrap_or_default());
    let page = get(address, "/").await?;
    println!("  GET /        {} plots, to be looked at in a browser", page.matches("<svg").count());
    Ok(())
}

/// A file that is removed again.
struct File(PathBuf);

impl File {
    fn write(settings: &str) -> Result<Self, Failure> {
        let name = tailrace_stack::unique("cdc-relay");
        let path = std::env::temp_dir().join(format!("{name}.toml"));
        std::fs::write(&path, settings)?;
        Ok(Self(path))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // There is nobody to tell.
        std::fs::remove_file(&self.0).unwrap_or_default();
    }
}

async fn get(address: &str, path: &str) -> Result<String, Failure> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}
