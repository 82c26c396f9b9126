//! Durations and sizes as people write them: `5ms`, `8MiB`.

use std::time::Duration;

/// Unit and its length in microseconds; the longest that divides a value is shown.
const DURATIONS: [(&str, u64); 5] =
    [("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)];

/// Unit and its bytes; decimal units are read, binary ones are shown too.
const SIZES: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Reads a duration with its unit; zero needs none.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match read(text, &DURATIONS) {
        Some(micros) => Ok(Duration::from_micros(micros)),
        None => Err(format!("{text:?} is not a duration such as 5ms, 10s or 2m")),
    }
}

/// Reads a size with its unit; zero needs none.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    read(text, &SIZES)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| format!("{text:?} is not a size such as 512KiB or 8MiB"))
}

/// The size in the largest unit in which it has no fraction, or with one digit of it.
pub(crate) fn show_size(bytes: u64) -> String {
    let units = SIZES.iter().filter(|(unit, _)| unit.ends_with("iB"));
    let Some((unit, length)) = units.copied().find(|(_, length)| bytes >= *length) else {
        return format!("{bytes}B");
    };
    match (bytes % length) * 10 / length {
        0 => format!("{}{unit}", bytes / length),
        tenths => format!("{}.{tenths}{unit}", bytes / length),
    }
}

/// The duration in the unit that fits it.
pub(crate) fn show_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 86_400, seconds / 3_600, seconds / 60) {
        (0, 0, 0) if seconds == 0 => format!("{}ms", duration.as_millis()),
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {}m", minutes % 60),
        (days, hours, _) => format!("{days}d {}h", hours % 24),
    }
}

fn read(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    if text == "0" {
        return Some(0);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let unit = unit.trim_start();
    let (_, length) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    number.parse::<u64>().ok()?.checked_mul(*length)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{duration, show_duration, show_size, size};

    #[test]
    fn what_people_write_is_read() {
        for (text, micros) in [("5ms", 5_000), ("0", 0), ("1 s", 1_000_000), ("2M", 120_000_000)] {
            assert_eq!(duration(text), Ok(Duration::from_micros(micros)), "{text}");
        }
        for (text, bytes) in [("8MiB", 8 << 20), ("1kb", 1_000), ("12B", 12), ("0", 0)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for wrong in ["5", "", "ms", "-5ms", "1.5s", "5 parsecs", "99999999999999999h"] {
            assert!(duration(wrong).unwrap_err().contains(wrong), "{wrong}");
            assert!(size(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
    }

    #[test]
    fn what_is_shown_is_short() {
        for (bytes, text) in [(0, "0B"), (1023, "1023B"), (1536, "1.5KiB"), (8 << 20, "8MiB")] {
            assert_eq!(show_size(bytes), text);
        }
        for (millis, text) in [(7, "7ms"), (90_000, "1m 30s"), (90_000_000, "1d 1h")] {
            assert_eq!(show_duration(Duration::from_millis(millis)), text);
        }
    }
}
