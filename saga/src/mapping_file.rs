//! A [`Mapping`](crate::Mapping) as data, for people who have no code at hand.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How sagas come from one definition to another, as a file has it.
///
/// ```
/// let file: tailrace_saga::MappingFile = serde_json::from_str(
///     r#"{
///         "from": "create-order/3",
///         "to": "create-order/4",
///         "skip": ["check-address"],
///         "data": [
///             { "set": "/currency", "to": "EUR" },
///             { "move": "/amount", "to": "/cents" },
///             { "remove": "/coupon" }
///         ]
///     }"#,
/// )?;
/// assert_eq!(file.to, "create-order/4");
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// Places are JSON pointers (RFC 6901) into objects. What becomes of the data otherwise is code:
/// [`Mapping::data`](crate::Mapping::data), and the upcasters of a definition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MappingFile {
    /// The definition that they follow, with its version.
    pub from: String,
    /// The definition under which they go on.
    pub to: String,
    /// Steps of the new definition that sagas go past which are further already.
    #[serde(default)]
    pub skip: Vec<String>,
    /// What becomes of the data, in this order.
    #[serde(default)]
    pub data: Vec<DataEdit>,
}

/// One change of a saga's data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum DataEdit {
    /// A value is put there, whatever was there before.
    Set {
        /// Where.
        set: String,
        /// The value.
        to: Value,
    },
    /// What is there is moved.
    Move {
        /// From where.
        r#move: String,
        /// To where.
        to: String,
    },
    /// What is there is removed, if there is something.
    Remove {
        /// Where.
        remove: String,
    },
}

impl MappingFile {
    /// The name and the version in such a text as `create-order/4`.
    pub fn identity(text: &str) -> Option<(&str, u32)> {
        let (name, version) = text.rsplit_once('/')?;
        Some((name, version.parse().ok()?)).filter(|(name, _)| !name.is_empty())
    }

    pub(crate) fn skipped(&self) -> BTreeSet<Box<str>> {
        self.skip.iter().map(|step| step.as_str().into()).collect()
    }

    /// The data as it is to be, or which edit does not fit it.
    pub(crate) fn apply(&self, mut data: Value) -> Result<Value, String> {
        for edit in &self.data {
            edit.apply(&mut data)?;
        }
        Ok(data)
    }
}

impl DataEdit {
    fn apply(&self, data: &mut Value) -> Result<(), String> {
        match self {
            Self::Set { set, to } => put(data, set, to.clone()),
            Self::Move { r#move, to } => {
                let moved =
                    take(data, r#move)?.ok_or_else(|| format!("there is no {move} in its data"))?;
                put(data, to, moved)
            }
            Self::Remove { remove } => take(data, remove).map(drop),
        }
    }
}

fn put(data: &mut Value, place: &str, value: Value) -> Result<(), String> {
    let (parent, name) = split(place)?;
    match data.pointer_mut(parent) {
        Some(Value::Object(object)) => {
            object.insert(name, value);
            Ok(())
        }
        _ => Err(format!("there is no object for {place} in its data")),
    }
}

fn take(data: &mut Value, place: &str) -> Result<Option<Value>, String> {
    let (parent, name) = split(place)?;
    Ok(match data.pointer_mut(parent) {
        Some(Value::Object(object)) => object.remove(&name),
        _ => None,
    })
}

/// The place of the object, and the name in it.
fn split(place: &str) -> Result<(&str, String), String> {
    let (parent, name) = place
        .rsplit_once('/')
        .ok_or_else(|| format!("{place} is no place: write it as /name or /object/name"))?;
    Ok((parent, name.replace("~1", "/").replace("~0", "~")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(edits: Value, expected: Result<Value, &str>) {
        let file: MappingFile =
            serde_json::from_value(json!({ "from": "a/1", "to": "a/2", "data": edits })).unwrap();

        let applied = file.apply(json!({ "amount": 5, "customer": { "name": "ada" } }));

        assert_eq!(applied, expected.map_err(str::to_owned));
    }

    #[test]
    fn data_is_edited_by_places_and_a_place_that_is_not_there_is_told() {
        check(
            json!([{ "move": "/amount", "to": "/cents" }, { "set": "/customer/vip", "to": true }]),
            Ok(json!({ "cents": 5, "customer": { "name": "ada", "vip": true } })),
        );
        check(
            json!([{ "remove": "/customer" }, { "remove": "/nothing" }]),
            Ok(json!({ "amount": 5 })),
        );
        check(json!([{ "move": "/cents", "to": "/x" }]), Err("there is no /cents in its data"));
        check(json!([{ "set": "/a/b", "to": 1 }]), Err("there is no object for /a/b in its data"));
        check(
            json!([{ "set": "cents", "to": 1 }]),
            Err("cents is no place: write it as /name or /object/name"),
        );
    }

    #[test]
    fn a_file_with_a_word_that_means_nothing_is_refused() {
        let wrong = json!({ "from": "a/1", "to": "a/2", "skips": ["b"] });

        assert!(serde_json::from_value::<MappingFile>(wrong).is_err());
        assert_eq!(MappingFile::identity("create-order/4"), Some(("create-order", 4)));
        assert_eq!(MappingFile::identity("create-order"), None);
    }
}
