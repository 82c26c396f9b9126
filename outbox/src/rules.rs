//! The rules a message keeps, whoever wrote it: the builder here, or SQL in another language.

use crate::frame::Parts;
use crate::{Error, header, topic};

/// The first rule that a message breaks, but for those of its headers and attributes.
pub(crate) fn parts(parts: &Parts<'_>) -> Result<(), Error> {
    topic::validate(parts.topic)?;
    attribute_text("type", parts.r#type)?;
    attribute_text("source", parts.source)?;
    if let Some(subject) = parts.subject {
        attribute_text("subject", subject)?;
    }
    attribute_text("content type", parts.content_type)?;
    // Two messages without an id would be one message to every consumer.
    if parts.id.is_nil() {
        return Err(Error::invalid("the id is nil"));
    }
    // A tombstone deletes what has its key; without one a compacted topic refuses the record.
    if parts.payload.is_none() && parts.key.is_none() {
        return Err(Error::invalid("a tombstone needs a key"));
    }
    Ok(())
}

/// The first rule that a user header breaks.
pub(crate) fn user_header(name: &str, value: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::invalid("a header has an empty name"));
    }
    if header::is_reserved(name) {
        return Err(Error::invalid(format!("header name {name:?} is reserved")).mended_by(
            "names that begin with ce_, and traceparent, tracestate and content-type, are taken",
        ));
    }
    // Postgres has no text with a NUL: such a header could be neither written by SQL nor parked.
    if name.contains('\0') || value.contains('\0') {
        return Err(Error::invalid(format!("header {name:?} contains a NUL")));
    }
    Ok(())
}

/// The first rule that a system attribute breaks.
pub(crate) fn attribute(name: &str, value: &str) -> Result<(), Error> {
    if !header::is_attribute(name) {
        return Err(Error::invalid(format!("{name:?} is not the name of a system attribute")));
    }
    attribute_text(name, value)
}

/// Whether a string attribute of a CloudEvent may have this value.
///
/// CloudEvents 1.0.2, "Type System" and "Context Attributes": it is not empty and contains no
/// control character.
pub(crate) fn is_attribute_text(value: &str) -> bool {
    !value.is_empty() && !value.chars().any(char::is_control)
}

fn attribute_text(name: &str, value: &str) -> Result<(), Error> {
    match value {
        "" => Err(Error::invalid(format!("the {name} is empty"))),
        _ if !is_attribute_text(value) => {
            Err(Error::invalid(format!("the {name} contains a control character")))
        }
        _ => Ok(()),
    }
}
