//! Kafka's rule for the name of a topic.

use crate::Error;

/// The longest name of a topic, in bytes.
///
/// Kafka makes folders named after topics, and leaves room for its own suffixes.
pub const NAME_BYTES_MAX: usize = 249;

/// Whether a topic of this name can exist.
///
/// 1 to 249 bytes of ASCII letters, digits, `.`, `_` and `-`, neither `.` nor `..`, and none of
/// the topics that Kafka keeps for itself (`org.apache.kafka.common.internals.Topic` in Kafka).
///
/// # Errors
///
/// [`Kind::Invalid`](crate::Kind::Invalid), which names the topic unless it is too long.
pub fn validate(name: &str) -> Result<(), Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match name {
        "" => Err(Error::invalid("the topic is empty")),
        "." | ".." => Err(Error::invalid(format!("topic {name:?} can not exist in Kafka"))),
        "__consumer_offsets" | "__transaction_state" => {
            Err(Error::invalid(format!("topic {name:?} belongs to Kafka itself")))
        }
        _ if name.len() > NAME_BYTES_MAX => Err(Error::invalid(format!(
            "the topic has {} bytes, and Kafka takes {NAME_BYTES_MAX}",
            name.len()
        ))),
        _ if !name.bytes().all(allowed) => Err(Error::invalid(format!(
            "topic {name:?} can not exist in Kafka: it takes letters, digits, '.', '_' and '-'"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{NAME_BYTES_MAX, validate};

    #[test]
    fn a_name_is_judged_as_kafka_judges_it() {
        let longest = "a".repeat(NAME_BYTES_MAX);
        let too_long = "a".repeat(NAME_BYTES_MAX + 1);

        for good in ["orders", "A.b_c-9", "...", "-", longest.as_str()] {
            assert!(validate(good).is_ok(), "{good}");
        }
        for bad in
            ["", ".", "..", "__consumer_offsets", "a b", "a/b", "bücher", "a\0", too_long.as_str()]
        {
            let error = validate(bad).unwrap_err();
            assert!(error.is_invalid(), "{bad}: {error}");
        }
    }
}
