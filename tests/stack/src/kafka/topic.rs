//! Topics, and whether a broker serves them.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};

use crate::error::{Error, Kind};
use crate::stack::blocking;
use crate::unique::unique;

/// How long a broker may take to answer.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(20);

/// The bound of one request. A new broker may drop what arrives before it is ready.
const REQUEST_MAX: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);

/// Stands for the broker's own default, in place of a number of replicas.
const REPLICAS_OF_BROKER: i32 = -1;

pub(super) async fn create(brokers: &str, name: &str, partitions: i32) -> Result<String, Error> {
    let name = unique(name);
    let failed = || Error::new(Kind::Server, format!("cannot create the topic {name}"));
    let admin: AdminClient<DefaultClientContext> =
        client(brokers).create().map_err(|error| failed().caused_by(error))?;
    let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(REPLICAS_OF_BROKER));
    let options =
        AdminOptions::new().request_timeout(Some(ANSWER_MAX)).operation_timeout(Some(ANSWER_MAX));
    let answers = admin.create_topics([&topic], &options).await;
    for answer in answers.map_err(|error| failed().caused_by(error))? {
        answer.map_err(|(_, code)| failed().caused_by(KafkaError::AdminOp(code)))?;
    }
    let (brokers, created) = (brokers.to_owned(), name.clone());
    blocking(move || wait(&brokers, Some(&created), ANSWER_MAX)).await?;
    Ok(name)
}

/// Waits until a broker answers and every partition of every topic has a leader.
pub(super) fn wait_until_led(brokers: &str, bound: Duration) -> Result<(), Error> {
    wait(brokers, None, bound)
}

fn wait(brokers: &str, topic: Option<&str>, bound: Duration) -> Result<(), Error> {
    let failed = || Error::new(Kind::Server, format!("Kafka at {brokers} does not answer"));
    let deadline = Instant::now() + bound;
    let consumer: BaseConsumer =
        client(brokers).create().map_err(|error| failed().caused_by(error))?;
    loop {
        let answer = led(&consumer, topic);
        match answer {
            Ok(true) => return Ok(()),
            _ if Instant::now() < deadline => std::thread::sleep(POLL),
            Ok(false) => {
                let text = format!("Kafka at {brokers} has partitions without a leader");
                return Err(Error::new(Kind::Server, text));
            }
            Err(error) => return Err(failed().caused_by(error)),
        }
    }
}

fn led(consumer: &BaseConsumer, topic: Option<&str>) -> KafkaResult<bool> {
    let metadata = consumer.fetch_metadata(topic, REQUEST_MAX)?;
    let led = metadata.topics().iter().all(|topic| {
        topic.error().is_none()
            && !topic.partitions().is_empty()
            && topic.partitions().iter().all(|partition| partition.leader() >= 0)
    });
    Ok(led && !metadata.brokers().is_empty())
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
