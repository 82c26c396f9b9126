use proptest::prelude::*;

use super::*;

fn sequence(relay: &str, incarnation: u32, lsn: u64, ordinal: u32) -> String {
    format!("{relay}:{incarnation:08x}{lsn:016x}{ordinal:08x}")
}

/// Records of a partition by offset, of which the last one is answered so.
fn check(records: &[(i64, String)], expected: Result<(), Break>) {
    let mut sequences = Sequences::default();
    let (last, before) = records.split_last().unwrap();
    for (offset, sequence) in before {
        assert_eq!(sequences.admit(sequence, Offset::new(*offset)), Ok(()), "{sequence}");
    }

    assert_eq!(sequences.admit(&last.1, Offset::new(last.0)), expected, "{records:?}");
}

#[test]
fn within_a_relay_sequences_rise_with_the_offsets_or_are_told() {
    let at = |lsn, ordinal| sequence("orders", 1, lsn, ordinal);
    let back = Break::Back { highest: Offset::new(7) };
    let ahead = Break::Ahead { highest: Offset::new(7) };

    check(&[(0, at(5, 0)), (7, at(5, 1))], Ok(()));
    check(&[(0, at(5, 9)), (7, at(6, 0))], Ok(()));
    check(&[(7, at(5, 0)), (8, at(5, 0))], Err(back.clone()));
    check(&[(7, at(5, 0)), (8, at(4, 9))], Err(back));
    check(&[(7, at(5, 0)), (7, at(5, 0))], Ok(()));
    check(&[(7, at(5, 0)), (3, at(4, 0))], Ok(()));
    check(&[(7, at(5, 0)), (3, at(6, 0))], Err(ahead));
}

#[test]
fn another_relay_has_an_order_of_its_own_and_another_incarnation_is_told() {
    let other = sequence("shop:eu", 3, 1, 0);
    let anew = Break::Incarnation { from: 1, to: 2 };

    check(&[(0, sequence("orders", 1, 9, 0)), (1, other)], Ok(()));
    check(&[(0, sequence("orders", 1, 9, 0)), (1, sequence("orders", 2, 1, 0))], Err(anew));
    let many: Vec<_> = (0..=64i64).map(|n| (n, sequence(&format!("relay-{n}"), 1, 1, 0))).collect();
    check(&many[..64], Ok(()));
    check(&many, Err(Break::Relays));
}

#[test]
fn what_no_relay_writes_is_unreadable() {
    let digits = "0".repeat(32);
    for wrong in [
        "",
        "orders",
        "orders:",
        &format!(":{digits}"),
        &format!("orders:{}", &digits[1..]),
        &format!("orders:{digits}0"),
        &format!("orders:+{}", &digits[1..]),
        &format!("orders:A{}", &digits[1..]),
        &format!("orders:ü{}", &digits[2..]),
    ] {
        check(&[(0, wrong.to_owned())], Err(Break::Unreadable));
    }
}

#[test]
fn what_the_topic_had_before_it_was_made_anew_may_not_stand_in_it_again() {
    let place = Place::read(&format!("{:032x}", 50)).unwrap();
    let stored = Highest { place, offset: Offset::new(-1) };
    let admit = |digits: u128| {
        let mut sequences = Sequences::default();
        sequences.know("r".to_owned(), stored);
        sequences.admit(&format!("r:{digits:032x}"), Offset::new(0))
    };

    assert_eq!(admit(51), Ok(()));
    assert_eq!(admit(50), Err(Break::Back { highest: Offset::new(-1) }));
}

#[test]
fn the_last_record_of_each_relay_is_stored() {
    let (a, b, c) = (sequence("a", 1, 1, 0), sequence("b", 1, 9, 0), sequence("a", 1, 2, 0));
    let records = [(Some(&a), 3), (Some(&b), 4), (Some(&c), 5), (None, 6)];
    let records = records.into_iter().map(|(s, n)| (s.map(String::as_str), Offset::new(n)));

    let stored = last_of_each(records);

    let expected = [("a", &c[2..], Offset::new(5)), ("b", &b[2..], Offset::new(4))];
    assert_eq!(stored, expected);
}

proptest! {
    /// A log in which some records stand again further on. Lanes store what they have applied, at any places, and the
    /// next owner begins anew at the lowest of them: no repetition is ever taken for a new record.
    #[test]
    fn a_repetition_is_never_admitted_wherever_owners_change(
        copies in prop::collection::vec((0usize..200, 1usize..40), 0..6),
        turns in prop::collection::vec((0usize..60, 0usize..60), 1..8),
    ) {
        let mut log: Vec<u32> = (0..200).collect();
        for (from, ahead) in copies {
            let at = (from + ahead).min(log.len());
            log.insert(at, log[from.min(at - 1)]);
        }
        let first_copy = (0..log.len()).find(|at| log[..*at].contains(&log[*at]));
        let mut stored = Sequences::default();
        let mut lanes = [0usize; 2];
        for (one, two) in turns.into_iter().chain([(1000, 1000), (1000, 1000)]) {
            let mut seen = stored.clone();
            let begin = lanes[0].min(lanes[1]);
            let mut end = log.len();
            for (at, number) in log.iter().enumerate().skip(begin) {
                let offset = Offset::new(i64::try_from(at).unwrap());
                if seen.admit(&sequence("r", 1, u64::from(*number), 0), offset).is_err() {
                    end = at;
                    break;
                }
            }
            prop_assert!(end <= first_copy.unwrap_or(log.len()), "{end} {first_copy:?}");
            for (lane, steps) in lanes.iter_mut().zip([one, two]) {
                *lane = (*lane).max((begin + steps).min(end));
                if let Some(last) = lane.checked_sub(1) {
                    let place = Place::read(&sequence("r", 1, u64::from(log[last]), 0)[2..]).unwrap();
                    let offset = Offset::new(i64::try_from(last).unwrap());
                    stored.know("r".to_owned(), Highest { place, offset });
                }
            }
        }
    }
}
