//! What is kept and read back, against a list that does the same without bounds.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::sample::Index;

use super::{Bounds, Kept, Streamed, probe};
use crate::error::Kind;
use crate::lsn::Lsn;
use crate::pgoutput::Xid;

/// A directory of its own, which is gone in the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("streamed-{}", uuid::Uuid::now_v7()));
        fs::create_dir(&path).unwrap();
        Directory(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn streamed(directory: &Directory, memory: usize, spool_max: u64) -> Streamed {
    let directory = directory.path().to_owned();
    Streamed::new(Bounds { memory, directory, spool_max }, Arc::default())
}

/// An insert of a subtransaction, which says its number.
fn insert(xid: Xid, number: u32, bytes: usize) -> Vec<u8> {
    let mut body = vec![b'I'];
    body.extend(xid.0.to_be_bytes());
    body.extend(number.to_be_bytes());
    body.resize(body.len() + bytes, 7);
    body
}

/// The numbers of the changes of a transaction that commits now.
async fn commit(streamed: &mut Streamed, xid: Xid) -> Vec<u32> {
    let mut read_back = streamed.commit(xid).unwrap();
    assert_eq!(read_back.xid(), xid);
    let mut numbers = Vec::new();
    while streamed.next_piece(&mut read_back).await.unwrap() {
        while let Some(Kept { place, message }) = read_back.next_kept() {
            let number = u32::from_be_bytes(*message[5..].first_chunk().unwrap());
            assert_eq!(place, u64::from(number));
            numbers.push(number);
        }
    }
    numbers
}

#[derive(Clone, Debug)]
enum Step {
    /// Changes of one of the transactions: of itself or of a subtransaction, each of so many bytes.
    Segment {
        top: usize,
        changes: Vec<(Option<u8>, usize)>,
    },
    /// A subtransaction that has changes is rolled back.
    Rollback {
        top: usize,
        which: Index,
    },
    Commit {
        top: usize,
    },
    Abort {
        top: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let top = 0..3_usize;
    let subtransaction = prop_oneof![Just(None), (0..6_u8).prop_map(Some)];
    let bytes = prop_oneof![8 => 0..300_usize, 1 => 30_000..40_000_usize];
    prop_oneof![
        6 => (top.clone(), vec((subtransaction, bytes), 0..20))
            .prop_map(|(top, changes)| Step::Segment { top, changes }),
        4 => (top.clone(), any::<Index>()).prop_map(|(top, which)| Step::Rollback { top, which }),
        1 => top.clone().prop_map(|top| Step::Commit { top }),
        1 => top.prop_map(|top| Step::Abort { top }),
    ]
}

/// A transaction without bounds: its number, its changes, and subtransactions that are over.
#[derive(Default)]
struct Plain {
    xid: u32,
    changes: Vec<(Xid, u32)>,
    rolled_back: Vec<Xid>,
}

/// Takes the same steps with both, and compares what they hold at each commit.
async fn agree(steps: &[Step], memory: usize) {
    let directory = Directory::new();
    let mut streamed = streamed(&directory, memory, u64::MAX);
    let mut open: [Option<Plain>; 3] = Default::default();
    let mut number = 0;
    let mut xid = 0;
    for step in steps {
        match step {
            Step::Segment { top, changes } => {
                let first = open[*top].is_none();
                let plain = open[*top].get_or_insert_with(|| {
                    xid += 1_000;
                    Plain { xid, ..Plain::default() }
                });
                streamed.start(Xid(plain.xid), first).unwrap();
                for (subtransaction, bytes) in changes {
                    let of = Xid(plain.xid + subtransaction.map_or(0, |of| u32::from(of) + 1));
                    if plain.rolled_back.contains(&of) {
                        continue;
                    }
                    number += 1;
                    let message = insert(of, number, *bytes);
                    let lsn = Lsn(u64::from(number));
                    streamed.take(&message, lsn, || unreachable!("no table")).await.unwrap();
                    plain.changes.push((of, number));
                }
                streamed.take(b"E", Lsn(0), || unreachable!("no table")).await.unwrap();
                assert!(streamed.memory() <= memory);
            }
            Step::Rollback { top, which } => {
                let Some(plain) = &mut open[*top] else { continue };
                let known: Vec<Xid> = plain.changes.iter().map(|(of, _)| *of).collect();
                if known.is_empty() {
                    continue;
                }
                let of = *which.get(&known);
                if of.0 == plain.xid {
                    continue;
                }
                streamed.abort(Xid(plain.xid), of).await.unwrap();
                plain.changes.retain(|(made_by, _)| *made_by != of);
                plain.rolled_back.push(of);
            }
            Step::Commit { top } => {
                let Some(plain) = open[*top].take() else { continue };
                let expected: Vec<u32> = plain.changes.iter().map(|(_, number)| *number).collect();
                assert_eq!(commit(&mut streamed, Xid(plain.xid)).await, expected);
            }
            Step::Abort { top } => {
                let Some(plain) = open[*top].take() else { continue };
                streamed.abort(Xid(plain.xid), Xid(plain.xid)).await.unwrap();
            }
        }
    }
    for plain in open.into_iter().flatten() {
        let expected: Vec<u32> = plain.changes.iter().map(|(_, number)| *number).collect();
        assert_eq!(commit(&mut streamed, Xid(plain.xid)).await, expected);
    }
    assert_eq!((streamed.memory(), streamed.spooled()), (0, 0));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "files have no names");
}

proptest! {
    #[test]
    fn what_was_not_rolled_back_comes_back_in_order_whatever_is_spooled(
        steps in vec(step(), 1..40),
        memory in prop_oneof![Just(40_000_usize), 60_000..200_000_usize, Just(100_000_000)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(agree(&steps, memory));
    }
}

/// A transaction with so many changes of 1,000 bytes, of these subtransactions in turn.
async fn fill(streamed: &mut Streamed, top: Xid, changes: u32, of: impl Fn(u32) -> Xid) {
    streamed.start(top, true).unwrap();
    for number in 0..changes {
        let message = insert(of(number), number, 1_000);
        streamed.take(&message, Lsn(u64::from(number)), || 0).await.unwrap();
    }
    streamed.take(b"E", Lsn(0), || 0).await.unwrap();
}

#[tokio::test]
async fn what_is_rolled_back_at_the_end_gives_its_room_back_at_once() {
    let directory = Directory::new();
    let mut streamed = streamed(&directory, 100_000, u64::MAX);
    let (top, inner, outer) = (Xid(1), Xid(2), Xid(3));
    fill(&mut streamed, top, 1_000, |number| match number {
        0..100 => top,
        // The outer savepoint was there before, and wrote nothing until the inner one was released.
        100..300 => inner,
        _ => outer,
    })
    .await;
    let all = streamed.spooled();

    streamed.abort(top, outer).await.unwrap();
    let without_outer = streamed.spooled();
    streamed.abort(top, inner).await.unwrap();

    assert!(all > 900_000 && without_outer < 310_000, "{all} {without_outer}");
    assert!(streamed.spooled() < 110_000, "{}", streamed.spooled());
    assert_eq!(commit(&mut streamed, top).await, (0..100).collect::<Vec<_>>());
    assert_eq!(streamed.spooled(), 0);
}

#[tokio::test]
async fn what_is_read_back_counts_as_arrived() {
    let directory = Directory::new();
    let bounds =
        Bounds { memory: 100_000, directory: directory.path().to_owned(), spool_max: u64::MAX };
    let arrived = Arc::new(AtomicU64::new(0));
    let mut streamed = Streamed::new(bounds, Arc::clone(&arrived));
    fill(&mut streamed, Xid(1), 1_000, |_| Xid(1)).await;

    commit(&mut streamed, Xid(1)).await;

    assert!(arrived.load(Ordering::Relaxed) > 1_000_000);
}

#[tokio::test]
async fn beyond_each_bound_streaming_is_given_up() {
    let directory = Directory::new();
    let elsewhere = PathBuf::from("/nonexistent");
    let give_up = async |mut streamed: Streamed, each: &dyn Fn(u32) -> Xid| {
        streamed.start(Xid(1), true).unwrap();
        let mut number = 0;
        loop {
            number += 1;
            let message = insert(each(number), number, 10);
            let taken = streamed.take(&message, Lsn(1), || 0).await;
            assert_eq!(taken.is_err(), streamed.gave_up());
            let Err(error) = taken else { continue };
            assert_eq!(error.kind(), Kind::Unavailable);
            return (number, error);
        }
    };

    let (full, error) = give_up(streamed(&directory, 50_000, 200_000), &|_| Xid(1)).await;
    assert!(full > 4_000, "{full}");
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("200000 bytes"));

    let bounds = Bounds { memory: 50_000, directory: elsewhere, spool_max: u64::MAX };
    let (_, error) = give_up(Streamed::new(bounds, Arc::default()), &|_| Xid(1)).await;
    assert!(error.to_string().contains("/nonexistent"), "{error}");

    // Each change in a savepoint of its own: to keep them apart takes memory that no file can give.
    let each = |number| Xid(1 + number);
    let (_, error) = give_up(streamed(&directory, 50_000, u64::MAX), &each).await;
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("subtransactions"));
}

#[tokio::test]
async fn a_stream_that_breaks_its_order_is_refused() {
    let directory = Directory::new();
    let fresh = || streamed(&directory, 50_000, 200_000);
    let change = insert(Xid(1), 1, 1);

    let mut streamed = fresh();
    assert_eq!(streamed.start(Xid(1), false).unwrap_err().kind(), Kind::Malformed);
    assert_eq!(streamed.commit(Xid(1)).unwrap_err().kind(), Kind::Malformed);
    assert_eq!(streamed.take(&change, Lsn(1), || 0).await.unwrap_err().kind(), Kind::Malformed);
    // Of what never had anything for us nothing is known.
    streamed.abort(Xid(1), Xid(2)).await.unwrap();
    streamed.abort(Xid(1), Xid(1)).await.unwrap();

    let mut streamed = fresh();
    streamed.start(Xid(1), true).unwrap();
    assert_eq!(streamed.start(Xid(2), true).unwrap_err().kind(), Kind::Malformed);
    assert_eq!(streamed.commit(Xid(1)).unwrap_err().kind(), Kind::Malformed);
    streamed.take(&insert(Xid(2), 1, 1), Lsn(1), || 0).await.unwrap();
    streamed.take(&change, Lsn(1), || 0).await.unwrap();
    streamed.take(b"E", Lsn(0), || 0).await.unwrap();
    assert_eq!(streamed.start(Xid(1), true).unwrap_err().kind(), Kind::Malformed);
    streamed.abort(Xid(1), Xid(2)).await.unwrap();
    streamed.start(Xid(1), false).unwrap();
    let late = streamed.take(&insert(Xid(2), 2, 1), Lsn(1), || 0).await.unwrap_err();
    assert!(late.to_string().contains("after its rollback"), "{late}");
}

#[test]
fn a_directory_for_files_is_tried() {
    let directory = Directory::new();

    probe(directory.path()).unwrap();

    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    probe(&directory.path().join("missing")).unwrap_err();
}
