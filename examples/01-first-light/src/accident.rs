//! The first accident: SIGKILL, at the worst moment.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::print::Bars;
use crate::relay_process::RelayProcess;
use crate::{ANSWER_MAX, Failure, PARTITIONS};

/// What the kill met.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Killed {
    /// Records (and markers) of the open transaction, which nobody will ever see.
    pub(crate) open_records: i64,
    /// How many orders were written by then.
    pub(crate) orders: u64,
}

/// Kills the relay at a moment when the brokers hold records of a transaction that it has not
/// committed, once a tenth of the orders is written.
///
/// The brokers themselves say so: the topic's end (high watermark) lies beyond its last stable
/// offset. To look at a relay that stands still it is frozen first; where no transaction is open
/// it goes on for a moment.
pub(crate) async fn kill_inside_a_transaction(
    relay: &mut RelayProcess,
    brokers: &str,
    topic: &str,
    bars: &Bars,
) -> Result<Killed, Failure> {
    while bars.orders_written() < bars.orders() / 10 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let looks = Looks::new(brokers, topic)?;
    loop {
        relay.freeze()?;
        // A commit that was under way when it froze is finished by the brokers within this pause.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let open_records = looks.clone().open_records().await?;
        if open_records > 0 {
            relay.kill().await?;
            return Ok(Killed { open_records, orders: bars.orders_written() });
        }
        if bars.records_published() == bars.orders() {
            return Err("all orders were published before a transaction was seen open; \
                        try more of them, by --orders"
                .into());
        }
        relay.thaw()?;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Two looks at the same topic: of who sees all records, and of who sees committed ones.
#[derive(Clone)]
struct Looks {
    all: Arc<BaseConsumer>,
    committed: Arc<BaseConsumer>,
    topic: String,
}

impl Looks {
    fn new(brokers: &str, topic: &str) -> Result<Self, Failure> {
        let look = |isolation: &str| {
            ClientConfig::new()
                .set("bootstrap.servers", brokers)
                .set("isolation.level", isolation)
                .create()
        };
        let (all, committed) = (look("read_uncommitted")?, look("read_committed")?);
        Ok(Looks { all: Arc::new(all), committed: Arc::new(committed), topic: topic.to_owned() })
    }

    /// Offsets between what committed readers may see and the end of the topic.
    async fn open_records(self) -> Result<i64, Failure> {
        let count = move || {
            let mut open = 0;
            for partition in 0..PARTITIONS {
                let (_, end) = self.all.fetch_watermarks(&self.topic, partition, ANSWER_MAX)?;
                let (_, stable) =
                    self.committed.fetch_watermarks(&self.topic, partition, ANSWER_MAX)?;
                open += end - stable;
            }
            Ok(open)
        };
        tokio::task::spawn_blocking(count).await?
    }
}
