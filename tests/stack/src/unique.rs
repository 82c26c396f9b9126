//! Names that no other test has.

use std::hash::{BuildHasher, Hasher, RandomState};

/// The longest name that Postgres keeps whole, for databases and for slots.
const LENGTH_MAX: usize = 63;

/// A name for one test's own database, topic, slot or group, such as `orders_1f3a9c07`.
///
/// Made of the given name's letters in lower case, its digits, and `_` for everything else, at
/// most 63 bytes, so that it fits every use. The last eight digits are random.
pub fn unique(name: &str) -> String {
    let suffix = format!("_{:08x}", random() >> 32);
    let mut unique: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .skip_while(|c| !c.is_ascii_lowercase())
        .take(LENGTH_MAX - suffix.len())
        .collect();
    if unique.is_empty() {
        unique.push('t');
    }
    unique + &suffix
}

/// Random bits from the keys that the standard library draws for its hash maps: enough for names
/// and for the passwords of servers that only listen on the loopback.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
