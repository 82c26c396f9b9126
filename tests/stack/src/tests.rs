//! The stack on real servers.

mod brokers;
#[cfg(feature = "docker")]
mod docker;
mod proxies;
mod refusals;
mod secure;
mod standbys;
mod texts;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use sqlx::{Connection, Executor, PgConnection, Row};
use tokio::sync::OnceCell;

use crate::process::{alive, children};
use crate::settings::Settings;
use crate::{Needs, Stack, unique};

const BOUND: Duration = Duration::from_secs(30);

/// Waits for something that announces itself to nobody.
fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        thread::park_timeout(Duration::from_millis(10));
    }
}

/// A stack with TLS and with a proxy, for the tests that ask for one of them.
async fn guarded() -> &'static Stack {
    static GUARDED: OnceCell<Stack> = OnceCell::const_new();
    GUARDED.get_or_init(async || Stack::start(Needs::BOTH.tls().proxied()).await.unwrap()).await
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn number(connection: &mut PgConnection, query: &'static str) -> i64 {
    connection.fetch_one(query).await.unwrap().get(0)
}

fn produce(brokers: &str, topic: &str, payload: &str) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let record: BaseRecord<'_, (), str> = BaseRecord::to(topic).payload(payload);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(BOUND).unwrap();
}

/// All committed records of a topic of one partition, up to its present end.
fn consume(brokers: &str, topic: &str) -> Vec<String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", unique("reader"))
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&assignment).unwrap();
    let mut records = Vec::new();
    let deadline = Instant::now() + BOUND;
    loop {
        assert!(Instant::now() < deadline, "the end is not reached: {records:?}");
        match consumer.poll(BOUND).expect("a record in time") {
            Ok(record) => {
                records.push(String::from_utf8(record.payload().unwrap().to_vec()).unwrap())
            }
            Err(KafkaError::PartitionEOF(_)) => return records,
            // One broker of several is down; the client goes on with the others.
            Err(KafkaError::MessageConsumption(RDKafkaErrorCode::BrokerTransportFailure)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// The processes of the servers in these directories.
fn servers(directories: &[PathBuf]) -> Vec<rustix::process::Pid> {
    directories
        .iter()
        .flat_map(|directory| {
            let text = fs::read_to_string(directory.join("pid")).unwrap();
            let pid = rustix::process::Pid::from_raw(text.trim().parse().unwrap()).unwrap();
            children(pid).into_iter().chain([pid])
        })
        .collect()
}

#[tokio::test]
async fn what_was_written_is_there_after_a_kill_and_after_a_stop() {
    let stack = Stack::start(Needs::BOTH.breakable()).await.unwrap();
    let (postgres, kafka) = (stack.postgres(), stack.kafka());
    let database = postgres.fresh_database("kept").await.unwrap();
    let topic = kafka.fresh_topic("kept", 1).await.unwrap();
    let mut connection = connect(database.url()).await;
    connection.execute("create table t (n bigint)").await.unwrap();
    connection.execute("insert into t values (41)").await.unwrap();
    produce(kafka.brokers(), &topic, "first");
    let processes = servers(&[postgres.directory(), kafka.directory()]);

    postgres.kill().await.unwrap();
    kafka.kill().await.unwrap();

    assert!(processes.len() > 5, "Postgres's children are seen: {processes:?}");
    assert!(!processes.into_iter().any(alive));
    assert!(connection.execute("select 1").await.is_err());
    PgConnection::connect(database.url()).await.expect_err("nobody listens");

    // Who listens in the place of a broker is not taken for it.
    let somebody = std::net::TcpListener::bind(kafka.brokers()).unwrap();
    let error = kafka.restart().await.unwrap_err();
    assert!(format!("{error:?}").contains("Address already in use"), "{error:?}");
    drop(somebody);

    postgres.restart().await.unwrap();
    kafka.restart().await.unwrap();
    let mut connection = connect(database.url()).await;
    connection.execute("insert into t values (1)").await.unwrap();
    produce(kafka.brokers(), &topic, "second");
    postgres.stop().await.unwrap();
    kafka.stop().await.unwrap();
    PgConnection::connect(database.url()).await.expect_err("nobody listens");
    postgres.restart().await.unwrap();
    kafka.restart().await.unwrap();

    let mut connection = connect(database.url()).await;
    assert_eq!(number(&mut connection, "select sum(n)::bigint from t").await, 42);
    assert_eq!(consume(kafka.brokers(), &topic), ["first", "second"]);
}

#[tokio::test]
async fn a_paused_server_keeps_its_connections_and_answers_when_it_goes_on() {
    let stack = Stack::start(Needs::BOTH.breakable()).await.unwrap();
    let (postgres, kafka) = (stack.postgres(), stack.kafka());
    let topic = kafka.fresh_topic("paused", 1).await.unwrap();
    let mut connection = connect(postgres.url()).await;

    postgres.pause().await.unwrap();
    kafka.pause().await.unwrap();

    let mut asked = Box::pin(connection.execute("select 1"));
    let silence = Duration::from_millis(300);
    assert!(tokio::time::timeout(silence, &mut asked).await.is_err(), "nothing answers");
    let client: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", kafka.brokers()).create().unwrap();
    assert!(client.fetch_metadata(Some(&topic), silence).is_err(), "nothing answers");

    postgres.resume().await.unwrap();
    kafka.resume().await.unwrap();
    asked.await.unwrap();
    produce(kafka.brokers(), &topic, "after");
    assert_eq!(consume(kafka.brokers(), &topic), ["after"]);

    // Also from a halt they are ended, in order and by the drop of the stack.
    postgres.pause().await.unwrap();
    kafka.pause().await.unwrap();
    kafka.stop().await.unwrap();
}

/// Runs this test a second time, in a process of its own that owns the servers.
#[tokio::test]
async fn killing_the_owner_leaves_no_server_and_no_directory() {
    const OWNER: &str = "TAILRACE_STACK_TEST_OWNER";
    if std::env::var_os(OWNER).is_some() {
        return own_until_killed().await;
    }
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::killing_the_owner_leaves_no_server_and_no_directory"])
        .arg("--nocapture")
        .env(OWNER, "yes")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(owner.stdout.take().unwrap());
    let directories: Vec<PathBuf> = output
        .lines()
        .map(|line| line.unwrap())
        .filter_map(|line| Some(PathBuf::from(line.split_once("owns ")?.1)))
        .take(2)
        .collect();
    let processes = servers(&directories);
    assert!(processes.len() > 5 && processes.iter().all(|pid| alive(*pid)), "{processes:?}");

    owner.kill().unwrap();
    owner.wait().unwrap();

    until("the servers to end", || !processes.iter().any(|pid| alive(*pid)));
    until("the directories to go", || directories.iter().all(|path| is_gone(path)));
}

#[expect(clippy::print_stdout, reason = "how the owner tells what it owns")]
async fn own_until_killed() {
    let stack = Stack::start(Needs::BOTH.breakable()).await.unwrap();
    println!("\nowns {}", stack.postgres().directory().display());
    println!("owns {}", stack.kafka().directory().display());
    // Ends when the other side is gone too, so that nothing is left whatever happens to the test.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Neither there nor half removed.
fn is_gone(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    !fs::read_dir(path.parent().unwrap())
        .unwrap()
        .any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with(&name))
}

#[tokio::test]
async fn two_stacks_at_once_do_not_meet_and_leave_nothing() {
    let settings = Settings { database_url: None, kafka_brokers: None, ..environment() };

    let (one, other) = tokio::try_join!(
        Stack::start_in(Needs::BOTH, settings.clone()),
        Stack::start_in(Needs::BOTH, settings),
    )
    .unwrap();

    let identity = "select system_identifier from pg_control_system()";
    let mut connections =
        [connect(one.postgres().url()).await, connect(other.postgres().url()).await];
    let [first, second] = &mut connections;
    assert_ne!(number(first, identity).await, number(second, identity).await);
    let topic = one.kafka().fresh_topic("mine", 1).await.unwrap();
    produce(one.kafka().brokers(), &topic, "mine");
    let stranger: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", other.kafka().brokers()).create().unwrap();
    assert!(stranger.fetch_metadata(None, BOUND).unwrap().topics().is_empty());

    let directories = [&one, &other]
        .map(|stack| [stack.postgres().directory(), stack.kafka().directory()])
        .concat();
    let processes = servers(&directories);
    drop((one, other));
    assert!(!processes.into_iter().any(alive));
    assert!(directories.iter().all(|directory| is_gone(directory)));
}

#[test]
fn the_shared_stack_outlives_the_runtime_that_started_it() {
    let urls = [(), ()].map(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stack = Stack::shared().await;
            let database = stack.postgres().fresh_database("outlives").await.unwrap();
            assert_eq!(number(&mut connect(database.url()).await, "select 1::bigint").await, 1);
            stack.kafka().fresh_topic("outlives", 2).await.unwrap();
            stack.postgres().url().to_owned()
        })
    });

    assert_eq!(urls[0], urls[1]);
}

#[tokio::test]
async fn on_servers_of_somebody_else_nothing_is_left_behind() {
    let host = Stack::shared().await;
    let settings = Settings {
        database_url: Some(host.postgres().url().to_owned()),
        kafka_brokers: Some(host.kafka().brokers().to_owned()),
        ..environment()
    };

    // The topics go with the thread of their test.
    let (database, topic) = thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let guest = Stack::start_in(Needs::BOTH, settings).await.unwrap();
            let database = guest.postgres().fresh_database("guest").await.unwrap();
            let slot = "select pg_create_logical_replication_slot(current_database(), 'pgoutput')";
            connect(database.url()).await.execute(slot).await.unwrap();
            guest.postgres().kill().await.expect_err("it is not ours to kill");
            let topic = guest.kafka().fresh_topic("guest", 1).await.unwrap();
            produce(guest.kafka().brokers(), &topic, "guest");
            (database.name().to_owned(), topic)
        })
    })
    .join()
    .unwrap();

    let left = "select count(*) from pg_database full join pg_replication_slots on false
        where $1 in (datname, slot_name)";
    let left: i64 = sqlx::query_scalar(left)
        .bind(database)
        .fetch_one(&mut connect(host.postgres().url()).await)
        .await
        .unwrap();
    assert_eq!(left, 0);
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", host.kafka().brokers()).create().unwrap();
    until("the topic to go", || {
        let metadata = consumer.fetch_metadata(None, BOUND).unwrap();
        !metadata.topics().iter().any(|found| found.name() == topic)
    });
}

fn environment() -> Settings {
    Settings::from_environment().unwrap()
}
