//! UTC days, as partitions are named and bounded by them.

use uuid::Uuid;

/// A UTC day, counted from 1970-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Day(i64);

/// The milliseconds and seconds of a day; Unix time knows no leap seconds.
const MILLISECONDS: i64 = 86_400_000;
const SECONDS: i64 = 86_400;

/// What comes before the digits in the name of a partition.
const BEFORE: &str = "outbox_";

/// A range of ids, from the first one to before the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ids {
    from: u128,
    to: u128,
}

impl Ids {
    /// Reads the bounds of a partition as Postgres writes them; `None` for the default partition.
    pub(super) fn of_bounds(bounds: &str) -> Option<Self> {
        let bounds = bounds.strip_prefix("FOR VALUES FROM (")?.strip_suffix(')')?;
        let (from, to) = bounds.split_once(") TO (")?;
        let bound = |text: &str| match text {
            "MINVALUE" => Some(0),
            "MAXVALUE" => Some(u128::MAX),
            _ => Uuid::try_parse(text.trim_matches('\'')).ok().map(|id| id.as_u128()),
        };
        Some(Ids { from: bound(from)?, to: bound(to)? })
    }

    /// Whether all of the other's ids are among these.
    pub(super) fn cover(self, other: Ids) -> bool {
        self.from <= other.from && other.to <= self.to
    }

    /// Whether some of the other's ids are among these.
    pub(super) fn meet(self, other: Ids) -> bool {
        self.from < other.to && other.from < self.to
    }
}

impl Day {
    /// The day of a time in seconds since the Unix epoch.
    pub(super) fn of(seconds: i64) -> Self {
        Day(seconds.div_euclid(SECONDS))
    }

    /// So many days later.
    pub(super) fn plus(self, days: i64) -> Self {
        Day(self.0 + days)
    }

    /// When it ends, in seconds since the Unix epoch.
    pub(super) fn end_seconds(self) -> i64 {
        (self.0 + 1) * SECONDS
    }

    /// The name of its partition, for example `outbox_20261121`.
    pub(super) fn partition(self) -> String {
        let (year, month, day) = self.civil();
        format!("{BEFORE}{year:04}{month:02}{day:02}")
    }

    /// The day of a partition that we made; `None` for every other table.
    pub(super) fn of_partition(name: &str) -> Option<Self> {
        let digits = name.strip_prefix(BEFORE).filter(|digits| digits.len() == 8)?;
        let part = |range: std::ops::Range<usize>| digits.get(range)?.parse::<i64>().ok();
        let (year, month, day) = (part(0..4)?, part(4..6)?, part(6..8)?);
        // Days from the civil date, from the first of March on, so that the leap day is the last.
        let shifted = if month > 2 { year } else { year - 1 };
        let month_from_march = (month + 9).rem_euclid(12);
        let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
        let leap_days = shifted.div_euclid(4) - shifted.div_euclid(100) + shifted.div_euclid(400);
        let found = Day(shifted * 365 + leap_days + day_of_year - 719_468);
        // A date that does not exist, such as February 30, would come back under another name.
        (found.partition() == name).then_some(found)
    }

    /// The ids of the day, and so of its partition.
    pub(super) fn ids(self) -> Ids {
        let first = |day: i64| u128::try_from(day * MILLISECONDS).unwrap_or_default() << 80;
        Ids { from: first(self.0), to: first(self.0 + 1) }
    }

    /// The smallest UUID v7 of the day, but for its version: the bound of its partition.
    pub(super) fn bound(self) -> String {
        let hex = format!("{:012x}", self.0 * MILLISECONDS);
        let (high, low) = hex.split_at(8);
        format!("{high}-{low}-0000-0000-000000000000")
    }

    /// Year, month and day, by Howard Hinnant's `civil_from_days`
    /// (<https://howardhinnant.github.io/date_algorithms.html>).
    fn civil(self) -> (i64, i64, i64) {
        let shifted = self.0 + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        (year_of_era + era * 400 + i64::from(month <= 2), month, day)
    }
}

#[cfg(test)]
mod tests {
    use super::{Day, Ids};

    #[test]
    fn a_day_has_the_name_of_its_date_and_the_bound_of_its_first_millisecond() {
        for (seconds, name, bound) in [
            (0, "outbox_19700101", "00000000-0000-0000-0000-000000000000"),
            (951_868_799, "outbox_20000229", "00dd9aa6-e000-0000-0000-000000000000"),
            (1_795_219_199, "outbox_20261120", "01a1f640-bc00-0000-0000-000000000000"),
            (1_795_219_200, "outbox_20261121", "01a1fb67-1800-0000-0000-000000000000"),
        ] {
            let day = Day::of(seconds);

            assert_eq!(day.partition(), name);
            assert_eq!(Day::of_partition(name), Some(day));
            assert_eq!(day.bound(), bound);
            let bounds = format!("FOR VALUES FROM ('{bound}') TO ('{}')", day.plus(1).bound());
            assert_eq!(Ids::of_bounds(&bounds), Some(day.ids()));
        }
    }

    #[test]
    fn every_day_of_four_centuries_comes_back_from_its_name() {
        for number in 0..146_097 {
            let day = Day(number);

            assert_eq!(Day::of_partition(&day.partition()), Some(day));
        }
    }

    #[test]
    fn bounds_are_read_as_postgres_writes_them() {
        let day = Day::of(0).ids();
        let next = Day::of(86_400).ids();
        let all = Ids::of_bounds("FOR VALUES FROM (MINVALUE) TO (MAXVALUE)").unwrap();

        assert!(all.cover(day) && all.meet(day) && day.cover(day));
        assert!(!day.cover(all) && day.meet(all));
        assert!(!day.cover(next) && !day.meet(next));
        for other in ["DEFAULT", "", "FOR VALUES FROM ('x') TO ('y')", "FOR VALUES IN ('x')"] {
            assert_eq!(Ids::of_bounds(other), None, "{other}");
        }
    }

    #[test]
    fn a_table_with_another_name_is_not_ours() {
        for name in [
            "outbox_default",
            "outbox_20260230",
            "outbox_2026112",
            "mine_20261121",
            "outbox_+0261121",
        ] {
            assert_eq!(Day::of_partition(name), None, "{name}");
        }
    }
}
