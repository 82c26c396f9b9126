use std::collections::BTreeSet;

use super::*;

#[test]
fn the_hash_is_that_of_kafkas_java_client() {
    // From UtilsTest of Apache Kafka.
    for (key, hash) in [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
    ] {
        assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
    }
}

#[test]
fn the_keys_of_one_partition_spread_over_all_lanes() {
    let partition = |key: &str| (murmur2(key.as_bytes()) & 0x7fff_ffff) % 4;
    let keys = (0..4000).map(|n| format!("key-{n}")).filter(|key| partition(key) == 2);
    let mut counts = [0; 4];

    for key in keys {
        counts[Lanes::new(4).of(Some(key.as_bytes()), Offset::new(0))] += 1;
    }

    assert!(counts.iter().all(|count| *count > 200), "{counts:?}");
}

#[test]
fn records_without_a_key_take_turns() {
    let lanes: Vec<_> = (0..5).map(|n| Lanes::new(3).of(None, Offset::new(n))).collect();

    assert_eq!(lanes, [0, 1, 2, 0, 1]);
}

fn offsets(next: &[Option<i64>]) -> Vec<Option<Offset>> {
    next.iter().map(|next| next.map(Offset::new)).collect()
}

fn check(
    stored: &[Option<i64>],
    former: &[&[i64]],
    lanes: u16,
    expected: &[Option<i64>],
    kept: &[&[i64]],
) {
    let former = former.iter().map(|reached| reached.to_vec()).collect();
    let stored = Stored { epoch: 6, next_offsets: offsets(stored), former };

    let plan = plan(&stored, Lanes::new(lanes), Some(Offset::new(99)));

    let kept: Vec<_> = kept.iter().map(|reached| reached.to_vec()).collect();
    assert_eq!(plan, Plan { epoch: 7, next_offsets: offsets(expected), former: kept });
}

#[test]
fn lanes_go_on_where_they_were() {
    check(&[], &[], 2, &[Some(99), Some(99)], &[]);
    check(&[None, None], &[], 2, &[Some(99), Some(99)], &[]);
    check(&[Some(5), Some(9)], &[], 2, &[Some(5), Some(9)], &[]);
    check(&[None, Some(9)], &[], 2, &[None, Some(9)], &[]);
}

#[test]
fn another_number_of_lanes_goes_on_at_the_lowest_and_remembers_what_the_former_reached() {
    check(&[Some(5), Some(9)], &[], 3, &[Some(5); 3], &[&[5, 9]]);
    check(&[Some(5), Some(9)], &[], 1, &[Some(5)], &[&[5, 9]]);
    check(&[Some(5), Some(5)], &[], 1, &[Some(5)], &[]);
    check(&[None, Some(9)], &[], 1, &[None], &[&[0, 9]]);
    check(&[Some(7), Some(8)], &[&[5, 9]], 1, &[Some(7)], &[&[5, 9], &[7, 8]]);
}

#[test]
fn what_former_lanes_reached_is_forgotten_once_all_have_passed_it() {
    check(&[Some(8), Some(20)], &[&[5, 9, 4]], 2, &[Some(8), Some(20)], &[&[5, 9, 4]]);
    check(&[Some(9), Some(20)], &[&[5, 9, 4]], 2, &[Some(9), Some(20)], &[]);
}

/// A log of keyed records, applied by lanes that come as far as the dice say; then the owner changes, and with
/// it the number of lanes. In the end each record was applied once.
#[test]
fn over_any_changes_of_their_number_lanes_apply_each_record_once() {
    const RECORDS: i64 = 300;
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let first_seed = seed.unwrap_or_else(crate::retry::chance);
    let mut seed = first_seed | 1;
    let mut dice = move |sides: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % sides
    };
    for _ in 0..200 {
        let keys: Vec<Option<Vec<u8>>> = (0..RECORDS)
            .map(|_| {
                Some(dice(20)).filter(|key| *key > 2).map(|key| vec![u8::try_from(key).unwrap()])
            })
            .collect();
        let mut stored = Stored::default();
        let mut applied = BTreeSet::new();
        loop {
            let lanes = Lanes::new(u16::try_from(1 + dice(5)).unwrap());
            let mut plan = plan(&stored, lanes, None);
            let before = AppliedBefore::new(plan.former.clone());
            let resumes_at = plan.resumes_at().map_or(0, Offset::get);
            let ends: Vec<i64> = plan
                .next_offsets
                .iter()
                .map(|next| {
                    next.map_or(0, Offset::get).max(resumes_at + i64::try_from(dice(90)).unwrap())
                })
                .collect();
            for offset in resumes_at..RECORDS {
                let key = keys[usize::try_from(offset).unwrap()].as_deref();
                let lane = lanes.of(key, Offset::new(offset));
                let next = plan.next_offsets[lane];
                if before.holds(key, Offset::new(offset))
                    || next.is_some_and(|next| offset < next.get())
                    || offset >= ends[lane]
                {
                    continue;
                }
                assert!(applied.insert(offset), "{offset} twice, SEED={first_seed}");
                plan.next_offsets[lane] = Some(Offset::new(offset + 1));
            }
            // Lanes without records of their own are told how far the others are.
            for (next, end) in plan.next_offsets.iter_mut().zip(&ends) {
                *next = (*next).max(Some(Offset::new(*end)));
            }
            stored =
                Stored { epoch: plan.epoch, next_offsets: plan.next_offsets, former: plan.former };
            if ends.iter().all(|end| *end >= RECORDS) {
                break;
            }
        }
        assert_eq!(applied.len(), usize::try_from(RECORDS).unwrap(), "SEED={first_seed}");
    }
}
