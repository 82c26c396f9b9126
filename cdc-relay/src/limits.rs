//! What bounds a relay, for the benchmark to measure alone: how fast its source is read when
//! nothing is done with it, and the calls that end a Kafka transaction.
//!
//! Hidden, and no part of what is promised: it changes with the relay's insides.

use std::time::{Duration, Instant};

use crate::config::Config;
use crate::error::Error;
use crate::pgoutput::{self, Change};
use crate::replication::{Client, Event, Large};

pub use crate::native::kafka::{commit_transaction, flush};

/// Reads and decodes the slot of `config` until it has met so many logical messages and new rows,
/// and keeps and acknowledges nothing: the slot stays where it is. The time is that from the first
/// change to the last.
pub async fn read_slot(config: &Config, messages: u64) -> Result<Duration, Error> {
    let client = Client::connect(&config.endpoint()?).await?;
    let mut stream = client
        .start_replication(config.slot_name(), config.publication_name(), Large::AtCommit)
        .await?;
    let mut began = None;
    let mut met = 0;
    while met < messages {
        let Event::Data { wal_start, body, .. } = stream.next().await? else { continue };
        began.get_or_insert_with(Instant::now);
        match pgoutput::decode(body, wal_start)? {
            Change::Message { .. } | Change::Insert { .. } => met += 1,
            _ => {}
        }
    }
    let elapsed = began.map_or(Duration::ZERO, |began| began.elapsed());
    stream.close().await?;
    Ok(elapsed)
}
