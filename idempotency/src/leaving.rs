//! How a member leaves its group so that the others do not wait for it.
//!
//! A broker answers the requests of a connection one after another, and in the classic protocol it answers a member that
//! joins when all others have joined too, or count as dead. A leave that is sent meanwhile is not read; librdkafka gives
//! it up after 5 seconds, or, where the member has no partitions yet, sends none. The member that is gone is then given
//! partitions, or even made to share them out as the group's leader, and nobody has them until its session is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::TopicPartitionList;

use crate::assignment::Group;
use crate::native;

/// Where no join can be before it, a coordinator answers within this time, or nobody does.
const COORDINATOR_ANSWER_USUAL: Duration = Duration::from_millis(500);
/// Brokers that do not answer within this time need not be told.
const BROKERS_ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long a rebalance that is owed to us is waited for before the coordinator is asked again.
const REBALANCE_WAIT: Duration = Duration::from_millis(10);
/// So often in a row nothing may have happened while the coordinator answered. Once would do for all but a leader,
/// which asks other brokers between its join and what it shares out.
const QUIET_ROUNDS: usize = 2;

/// Leaves the group. A rebalance that is under way is waited for while patience lasts; all on the way are answered
/// without looking at them.
pub(crate) fn leave(client: Arc<BaseConsumer<Group>>, topics: &[Arc<str>], patience: Duration) {
    let group = client.context();
    group.close();
    // A rebalance that nobody answered would hold up the client's close.
    while let Some(rebalance) = group.next_rebalance() {
        group.answer(&client, &rebalance);
    }
    if !patience.is_zero() {
        settle(&client, topics, Instant::now() + patience);
    }
    if group.is_classic() {
        // Without it a member that has no partitions is closed and does not leave.
        client.unsubscribe();
    }
}

/// Waits until no join of this client is under way. Whatever else it asks the coordinator is answered after that, so
/// that an answer says so.
fn settle(client: &BaseConsumer<Group>, topics: &[Arc<str>], deadline: Instant) {
    let Some(topic) = topics.first() else { return };
    let left = || deadline.saturating_duration_since(Instant::now());
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, 0);
    let seen = || (native::generation(client), client.context().answered());
    let (mut before, mut quiet, mut owed) = (seen(), 0, false);
    let answers = || client.fetch_metadata(Some(topic), BROKERS_ANSWER_MAX.min(left())).is_ok();
    let mut patience = COORDINATOR_ANSWER_USUAL;
    if client.context().is_classic() {
        if !answers() {
            return;
        }
        patience = Duration::MAX;
    }
    while quiet < QUIET_ROUNDS {
        if let Err(error) = client.committed_offsets(asked.clone(), patience.min(left())) {
            if patience == Duration::MAX {
                tracing::warn!(%error, "the group is left while it is rebalanced, and may wait for this member");
                return;
            }
            // Not asked at first: the answer stands behind that of a fetch, for which a broker takes its time.
            if !answers() {
                return;
            }
            patience = Duration::MAX;
            continue;
        }
        // What comes besides rebalances is of no use any more.
        drop(client.poll(if owed { REBALANCE_WAIT.min(left()) } else { Duration::ZERO }));
        let now = seen();
        // After each join of the classic protocol comes what the leader has given us, if only that it is nothing more.
        let joined = now.0 != before.0 && client.context().is_classic();
        owed = now.1 == before.1 && (owed || joined);
        quiet = if owed || now != before { 0 } else { quiet + 1 };
        before = now;
    }
}
