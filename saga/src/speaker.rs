//! Who speaks in a message: its source, which is looked at when a service starts and not with its first message.

use serde_json::Value;
use tailrace_outbox::Message;

use crate::transition::REPLY_TYPE;

/// What is wrong with the source of messages.
pub(crate) fn fault(source: &str) -> Option<String> {
    let message = Message::builder("replies", REPLY_TYPE).source(source).json(&Value::Null);
    message
        .build()
        .err()
        .map(|error| format!("the source {source:?} can stand in no message: {error}"))
}
