//! Values as people write and read them.

use std::time::Duration;

use tailrace_idempotency::inbox::State;

use super::Bytes;

/// Longer texts end here in a table.
const CELL_MAX: usize = 40;

pub(super) fn state(text: &str) -> Result<State, String> {
    State::named(text)
        .ok_or_else(|| "one of queued, waiting, calling, stuck, discard, dead".to_owned())
}

pub(super) fn bytes(text: &str) -> Result<Bytes, String> {
    let fault = || "an even number of hexadecimal digits".to_owned();
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return Err(fault());
    }
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    let pairs = digits.ok_or_else(fault)?;
    let byte = |pair: &[u32]| match *pair {
        [high, low] => u8::try_from(high * 16 + low).unwrap_or_default(),
        _ => 0,
    };
    Ok(Bytes(pairs.chunks(2).map(byte).collect()))
}

/// Text if it is one that a terminal takes, else hexadecimal digits.
pub(super) fn readable(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("0x{}", hex(bytes)),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As much as fits into a cell.
pub(super) fn short(text: &str) -> String {
    let mut chars = text.chars();
    let head: String = chars.by_ref().take(CELL_MAX).collect();
    if chars.next().is_some() { head + "…" } else { head }
}

/// The two largest units.
pub(super) fn age(age: Duration) -> String {
    let whole = Duration::from_secs(age.as_secs());
    let text = humantime::format_duration(whole).to_string();
    text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

pub(super) fn bytes_of(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..1_048_576 => format!("{} kB", count / 1024),
        _ => format!("{} MB", count / 1_048_576),
    }
}
