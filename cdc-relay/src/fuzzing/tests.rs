//! The fuzzers' targets without a fuzzer: what they start from, and damaged copies of it.

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

use super::{TARGETS, Target};

/// Inputs for each target beside the corpus.
const CASES: u32 = 256;
const INPUT_BYTES_MAX: usize = 300;

/// What the fuzzers start from, and what they once found.
fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name);
    let entries = fs::read_dir(&folder).expect("each target has a corpus");
    entries.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
}

/// A change of the bytes such as a fuzzer makes.
#[derive(Clone, Debug)]
enum Damage {
    Byte(Index, u8),
    Cut(Index),
    Leave(Index, Index),
    Insert(Index, Vec<u8>),
    /// A length or a count that is not true.
    Large(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        1 => any::<Index>().prop_map(Damage::Cut),
        2 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Leave(from, to)),
        2 => (any::<Index>(), vec(any::<u8>(), 1..9))
            .prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => any::<Index>().prop_map(Damage::Large),
    ]
}

fn damaged(mut bytes: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        let place = |at: &Index| at.index(bytes.len() + 1);
        match damage {
            Damage::Cut(at) => bytes.truncate(place(at)),
            Damage::Leave(from, to) => {
                let (from, to) = (place(from).min(place(to)), place(from).max(place(to)));
                bytes.drain(from..to);
            }
            Damage::Insert(at, more) => drop(bytes.splice(place(at)..place(at), more.clone())),
            Damage::Byte(at, byte) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Damage::Large(at) if bytes.len() >= 2 => {
                let at = at.index(bytes.len() - 1);
                bytes[at..at + 2].fill(0xFF);
            }
            Damage::Byte(..) | Damage::Large(_) => {}
        }
    }
    bytes
}

#[test]
fn what_the_fuzzers_start_from_makes_no_decoder_panic() {
    for target in TARGETS {
        for bytes in corpus(target) {
            (target.read)(&bytes);
            (0..bytes.len()).for_each(|end| (target.read)(&bytes[..end]));
        }
    }
}

#[test]
fn no_bytes_make_any_decoder_panic() {
    for target in TARGETS {
        let seeds = select(corpus(target));
        let inputs = prop_oneof![
            4 => (seeds, vec(damage(), 1..6)).prop_map(|(seed, how)| damaged(seed, &how)),
            1 => vec(any::<u8>(), 0..INPUT_BYTES_MAX),
        ];
        let mut runner = TestRunner::new(Config { cases: CASES, ..Config::default() });

        let outcome = runner.run(&inputs, |bytes| {
            (target.read)(&bytes);
            Ok(())
        });

        // The failure shows the smallest input; its bytes belong into the corpus.
        assert!(outcome.is_ok(), "{}: {}", target.name, outcome.unwrap_err());
    }
}

#[test]
fn each_target_has_a_fuzzer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut programs: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    programs.sort();

    assert_eq!(programs, TARGETS.iter().map(|target| target.name).collect::<Vec<_>>());
}
