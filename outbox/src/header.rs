//! Names of headers that carry a meaning of their own.

/// The conversation's first message id.
pub const CORRELATION_ID: &str = "ce_correlationid";

/// The id of the message that caused this one.
pub const CAUSATION_ID: &str = "ce_causationid";

/// W3C Trace Context: the span that wrote the message.
pub const TRACEPARENT: &str = "traceparent";

/// W3C Trace Context: what vendors add.
pub const TRACESTATE: &str = "tracestate";

/// The system attributes that a message takes over from its cause.
pub const OF_CAUSE: [&str; 4] = [CORRELATION_ID, CAUSATION_ID, TRACEPARENT, TRACESTATE];

/// What ties a message to the saga that it is a command or a reply of.
pub const OF_SAGA: [&str; 8] = [
    "ce_sagaid",
    "ce_sagadefinition",
    "ce_sagastep",
    "ce_sagaoperation",
    "ce_sagaepoch",
    "ce_sagareplyto",
    "ce_sagadeadline",
    "ce_sagaoutcome",
];

/// What the relay derives from the frame's own fields and from its position; as a system
/// attribute each would stand twice on the record.
const OF_RELAY: [&str; 8] = [
    "ce_specversion",
    "ce_id",
    "ce_type",
    "ce_source",
    "ce_time",
    "ce_subject",
    "ce_sequence",
    "ce_replay",
];

/// Whether a user header may not have this name.
///
/// Reserved are names that begin with `ce_`, and `traceparent`, `tracestate` and `content-type`,
/// in upper or lower case: consumers and tools read a meaning out of them.
pub fn is_reserved(name: &str) -> bool {
    let begins_with_ce =
        name.as_bytes().first_chunk::<3>().is_some_and(|head| head.eq_ignore_ascii_case(b"ce_"));
    begins_with_ce
        || [TRACEPARENT, TRACESTATE, "content-type"]
            .iter()
            .any(|reserved| name.eq_ignore_ascii_case(reserved))
}

/// Whether a system attribute may have this name: `traceparent`, `tracestate`, or `ce_` and
/// lower-case letters and digits, except what the relay writes itself (`ce_id`, `ce_sequence`, …).
pub fn is_attribute(name: &str) -> bool {
    let extension = |rest: &str| {
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    let named = name == TRACEPARENT
        || name == TRACESTATE
        || name.strip_prefix("ce_").is_some_and(extension);
    named && !OF_RELAY.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::{OF_CAUSE, OF_RELAY, OF_SAGA, is_attribute, is_reserved};

    #[test]
    fn reserved_names_are_known_in_any_case() {
        for reserved in ["ce_id", "CE_anything", "ce_", "Traceparent", "TRACESTATE", "Content-Type"]
        {
            assert!(is_reserved(reserved), "{reserved}");
        }
        for free in ["", "ce", "ce-id", "xce_id", "tenant", "traceparents", "content_type", "é"] {
            assert!(!is_reserved(free), "{free}");
        }
    }

    #[test]
    fn an_attribute_never_repeats_what_the_relay_writes() {
        for good in OF_CAUSE.into_iter().chain(OF_SAGA).chain(["ce_dataschema", "ce_x1"]) {
            assert!(is_attribute(good), "{good}");
        }
        for bad in OF_RELAY.into_iter().chain(["content-type", "ce_", "CE_x", "ce_a-b", "tenant"]) {
            assert!(!is_attribute(bad), "{bad}");
        }
    }
}
