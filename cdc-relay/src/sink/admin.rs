//! The client for what is asked about topics.

use std::ops::Deref;
use std::thread;

use rdkafka::admin::AdminClient;
use rdkafka::error::KafkaResult;

use super::cluster::{Cluster, Context};

/// An admin client whose end nobody waits for: its thread, which is joined, looks for it every 100 ms.
pub(super) struct Admin(Option<AdminClient<Context>>);

impl Admin {
    pub(super) fn new(cluster: &Cluster) -> KafkaResult<Self> {
        let admin = cluster.config().create_with_context(cluster.context())?;
        Ok(Admin(Some(admin)))
    }
}

impl Deref for Admin {
    type Target = AdminClient<Context>;

    fn deref(&self) -> &Self::Target {
        self.0.as_ref().expect("it is there until its end")
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        let admin = self.0.take();
        // Without a thread to be had it is waited for all the same.
        drop(thread::Builder::new().name("kafka-admin-end".to_owned()).spawn(move || drop(admin)));
    }
}
