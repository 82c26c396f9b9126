//! A Kafka in Docker.

use std::sync::Arc;
use std::time::Duration;

use testcontainers_modules::kafka::apache::Kafka as Image;
use testcontainers_modules::testcontainers::ImageExt;

use super::topic;
use crate::docker::Container;
use crate::error::Error;
use crate::maven;
use crate::server::Server;
use crate::settings::Settings;

/// As for a local broker (`properties.rs`): what has three replicas by default has one.
const ENVIRONMENT: [(&str, &str); 9] = [
    ("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false"),
    ("KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS", "4"),
    ("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1"),
    ("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1"),
    ("KAFKA_TRANSACTION_STATE_LOG_NUM_PARTITIONS", "4"),
    ("KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR", "1"),
    ("KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR", "1"),
    ("KAFKA_SHARE_COORDINATOR_STATE_TOPIC_NUM_PARTITIONS", "4"),
    ("KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS", "0"),
];

const START_MAX: Duration = Duration::from_secs(60);

/// The broker is not the first process, which would not pass a signal on.
const STOP: &str = "kill -s TERM $(pidof java)";

/// The broker and its address.
pub(super) fn start(settings: &Settings) -> Result<(Arc<dyn Server>, String), Error> {
    let container = Container::start(settings, "tailrace_kafka", 9092, || {
        let image = Image::default().with_jvm_image().with_tag(maven::version("kafka"));
        ENVIRONMENT.iter().fold(image, |image, (name, value)| image.with_env_var(*name, *value))
    })?;
    let brokers = address(&container);
    topic::wait_for_leaders(&brokers, START_MAX)?;
    Ok((Arc::new(container), brokers))
}

fn address(container: &Container<Image>) -> String {
    let (host, port) = container.address();
    format!("{host}:{port}")
}

impl Server for Container<Image> {
    fn kill(&self) -> Result<(), Error> {
        self.kill()
    }

    fn stop(&self) -> Result<(), Error> {
        self.stop_by(STOP)
    }

    fn pause(&self) -> Result<(), Error> {
        self.pause()
    }

    fn resume(&self) -> Result<(), Error> {
        self.resume()
    }

    fn restart(&self) -> Result<(), Error> {
        self.stop_by(STOP)?;
        self.start_again()?;
        topic::wait_for_leaders(&address(self), START_MAX)
    }
}
