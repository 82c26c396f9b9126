//! Topics, and whether a broker serves them.

use std::cell::RefCell;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::metadata::Metadata;

use crate::error::{Error, Kind};
use crate::stack::blocking;

/// How long a broker may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// The bound of one request. A new broker may drop what arrives before it is ready.
const REQUEST_MAX: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);

/// Stands for the broker's own default, in place of a number of replicas.
const REPLICAS_OF_BROKER: i32 = -1;

pub(super) async fn create(brokers: &str, name: &str, partitions: i32) -> Result<(), Error> {
    let failed = || Error::new(Kind::Server, format!("cannot create the topic {name}"));
    let admin: AdminClient<DefaultClientContext> =
        client(brokers).create().map_err(|error| failed().caused_by(error))?;
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(REPLICAS_OF_BROKER));
    let options =
        AdminOptions::new().request_timeout(Some(ANSWER_MAX)).operation_timeout(Some(ANSWER_MAX));
    let answers = admin.create_topics([&topic], &options).await;
    for answer in answers.map_err(|error| failed().caused_by(error))? {
        answer.map_err(|(_, code)| failed().caused_by(KafkaError::AdminOp(code)))?;
    }
    let (brokers, created) = (brokers.to_owned(), name.to_owned());
    blocking(move || wait(&brokers, ANSWER_MAX, |consumer| led(consumer, Some(&created)))).await
}

/// Waits until a broker answers.
pub(super) fn wait_for_answer(brokers: &str, bound: Duration) -> Result<(), Error> {
    wait(brokers, bound, |consumer| {
        let metadata = consumer.fetch_metadata(None, REQUEST_MAX)?;
        Ok(!metadata.brokers().is_empty())
    })
}

/// Waits until a broker answers and every partition has a leader.
#[cfg(feature = "docker")]
pub(super) fn wait_for_leaders(brokers: &str, bound: Duration) -> Result<(), Error> {
    wait(brokers, bound, |consumer| led(consumer, None))
}

/// Waits until this cluster, and not another one that has taken its port, answers, these nodes
/// have joined it, and every partition has a leader; or until their servers are known not to run.
pub(super) fn wait_for_cluster(
    brokers: &str,
    id: &str,
    members: &[u32],
    deadline: Instant,
    running: impl Fn() -> Result<(), Error>,
) -> Result<(), Error> {
    let bound = deadline.saturating_duration_since(Instant::now());
    let mut ended = Ok(());
    wait(brokers, bound, |consumer| {
        ended = running();
        if ended.is_err() {
            return Ok(true);
        }
        // In this order: the client asks nobody for the id, it knows it from the brokers' metadata.
        let metadata = consumer.fetch_metadata(None, REQUEST_MAX)?;
        let found = consumer.client().fetch_cluster_id(REQUEST_MAX);
        if found.as_deref() != Some(id) {
            return Ok(false);
        }
        let joined: Vec<i32> = metadata.brokers().iter().map(|broker| broker.id()).collect();
        let joined = |member: &u32| i32::try_from(*member).is_ok_and(|id| joined.contains(&id));
        Ok(members.iter().all(joined) && all_led(&metadata))
    })?;
    ended
}

/// The number of the node that leads a partition.
pub(super) fn leader(brokers: &str, topic: &str, partition: i32) -> Result<i32, Error> {
    let mut leader = None;
    wait(brokers, ANSWER_MAX, |consumer| {
        let metadata = consumer.fetch_metadata(Some(topic), REQUEST_MAX)?;
        let mut partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        let found = partitions.find(|found| found.id() == partition);
        leader = found.map(|found| found.leader()).filter(|leader| *leader >= 0);
        Ok(leader.is_some())
    })?;
    leader.ok_or_else(|| Error::new(Kind::Server, "the partition has no leader"))
}

fn wait(
    brokers: &str,
    bound: Duration,
    mut done: impl FnMut(&BaseConsumer) -> KafkaResult<bool>,
) -> Result<(), Error> {
    let failed = || Error::new(Kind::Server, format!("Kafka at {brokers} does not serve"));
    let deadline = Instant::now() + bound;
    let consumer: BaseConsumer =
        client(brokers).create().map_err(|error| failed().caused_by(error))?;
    loop {
        match done(&consumer) {
            Ok(true) => return Ok(()),
            _ if Instant::now() < deadline => thread::sleep(POLL),
            Ok(false) => return Err(failed()),
            Err(error) => return Err(failed().caused_by(error)),
        }
    }
}

fn led(consumer: &BaseConsumer, topic: Option<&str>) -> KafkaResult<bool> {
    Ok(all_led(&consumer.fetch_metadata(topic, REQUEST_MAX)?))
}

fn all_led(metadata: &Metadata) -> bool {
    metadata.topics().iter().all(|topic| {
        topic.error().is_none()
            && !topic.partitions().is_empty()
            && topic.partitions().iter().all(|partition| partition.leader() >= 0)
    })
}

/// Topics on a broker of somebody else, removed when the thread that made them ends.
///
/// A test that runs on the stack of its process has nothing else to hang this on: it does not own
/// the stack, which is never dropped, and a name is only a name. Its thread ends with it.
#[derive(Default)]
struct Borrowed(Vec<(String, String)>);

thread_local! {
    static BORROWED: RefCell<Borrowed> = RefCell::default();
}

/// Has the topic removed at the end of this thread.
pub(super) fn borrow(brokers: &str, topic: &str) {
    BORROWED.with_borrow_mut(|borrowed| borrowed.0.push((brokers.to_owned(), topic.to_owned())));
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let borrowed = std::mem::take(&mut self.0);
        if borrowed.is_empty() {
            return;
        }
        // A runtime and a thread of its own, as this thread may be one of a runtime that ends.
        let work = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            for (brokers, topic) in borrowed {
                // A name that nobody else has is left behind; there is nobody to tell.
                runtime.block_on(remove(&brokers, &topic)).ok();
            }
            Ok::<(), std::io::Error>(())
        });
        work.join().ok();
    }
}

async fn remove(brokers: &str, topic: &str) -> KafkaResult<()> {
    let admin: AdminClient<DefaultClientContext> = client(brokers).create()?;
    let options = AdminOptions::new().request_timeout(Some(ANSWER_MAX));
    admin.delete_topics(&[topic], &options).await?;
    Ok(())
}

/// The default pause between attempts to connect grows to ten seconds: longer than a start takes.
fn client(brokers: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", brokers)
        .set("reconnect.backoff.ms", "10")
        .set("reconnect.backoff.max.ms", "100");
    client
}
