//! The form of what a relay saves beside its records: JSON with a version in it.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind};

/// Version of the entries' format. A newer one is refused.
pub(crate) const VERSION: u32 = 1;

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// The bytes of an entry.
pub(crate) fn encode(entry: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(entry).expect("an entry of numbers and strings is valid json")
}

/// Reads an entry of [`VERSION`].
pub(crate) fn decode<T: DeserializeOwned>(value: &[u8]) -> Result<T, Error> {
    let unreadable = |error| malformed("is not readable", error);
    // The version first: a later format may lack what this one demands.
    let Version { version } = serde_json::from_slice(value).map_err(unreadable)?;
    if version != VERSION {
        return Err(Error::new(
            Kind::Gap,
            format!("the checkpoint has version {version}, this relay knows {VERSION}"),
        )
        .hint("run the relay release that wrote it, or a newer one"));
    }
    serde_json::from_slice(value).map_err(unreadable)
}

/// Whether a later release may have written it.
pub(crate) fn is_of_later(value: &[u8]) -> bool {
    serde_json::from_slice(value).is_ok_and(|Version { version }| version > VERSION)
}

/// An entry that no relay wrote.
pub(crate) fn malformed(
    what: &str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::new(Kind::Gap, format!("the checkpoint {what}"))
        .hint("something else has written to the checkpoint topic: give each relay a topic of its own by --relay-id")
        .caused_by(error)
}
