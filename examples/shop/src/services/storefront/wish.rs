//! What a customer asks for, and why nobody can be sold it.

use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::order::{Order, Style};

/// The most of one article, the highest price, and the longest text of an order.
const QUANTITY_MAX: i64 = 1_000;
const CENTS_MAX: i64 = 100_000_000;
const TEXT_BYTES_MAX: usize = 200;

/// What an order is, for those who send something else.
pub(super) const SHAPE: &str =
    "an order is a JSON object with a style, choreography or orchestration";

/// All but the style may be left out.
#[derive(Debug, Deserialize)]
pub(super) struct Wish {
    style: Style,
    #[serde(default = "tea")]
    sku: String,
    #[serde(default = "one")]
    quantity: i64,
    #[serde(default = "price")]
    pub(super) cents: i64,
    #[serde(default = "card")]
    card: String,
    #[serde(default = "address")]
    address: String,
}

fn tea() -> String {
    "tea".to_owned()
}

fn one() -> i64 {
    1
}

fn price() -> i64 {
    1_900
}

fn card() -> String {
    "card-4711".to_owned()
}

fn address() -> String {
    "Kiel".to_owned()
}

/// Whether a field may have a value.
type Rule = fn(&Value) -> bool;

/// What each field has to be, and how that is said.
const FIELDS: [(&str, Rule, &str); 6] = [
    ("style", is_style, "style is choreography or orchestration"),
    ("quantity", is_quantity, "quantity is a whole number from 1 to 1000"),
    ("cents", is_price, "cents is a whole number from 1 to 100000000"),
    ("sku", is_text, "sku is a text of 1 to 200 bytes without control characters"),
    ("card", is_text, "card is a text of 1 to 200 bytes without control characters"),
    ("address", is_text, "address is a text of 1 to 200 bytes without control characters"),
];

fn is_style(value: &Value) -> bool {
    Style::ALL.into_iter().any(|style| value.as_str() == Some(style.as_str()))
}

fn is_quantity(value: &Value) -> bool {
    value.as_i64().is_some_and(|quantity| (1..=QUANTITY_MAX).contains(&quantity))
}

fn is_price(value: &Value) -> bool {
    value.as_i64().is_some_and(|cents| (1..=CENTS_MAX).contains(&cents))
}

/// Postgres stores no NUL: an order that has one would be taken, and fail in each service that writes it down.
fn is_text(value: &Value) -> bool {
    value.as_str().is_some_and(|text| {
        (1..=TEXT_BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control)
    })
}

impl Wish {
    /// Reads one, or says what is wrong with it: by the name of a field, and never by what was in it.
    pub(super) fn read(asked: Value) -> Result<Self, &'static str> {
        let fields = asked.as_object().ok_or(SHAPE)?;
        if !fields.contains_key("style") {
            return Err(SHAPE);
        }
        for (name, is_right, rule) in FIELDS {
            if fields.get(name).is_some_and(|value| !is_right(value)) {
                return Err(rule);
            }
        }
        serde_json::from_value(asked).map_err(|_| SHAPE)
    }

    /// The key makes the order's id: a second click is the same order.
    pub(super) fn order(self, id: Uuid) -> Order {
        let Wish { style, sku, quantity, cents, card, address } = self;
        Order { id, style, sku, quantity, cents, card, address, reason: None }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(asked: Value, told: Option<&str>) {
        let said = Wish::read(asked.clone()).err();
        let is_so = match (said, told) {
            (None, None) => true,
            (Some(said), Some(told)) => said.starts_with(told),
            _ => false,
        };
        assert!(is_so, "{asked}: {said:?}");
    }

    #[test]
    fn what_is_wrong_with_a_wish_is_told_by_the_name_of_its_field() {
        check(json!({ "style": "choreography" }), None);
        check(json!({ "style": "orchestration", "sku": "Käse", "quantity": 1000 }), None);
        check(json!([]), Some("an order"));
        check(json!({ "sku": "tea" }), Some("an order"));
        check(json!({ "style": "Orchestration" }), Some("style"));
        for wrong in [json!(null), json!(7), json!(""), json!("a\u{0}b"), json!("a\nb")] {
            for name in ["sku", "card", "address"] {
                check(json!({ "style": "choreography", name: wrong.clone() }), Some(name));
            }
        }
        for wrong in [json!(null), json!(0), json!(-1), json!(1.5), json!("1"), json!(u64::MAX)] {
            for name in ["quantity", "cents"] {
                check(json!({ "style": "choreography", name: wrong.clone() }), Some(name));
            }
        }
        check(json!({ "style": "choreography", "sku": "x".repeat(201) }), Some("sku"));
    }
}
