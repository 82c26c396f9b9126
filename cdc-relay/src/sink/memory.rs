//! A destination in memory, for tests and for trying a relay out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Connect, Obstacle, Saved, Sink};
use crate::error::{Error, Kind};
use crate::record::Record;

/// Records and saved entries that are kept as long as a clone of it lives.
///
/// It promises what Kafka does in exactly-once mode, but for one thing: it ends with the process,
/// whereas a slot does not. A relay that finds a used slot and an empty memory refuses to go on.
///
/// ```no_run
/// use tailrace_cdc_relay::sink::memory::Memory;
/// use tailrace_cdc_relay::{Config, Relay};
///
/// # async fn run() -> Result<(), tailrace_cdc_relay::Error> {
/// let memory = Memory::default();
/// let config = Config::for_sink("postgres://relay:secret@localhost/shop?sslmode=disable");
/// let relay = Relay::with_sink(config, memory.clone());
/// relay.run(async { tokio::signal::ctrl_c().await.unwrap_or(()) }).await?;
/// println!("{} records", memory.records().len());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    records: Vec<Kept>,
    relays: HashMap<String, Owned>,
}

/// What belongs to one relay id.
#[derive(Debug, Default)]
struct Owned {
    /// Counts the sinks that have taken over.
    epoch: u64,
    saved: Saved,
}

/// A record that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its topic.
    pub topic: String,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
    /// Its headers, in their order.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Memory {
    /// Everything that has become durable, in order.
    pub fn records(&self) -> Vec<Kept> {
        self.state().records.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while it is held")
    }
}

impl Connect for Memory {
    type Sink = MemorySink;

    async fn connect(&self, relay_id: &str) -> Result<MemorySink, Error> {
        Ok(MemorySink {
            memory: self.clone(),
            relay_id: relay_id.to_owned(),
            epoch: 0,
            filling: Vec::new(),
            sealed: None,
        })
    }
}

/// A session's hold on a [`Memory`].
#[derive(Debug)]
pub struct MemorySink {
    memory: Memory,
    relay_id: String,
    epoch: u64,
    filling: Vec<Kept>,
    sealed: Option<(Vec<Kept>, Saved)>,
}

impl Sink for MemorySink {
    async fn take_over(&mut self) -> Result<Saved, Error> {
        let mut state = self.memory.state();
        let owned = state.relays.entry(self.relay_id.clone()).or_default();
        owned.epoch += 1;
        self.epoch = owned.epoch;
        Ok(owned.saved.clone())
    }

    fn produce(&mut self, record: &Record<'_>) -> Result<(), Obstacle> {
        let mut headers = Vec::new();
        record.each_header(|name, value| headers.push((name.to_owned(), value.to_vec())));
        self.filling.push(Kept {
            topic: record.topic().to_owned(),
            key: record.key().map(<[u8]>::to_vec),
            value: record.value().map(<[u8]>::to_vec),
            timestamp_ms: record.timestamp_ms(),
            headers,
        });
        Ok(())
    }

    async fn overcome(&mut self, obstacle: Obstacle, _: &Record<'_>) -> Result<(), Error> {
        Err(Error::new(Kind::Server, format!("memory has no obstacle {obstacle:?}")))
    }

    async fn seal(&mut self, entries: &[(&str, &[u8])]) -> Result<(), Error> {
        self.confirmed().await?;
        let entry = |(key, value): &(&str, &[u8])| ((*key).to_owned(), value.to_vec());
        let saved = entries.iter().map(entry).collect();
        self.sealed = Some((std::mem::take(&mut self.filling), saved));
        Ok(())
    }

    async fn confirmed(&mut self) -> Result<(), Error> {
        let Some((records, saved)) = self.sealed.take() else { return Ok(()) };
        let mut state = self.memory.state();
        let owned = state.relays.entry(self.relay_id.clone()).or_default();
        if owned.epoch != self.epoch {
            return Err(Error::new(Kind::Fenced, "another relay took over"));
        }
        owned.saved.extend(saved);
        state.records.extend(records);
        Ok(())
    }

    async fn abort(&mut self) -> Result<(), Error> {
        self.confirmed().await?;
        self.filling.clear();
        Ok(())
    }
}
