//! How an event becomes the payload of a message.

use serde::Serialize;

/// An error of whatever kind, as codecs give it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Turns values of type `T` into payloads.
pub trait Codec<T: ?Sized> {
    /// The media type of the payloads.
    const CONTENT_TYPE: &'static str;

    /// The payload of a value.
    ///
    /// # Errors
    ///
    /// Whatever keeps the value from being encoded. The text must not show the value.
    fn encode(value: &T) -> Result<Vec<u8>, BoxError>;
}

/// JSON by serde, the default.
#[derive(Clone, Copy, Debug)]
pub enum Json {}

impl<T: Serialize + ?Sized> Codec<T> for Json {
    const CONTENT_TYPE: &'static str = "application/json";

    fn encode(value: &T) -> Result<Vec<u8>, BoxError> {
        Ok(serde_json::to_vec(value)?)
    }
}

/// Protocol Buffers by prost: the bare message, without a registry's header.
#[cfg(feature = "protobuf")]
#[derive(Clone, Copy, Debug)]
pub enum Protobuf {}

#[cfg(feature = "protobuf")]
impl<T: prost::Message> Codec<T> for Protobuf {
    const CONTENT_TYPE: &'static str = "application/protobuf";

    fn encode(value: &T) -> Result<Vec<u8>, BoxError> {
        Ok(value.encode_to_vec())
    }
}
