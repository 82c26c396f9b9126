//! Messages by type: what a service says, said once per type instead of once per call.

use crate::codec::{Codec, Json};
use crate::{Builder, Message};

/// A type whose values are published.
///
/// `C` is how they are encoded; JSON unless another [`Codec`] is named.
///
/// ```
/// use serde::Serialize;
/// use tailrace_outbox::{Event, Message};
///
/// #[derive(Serialize)]
/// struct OrderPlaced {
///     order: u64,
///     total_cents: i64,
/// }
///
/// impl Event for OrderPlaced {
///     const TYPE: &'static str = "order.placed.v1";
///     const TOPIC: &'static str = "orders";
///     const SOURCE: &'static str = "/orders";
///
///     fn key(&self) -> Option<String> {
///         Some(format!("order-{}", self.order))
///     }
/// }
///
/// let message = Message::of(&OrderPlaced { order: 42, total_cents: 1999 }).build()?;
///
/// assert_eq!(message.key(), Some(&b"order-42"[..]));
/// assert_eq!(message.content_type(), "application/json");
/// # Ok::<(), tailrace_outbox::Error>(())
/// ```
pub trait Event<C = Json> {
    /// What has happened, for example `order.placed.v1`.
    const TYPE: &'static str;

    /// The topic it is published to.
    const TOPIC: &'static str;

    /// The producing service as a URI reference, for example `/orders`.
    const SOURCE: &'static str;

    /// The key: events of one key stay in order. `None` gives the order up.
    ///
    /// A key that is no text goes to the builder: `Message::of(&event).key(bytes)`.
    fn key(&self) -> Option<String>;

    /// The aggregate it is about. Default: none.
    fn subject(&self) -> Option<String> {
        None
    }
}

impl Message {
    /// Begins the message of an event.
    ///
    /// Everything the type says is in the builder, and everything else can be added to it: a
    /// header, a cause, another topic by a [`Message::builder`] of its own.
    pub fn of<E, C>(event: &E) -> Builder
    where
        E: Event<C> + ?Sized,
        C: Codec<E>,
    {
        let mut builder =
            Message::builder(E::TOPIC, E::TYPE).source(E::SOURCE).encoded::<C, E>(event);
        if let Some(key) = event.key() {
            builder = builder.key(key);
        }
        match event.subject() {
            Some(subject) => builder.subject(subject),
            None => builder,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::{Serialize, Serializer};

    use super::Event;
    use crate::codec::{BoxError, Codec};
    use crate::{Message, header};

    #[derive(Serialize)]
    struct Placed {
        order: u64,
    }

    impl Event for Placed {
        const TYPE: &'static str = "order.placed.v1";
        const TOPIC: &'static str = "orders";
        const SOURCE: &'static str = "/orders";

        fn key(&self) -> Option<String> {
            Some(self.order.to_string())
        }

        fn subject(&self) -> Option<String> {
            Some(format!("order-{}", self.order))
        }
    }

    struct Text;

    impl Codec<str> for Text {
        const CONTENT_TYPE: &'static str = "text/plain";

        fn encode(value: &str) -> Result<Vec<u8>, BoxError> {
            match value {
                "" => Err("nothing to say".into()),
                _ => Ok(value.as_bytes().to_vec()),
            }
        }
    }

    impl Event<Text> for str {
        const TYPE: &'static str = "said";
        const TOPIC: &'static str = "talk";
        const SOURCE: &'static str = "/talk";

        fn key(&self) -> Option<String> {
            None
        }
    }

    #[test]
    fn what_the_type_says_is_in_the_message() {
        let message = Message::of(&Placed { order: 7 })
            .header("tenant", "acme")
            .caused_by([(header::CAUSATION_ID, "before")])
            .build()
            .unwrap();

        assert_eq!(message.topic(), "orders");
        assert_eq!(message.r#type(), "order.placed.v1");
        assert_eq!(message.source(), "/orders");
        assert_eq!(message.key(), Some(&b"7"[..]));
        assert_eq!(message.subject(), Some("order-7"));
        assert_eq!(message.content_type(), "application/json");
        assert_eq!(message.payload(), Some(&br#"{"order":7}"#[..]));
        assert_eq!(message.headers().next(), Some(("tenant", "acme")));
        assert_eq!(message.attributes().next(), Some((header::CAUSATION_ID, "before")));
    }

    #[test]
    fn a_codec_of_its_own_says_what_the_payload_is() {
        let message = Message::of("hello").build().unwrap();

        assert_eq!((message.key(), message.subject()), (None, None));
        assert_eq!(message.content_type(), "text/plain");
        assert_eq!(message.payload(), Some(&b"hello"[..]));
    }

    #[test]
    fn an_event_that_does_not_encode_is_an_error_of_build() {
        struct Unserializable;

        impl Serialize for Unserializable {
            fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("no"))
            }
        }

        impl Event for Unserializable {
            const TYPE: &'static str = "t";
            const TOPIC: &'static str = "t";
            const SOURCE: &'static str = "/t";

            fn key(&self) -> Option<String> {
                None
            }
        }

        for builder in [Message::of(""), Message::of(&Unserializable)] {
            let error = builder.build().unwrap_err();

            assert!(error.is_invalid(), "{error:?}");
            assert_eq!(error.to_string(), "the payload does not encode");
            assert!(std::error::Error::source(&error).is_some());
        }
    }

    #[cfg(feature = "protobuf")]
    #[test]
    fn a_protobuf_event_is_its_bare_bytes() {
        use crate::codec::Protobuf;

        #[derive(Clone, PartialEq, prost::Message)]
        struct Shipped {
            #[prost(uint64, tag = "1")]
            order: u64,
        }

        impl Event<Protobuf> for Shipped {
            const TYPE: &'static str = "order.shipped.v1";
            const TOPIC: &'static str = "orders";
            const SOURCE: &'static str = "/orders";

            fn key(&self) -> Option<String> {
                Some(self.order.to_string())
            }
        }

        let message = Message::of(&Shipped { order: 150 }).build().unwrap();

        assert_eq!(message.content_type(), "application/protobuf");
        // Field 1 as a varint (https://protobuf.dev/programming-guides/encoding/).
        assert_eq!(message.payload(), Some(&[0x08, 0x96, 0x01][..]));
    }
}
