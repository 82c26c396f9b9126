use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::lanes::AppliedBefore;
use crate::record::tests::delivery;

fn offsets(numbers: &[Option<i64>]) -> Vec<Option<Offset>> {
    numbers.iter().map(|number| number.map(Offset::new)).collect()
}

fn check_before(
    (below, former): (&[Option<i64>], &[&[i64]]),
    next: &[Option<i64>],
    lanes: u16,
    (left, kept): (&[Option<i64>], &[&[i64]]),
) {
    let vectors = |former: &[&[i64]]| former.iter().map(|reached| reached.to_vec()).collect();
    let before = Before { below: offsets(below), former: vectors(former) };

    let found = before.of_lanes(&offsets(next), Lanes::new(lanes));

    assert_eq!(found, Before { below: offsets(left), former: vectors(kept) });
}

#[test]
fn what_lanes_had_reached_before_a_seek_is_kept_until_all_have_passed_it() {
    let (a, b) = (Some(100), Some(90));
    check_before((&[], &[]), &[a, b], 2, (&[], &[]));
    check_before((&[None, None], &[]), &[a, b], 2, (&[], &[]));
    check_before((&[a, b], &[]), &[Some(50); 2], 2, (&[a, b], &[]));
    check_before((&[a, b], &[]), &[None; 2], 2, (&[a, b], &[]));
    check_before((&[a, b], &[]), &[Some(50); 2], 1, (&[b], &[&[100, 90]]));
    check_before((&[b], &[&[100, 90]]), &[Some(95)], 1, (&[Some(95)], &[&[100, 90]]));
    check_before((&[b], &[&[100, 90]]), &[a], 1, (&[a], &[]));
}

fn check_known(dedupe: Dedupe, known: (&str, Option<i32>), now: Option<i32>, fault: Option<&str>) {
    let known = Known { dedupe: known.0.to_owned(), was_position: false, partitions: known.1 };

    let found = check("billing", "orders", dedupe, &known, now);

    let text = found.as_ref().err().map(ToString::to_string);
    assert_eq!(text.is_some(), fault.is_some(), "{text:?}");
    if let Some(part) = fault {
        let text = text.as_deref().unwrap();
        assert!(text.contains(part) && text.contains("tailrace inbox dedupe"), "{text}");
    }
}

#[test]
fn another_way_than_the_stored_one_and_another_number_of_partitions_are_told() {
    use Dedupe::{Position, ProcessedMessages};

    check_known(ProcessedMessages, ("ids", None), Some(3), None);
    check_known(Position, ("position", Some(3)), Some(3), None);
    check_known(Position, ("position", None), Some(3), None);
    check_known(Position, ("position", Some(3)), None, None);
    check_known(Position, ("position", Some(3)), Some(6), Some("has 6 partitions and had 3"));
    check_known(Position, ("ids", None), Some(3), Some("by ids, and is configured"));
    check_known(ProcessedMessages, ("position", Some(3)), Some(3), Some("by position, and is"));
}

fn admitted(headers: &[(&str, &str)], unsequenced: Unsequenced) -> Result<(), Error> {
    let mut inspector = Inspector::new(Sequences::default(), unsequenced);
    let first = format!("orders:{:08x}{:024x}", 1, 7);
    let mut before = delivery(3);
    before.headers.push("ce_sequence", Some(first.as_bytes()));
    inspector.admit(&before).unwrap();
    let mut record = delivery(4);
    for (name, value) in headers {
        record.headers.push(name, Some(value.as_bytes()));
    }
    inspector.admit(&record)
}

#[test]
fn each_break_names_the_record_and_a_way_on() {
    let at = |incarnation, rest| format!("orders:{incarnation:08x}{rest:024x}");
    for (headers, part) in [
        (vec![("ce_sequence", at(1, 7))], r#"relay "orders" goes back behind offset 3"#),
        (vec![("ce_sequence", at(2, 1))], r#"relay "orders" has begun incarnation 2 after 1"#),
        (vec![("ce_sequence", "orders".to_owned())], "not what a relay writes"),
        (vec![], "a record has no ce_sequence"),
        (vec![("ce_replay", "1".to_owned())], "a record of a replay has no ce_sequence"),
    ] {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let error = admitted(&headers, Unsequenced::Halt).unwrap_err();

        let text = error.to_string();
        assert_eq!(error.kind(), Kind::Sequence);
        assert!(text.contains(part), "{text}");
        assert!(text.contains("partition 2 offset 4"), "{text}");
        assert!(text.contains("tailrace inbox "), "{text}");
    }
    admitted(&[("ce_sequence", &at(1, 8))], Unsequenced::Halt).unwrap();
    admitted(&[], Unsequenced::Claim).unwrap();
}

#[derive(Debug, Clone)]
enum Turn {
    /// So many lanes, which come so far.
    Own(u16, Vec<i64>),
    Seek(i64),
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = prop_oneof![
        3 => (1u16..5, prop::collection::vec(0i64..70, 5)).prop_map(|(lanes, ends)| Turn::Own(lanes, ends)),
        1 => (0i64..200).prop_map(Turn::Seek),
    ];
    prop::collection::vec(turn, 1..20)
}

proptest! {
    /// A partition under owners with any numbers of lanes that end anywhere, between which a person sets progress back:
    /// each record is applied once, by what is stored of offsets alone.
    #[test]
    fn over_seeks_and_changes_of_lanes_each_record_is_applied_once(
        keys in prop::collection::vec(prop::option::weighted(0.9, 0u8..20), 200),
        turns in turns(),
    ) {
        let (mut stored, mut before) = (Stored::default(), Before::default());
        let mut applied = BTreeSet::new();
        for turn in turns.into_iter().chain([Turn::Own(3, vec![200; 5])]) {
            let (lanes, ends) = match turn {
                Turn::Own(lanes, ends) => (Lanes::new(lanes), ends),
                Turn::Seek(to) => {
                    // Forwards, what is passed over counts as applied, as documented.
                    let low = stored.next_offsets.iter().min().copied().flatten();
                    if low.is_some_and(|low| to < low.get()) {
                        seek(&mut stored, &mut before, to);
                    }
                    continue;
                }
            };
            let mut next = plan(&stored, lanes, None);
            before = before.of_lanes(&stored.next_offsets, lanes);
            let known = next.former.iter().cloned().chain(before.reached()).collect();
            let known = AppliedBefore::new(known);
            let begin = next.resumes_at().map_or(0, Offset::get);
            for (offset, key) in (begin..).zip(&keys[usize::try_from(begin).unwrap()..]) {
                let (key, at) = (key.map(|key| vec![key]), Offset::new(offset));
                let lane = lanes.of(key.as_deref(), at);
                if next.next_offsets[lane].is_some_and(|next| at < next)
                    || known.holds(key.as_deref(), at)
                    || offset >= begin + ends[lane]
                {
                    continue;
                }
                prop_assert!(applied.insert(offset), "{offset} twice");
                next.next_offsets[lane] = Some(at.next());
            }
            // Lanes are told how far the others are, and what was applied before is passed.
            for (next, end) in next.next_offsets.iter_mut().zip(&ends) {
                *next = (*next).max(Some(Offset::new((begin + end).min(200))));
            }
            stored = Stored { epoch: 0, next_offsets: next.next_offsets, former: next.former };
        }
        prop_assert_eq!(applied.len(), 200);
    }
}

/// As `tailrace.seek_consumer` does.
fn seek(stored: &mut Stored, before: &mut Before, to: i64) {
    before.below.resize(stored.next_offsets.len().max(before.below.len()), None);
    for (below, next) in before.below.iter_mut().zip(&stored.next_offsets) {
        *below = (*below).max(*next);
    }
    before.former.append(&mut stored.former);
    stored.next_offsets.fill(Some(Offset::new(to)));
}
