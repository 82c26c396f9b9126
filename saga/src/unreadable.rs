//! JSON that is not what it should be, told without its values.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What could not be read or written, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreadable {
    pub(crate) what: String,
}

/// Reads JSON as a type of the user's.
pub(crate) fn read<T: DeserializeOwned>(what: &str, value: &Value) -> Result<T, Unreadable> {
    T::deserialize(value).map_err(|error| Unreadable::new(what, &error))
}

/// Writes a value of the user's as JSON.
pub(crate) fn write<T: Serialize>(what: &str, value: &T) -> Result<Value, Unreadable> {
    serde_json::to_value(value).map_err(|error| Unreadable::new(what, &error))
}

impl Unreadable {
    fn new(what: &str, error: &serde_json::Error) -> Self {
        Self { what: format!("{what}: {}", without_values(&error.to_string())) }
    }
}

/// What serde says, without the value that it found: payloads are in no error text.
fn without_values(text: &str) -> &str {
    if text.starts_with("missing field") || text.starts_with("duplicate field") {
        return text;
    }
    text.rfind("expected ").map_or("it is not of its type", |at| text.get(at..).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Order {
        #[expect(dead_code, reason = "only whether it can be read matters")]
        cents: u32,
    }

    #[test]
    fn what_can_not_be_read_is_named_without_its_value() {
        let missing = read::<Order>("the data", &json!({})).unwrap_err();
        let wrong = read::<Order>("the data", &json!({ "cents": "secret" })).unwrap_err();
        let custom = read::<crate::SagaId>("the data", &json!("secret")).unwrap_err();

        assert_eq!(missing.what, "the data: missing field `cents`");
        assert_eq!(wrong.what, "the data: expected u32");
        assert!(!custom.what.contains("secret"), "{}", custom.what);
    }
}
