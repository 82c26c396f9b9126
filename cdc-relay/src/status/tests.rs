use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Delivered, ERRORS_MAX, Line, Role, Status};
use crate::error::{Error, Kind};
use crate::lsn::Lsn;
use crate::position::Incarnation;
use crate::publisher::unix_ms;
use crate::slot_health::{Look, SlotHealth};
use crate::watchdog::{Cause, Verdict};

fn leading() -> (Status, Arc<AtomicU64>) {
    let status = Status::new("slot");
    let arrived = Arc::new(AtomicU64::new(0));
    status.leads("relay", Incarnation(7), Lsn(100), line(&arrived));
    (status, arrived)
}

fn look(end: u64) -> Look {
    let health =
        SlotHealth { exists: true, wal_status: "reserved".to_owned(), ..SlotHealth::default() };
    Look { end: Lsn(end), at_work: false, health }
}

/// A stream that brings transactions whole.
fn line(arrived: &Arc<AtomicU64>) -> Line {
    Line { arrived: Arc::clone(arrived), in_progress: false }
}

#[test]
fn a_relay_is_ready_as_a_leader_a_standby_and_when_it_is_paused() {
    let check = |status: &Status, role: Role, why: Option<&str>| {
        let now = status.snapshot();
        assert_eq!((now.role, now.not_ready.as_deref()), (role, why));
    };
    let (status, _) = leading();
    check(&status, Role::Leading, None);

    status.judged(1, Verdict::Red(Cause::Silent));
    check(&status, Role::Leading, Some("no bytes come from postgres"));
    status.judged(1, Verdict::Healthy);

    status.pause();
    check(&status, Role::Paused, None);
    status.resume();

    status.failed(&Error::new(Kind::Unavailable, "kafka is away"));
    check(&status, Role::Starting, Some("kafka is away"));
    status.stands_by();
    check(&status, Role::StandingBy, None);
    status.stops();
    check(&status, Role::Stopping, Some("it stops"));
    status.failed(&Error::new(Kind::Unavailable, "kafka is away"));
    check(&status, Role::Stopping, Some("it stops"));
    check(&Status::new("slot"), Role::Starting, Some("it starts"));
}

#[test]
fn lag_is_that_of_the_oldest_message_that_is_not_durable() {
    let (status, _) = leading();
    let ago = |seconds: u64| (unix_ms() - seconds * 1_000) * 1_000;
    let is_about = |seconds: u64| {
        let lag = status.snapshot().lag;
        let about = Duration::from_secs(seconds);
        assert!(lag >= about && lag < about + Duration::from_secs(5), "{lag:?}, not {about:?}");
    };
    is_about(0);

    status.pending(ago(60));
    status.pending(ago(40));
    is_about(60);

    let first = Delivered { messages: 1, oldest: ago(60), newest: ago(60), ..Delivered::default() };
    status.delivered(Lsn(110), Delivered { oldest_left: ago(40), ..first });
    is_about(40);
    status.delivered(Lsn(120), first);
    is_about(0);
    assert_eq!(status.snapshot().messages, 2);
}

#[test]
fn the_watchdog_ends_the_session_that_it_saw_and_no_later_one() {
    let (status, arrived) = leading();
    arrived.store(9, Ordering::Relaxed);
    status.source(Some(look(500)));
    let sight = status.sight(Instant::now()).unwrap();
    assert_eq!((sight.session, sight.arrived, sight.received), (1, 9, Lsn(100)));
    assert_eq!(status.snapshot().lag_bytes, Some(400));

    status.judged(sight.session, Verdict::End(Cause::Silent));
    status.judged(sight.session, Verdict::End(Cause::Silent));

    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut first = std::pin::pin!(status.end_of(1));
    assert!(first.as_mut().poll(&mut context).is_ready());
    assert_eq!(status.leads("relay", Incarnation(7), Lsn(100), line(&arrived)), 2);
    let mut second = std::pin::pin!(status.end_of(2));
    assert!(second.as_mut().poll(&mut context).is_pending());
    assert_eq!(status.snapshot().watchdog_restarts, 1);
}

#[test]
fn a_probe_is_known_by_its_content_and_counts_once() {
    let (status, _) = leading();
    assert!(status.wants_probe());

    status.probe_leaves("one");
    assert!(!status.wants_probe());
    assert!(status.is_probe(b"one") && !status.is_probe(b"another"));
    status.probe_returned();

    assert!(status.wants_probe() && !status.is_probe(b"one"));
    assert!(status.snapshot().probe.is_some());
    status.pause();
    assert!(!status.wants_probe());
}

#[test]
fn the_last_errors_are_kept_newest_first_and_no_more() {
    let (status, _) = leading();
    for number in 0..=ERRORS_MAX {
        status.failed(&Error::new(Kind::Gap, format!("number {number}")).hint("mend it"));
    }

    let errors = status.snapshot().errors;
    assert_eq!(errors.len(), ERRORS_MAX);
    assert_eq!(errors[0].text, format!("number {ERRORS_MAX}"));
    assert_eq!((errors[0].kind, errors[0].mend.as_deref()), ("gap", Some("mend it")));
}

#[test]
fn a_snapshot_is_json_with_positions_as_text_and_times_in_seconds() {
    let (status, _) = leading();
    status.source(Some(look(0x1_0000_0010)));
    status.stands_by();

    let json = serde_json::to_value(status.snapshot()).unwrap();
    assert_eq!(json["role"], "standby");
    assert_eq!(json["source_end"], "1/10");
    assert_eq!(json["flushed"], "0/64");
    assert_eq!(json["lag_seconds"], 0.0);
    assert_eq!(json["probe_seconds"], serde_json::Value::Null);
    assert_eq!(json["slot_health"]["wal_status"], "reserved");
}
