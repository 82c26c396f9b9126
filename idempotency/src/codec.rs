//! How a record's value becomes what a handler takes.

use std::fmt;

use serde::de::DeserializeOwned;

use crate::error::BoxError;

/// Reads payloads of type `E`.
pub trait Codec<E>: Send + Sync + 'static {
    /// The payload of a record; `None` is a tombstone.
    ///
    /// # Errors
    /// Whatever keeps it from being read: the message becomes a dead letter with this text, which must not repeat
    /// the payload and completes a sentence that begins with `the payload`.
    fn decode(&self, payload: Option<&[u8]>) -> Result<E, BoxError>;
}

/// JSON by serde, the default. A tombstone reads as `null`, so that a handler of `Option<E>` sees it as `None`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Json;

impl<E: DeserializeOwned> Codec<E> for Json {
    fn decode(&self, payload: Option<&[u8]>) -> Result<E, BoxError> {
        serde_json::from_slice(payload.unwrap_or(b"null")).map_err(|error| NoJson(error).into())
    }
}

/// The decoder's own text repeats what it stumbled over, so only its class and place are told.
#[derive(Debug)]
struct NoJson(serde_json::Error);

impl fmt::Display for NoJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = match self.0.classify() {
            serde_json::error::Category::Syntax | serde_json::error::Category::Eof => "is not JSON",
            serde_json::error::Category::Data | serde_json::error::Category::Io => {
                "does not fit the handler's type"
            }
        };
        write!(f, "{class} (line {}, column {})", self.0.line(), self.0.column())
    }
}

impl std::error::Error for NoJson {}

/// Protocol Buffers by prost: the bare message, without a registry's header. A tombstone does not decode.
#[cfg(feature = "protobuf")]
#[derive(Debug, Clone, Copy, Default)]
pub struct Protobuf;

#[cfg(feature = "protobuf")]
impl<E: prost::Message + Default> Codec<E> for Protobuf {
    fn decode(&self, payload: Option<&[u8]>) -> Result<E, BoxError> {
        let payload = payload.ok_or("is missing: a tombstone is no message of Protocol Buffers")?;
        E::decode(payload).map_err(|error| format!("is not what the handler takes: {error}").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(payload: &[u8]) -> String {
        let decoded: Result<Vec<u8>, _> = Json.decode(Some(payload));
        decoded.unwrap_err().to_string()
    }

    #[test]
    fn what_is_wrong_with_json_is_told_by_class_and_place_alone() {
        assert_eq!(refusal(br#"["secret"]"#), "does not fit the handler's type (line 1, column 9)");
        assert_eq!(refusal(b"secret"), "is not JSON (line 1, column 1)");
        assert_eq!(refusal(b"["), "is not JSON (line 1, column 1)");
    }

    #[test]
    fn a_tombstone_is_null_in_json() {
        let none: Option<u8> = Json.decode(None).unwrap();

        assert_eq!(none, None);
    }

    #[cfg(feature = "protobuf")]
    #[test]
    fn protocol_buffers_are_read_bare_and_a_tombstone_is_refused() {
        #[derive(PartialEq, prost::Message)]
        struct Placed {
            #[prost(uint64, tag = "1")]
            order: u64,
        }

        // Field 1 as a varint (https://protobuf.dev/programming-guides/encoding/).
        let placed: Placed = Protobuf.decode(Some(&[0x08, 0x07])).unwrap();
        let tombstone: Result<Placed, _> = Protobuf.decode(None);
        let bad: Result<Placed, _> = Protobuf.decode(Some(b"secret"));

        assert_eq!(placed, Placed { order: 7 });
        assert!(tombstone.unwrap_err().to_string().contains("tombstone"));
        assert!(!bad.unwrap_err().to_string().contains("secret"));
    }
}
