//! Kafka alone at a steady rate: what is left of a latency when nothing is read from Postgres.
//!
//! As many transactional producers as the relay has pass each other the turn as its own do: who
//! has it sends what is due, waits until the broker has it, passes on, and commits.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use tailrace_cdc_relay::limits::{commit_transaction, flush};
use tailrace_outbox::Message;
use uuid::Uuid;

use crate::relay_latency::{Schedule, on_a_thread};

type Failure = Box<dyn Error + Send + Sync>;

/// As many as the relay lets take turns.
const PRODUCERS: usize = 3;

/// The longest wait for one answer of the broker.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Sends all messages, each when it is due; answers how late each that counts was sent.
pub(crate) async fn send_all(
    brokers: &str,
    topic: &str,
    schedule: Schedule,
) -> Result<Vec<f64>, Failure> {
    let next = Arc::new(Mutex::new(0));
    let mut producers = Vec::new();
    for _ in 0..PRODUCERS {
        let (brokers, topic, next) = (brokers.to_owned(), topic.to_owned(), Arc::clone(&next));
        let run = move || take_turns(&brokers, &topic, schedule, &next);
        producers.push(on_a_thread("producer", run)?);
    }
    let mut late = Vec::new();
    for producer in producers {
        late.extend(producer.await??);
    }
    Ok(late)
}

fn take_turns(
    brokers: &str,
    topic: &str,
    schedule: Schedule,
    next: &Mutex<u32>,
) -> Result<Vec<f64>, Failure> {
    let producer = producer(brokers)?;
    producer.init_transactions(ANSWER_MAX)?;
    let mut late = Vec::new();
    loop {
        producer.begin_transaction()?;
        let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
        if *next >= schedule.messages {
            return Ok(late);
        }
        std::thread::sleep(schedule.due(*next).saturating_duration_since(Instant::now()));
        while *next < schedule.messages && schedule.due(*next) <= Instant::now() {
            let due = schedule.due(*next);
            let message = schedule.message(topic, *next, due)?;
            send(&producer, &message)?;
            if *next >= schedule.warm_up {
                late.push(due.elapsed().as_secs_f64() * 1e3);
            }
            *next += 1;
        }
        flush(producer.client(), ANSWER_MAX).map_err(KafkaError::Global)?;
        drop(next);
        commit_transaction(producer.client(), ANSWER_MAX).map_err(KafkaError::Global)?;
    }
}

type Client = ThreadedProducer<DefaultProducerContext>;

fn producer(brokers: &str) -> Result<Client, Failure> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("transactional.id", format!("tailrace-bench-{}", Uuid::new_v4()))
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "0")
        .create()?)
}

fn send(producer: &Client, message: &Message) -> Result<(), Failure> {
    let record = BaseRecord::to(message.topic())
        .key(message.key().unwrap_or_default())
        .payload(message.payload().unwrap_or_default());
    producer.send(record).map_err(|(error, _)| error.into())
}
