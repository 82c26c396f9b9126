use super::*;

pub(crate) const ID: &str = "019a9c6e-0000-7000-8000-000000000001";

/// A record of `orders` without headers.
pub(crate) fn delivery(offset: i64) -> Delivery {
    Delivery {
        position: Position { topic: "orders".into(), partition: 2, offset: Offset::new(offset) },
        timestamp: None,
        key: None,
        headers: Headers::default(),
        payload: Some(b"{}".to_vec()),
    }
}

pub(crate) fn with_headers(pairs: &[(&str, &str)]) -> Delivery {
    let mut delivery = delivery(7);
    for (name, value) in pairs {
        delivery.headers.push(name, Some(value.as_bytes()));
    }
    delivery
}
