//! What most tests do: a relay on a site of its own, and the verdict at the end.

use std::time::Duration;

use rustix::process::Signal;
use tailrace_stack::Stack;
use tests::Site;
use tests::process::{Node, Process};
use tests::verdict::Verdict;
use tests::writers::Written;

/// A relay that starts leads by then; one that takes over does too.
pub(crate) const LEAD_MAX: Duration = Duration::from_secs(30);
/// What was committed is published by then.
pub(crate) const PUBLISH_MAX: Duration = Duration::from_secs(60);
/// A relay that is told to stop has stopped by then.
pub(crate) const STOP_MAX: Duration = Duration::from_secs(15);

/// The program whose processes are under test.
pub(crate) fn node() -> Node {
    Node::at(env!("CARGO_BIN_EXE_node"))
}

/// A site on the servers of all tests, with the writers' tables.
pub(crate) async fn site(name: &str) -> Site {
    let site = Site::new(Stack::shared().await, name, 2, &node()).await;
    site.prepare_writers().await;
    site
}

/// Runs a relay until it leads once: slot, publication and first checkpoint exist.
pub(crate) async fn initialize(site: &Site) {
    let mut relay = site.relay(tests::Variant::default());
    relay.says("leading", LEAD_MAX).await;
    stop(&mut relay).await;
}

/// Waits until as many records as were committed can be read.
pub(crate) async fn published(site: &Site) {
    let enough = site.expected().await.len();
    site.read_until(PUBLISH_MAX, move |seen| seen.len() >= enough).await;
}

/// SIGTERM, and a clean end.
#[track_caller]
pub(crate) fn stop(relay: &mut Process) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        relay.signal(Signal::TERM);
        let status = relay.ends(STOP_MAX).await;
        assert!(status.success(), "{caller}: {status}:\n{}", relay.log());
    }
}

/// Everything that was committed is in Kafka once, in order. For a time when no relay runs.
pub(crate) async fn all_is_well(site: &Site, written: &Written) {
    site.slot_is_not_above_the_checkpoint().await;
    let expected = site.expected().await;
    let seen = site.read_to_end().await;
    let verdict = Verdict::judge(&site.relay_id, &expected, &written.rolled_back, &seen);
    assert!(verdict.holds(), "{verdict:#?}");
}
