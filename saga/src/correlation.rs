//! What a command and its reply say of the saga that they belong to: the `ce_saga…` attributes of the wire contract.

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

use crate::error::{Error, Kind};

const ID: &str = "ce_sagaid";
const DEFINITION: &str = "ce_sagadefinition";
const STEP: &str = "ce_sagastep";
const OPERATION: &str = "ce_sagaoperation";
const EPOCH: &str = "ce_sagaepoch";
const REPLY_TO: &str = "ce_sagareplyto";
const DEADLINE: &str = "ce_sagadeadline";
const OUTCOME: &str = "ce_sagaoutcome";

/// One run of a saga. Made where the saga starts, and nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SagaId(Uuid);

impl SagaId {
    /// A new id, a UUID of version 7: of a saga that begins now.
    pub fn mint() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id with these bytes.
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// Its bytes.
    pub fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

impl fmt::Display for SagaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for SagaId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SagaId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Uuid::try_parse(&text).map(Self).map_err(de::Error::custom)
    }
}

/// How often the direction of a step has changed: from action to compensation, or by a person's retry. Attempts do not
/// raise it, so that the reply to any of them counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u32);

impl Epoch {
    /// The epoch in which a step begins.
    pub const FIRST: Self = Self(1);

    /// The epoch with this number.
    pub fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    pub fn get(self) -> u32 {
        self.0
    }

    pub(crate) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is to be done with the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Do it.
    Action,
    /// Undo it.
    Compensation,
}

impl Operation {
    /// As it stands in records and rows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Action => "action",
            Self::Compensation => "compensation",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Action, Self::Compensation].into_iter().find(|operation| operation.as_str() == text)
    }
}

/// How a participant has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The effect is there.
    Done,
    /// The business rules forbid it; nothing was changed.
    Refused,
    /// The step was compensated before its action came; the action will never run.
    Blocked,
}

impl Answer {
    /// As it stands in records and rows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Blocked => "blocked",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Done, Self::Refused, Self::Blocked]
            .into_iter()
            .find(|answer| answer.as_str() == text)
    }
}

/// Which operation of which saga a record is about. It is the same on a command and on its reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Correlation {
    /// The saga.
    pub saga: SagaId,
    /// The name of its definition and its version, as `create-order/4`.
    pub definition: Box<str>,
    /// The step, by its name.
    pub step: Box<str>,
    /// What is to be done, or was.
    pub operation: Operation,
    /// The direction's number: an answer to an older one is never applied.
    pub epoch: Epoch,
}

/// What a command says beside its payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// Which operation is asked for.
    pub correlation: Correlation,
    /// The topic for the reply.
    pub reply_to: Box<str>,
    /// Until when an action may begin; on nothing but actions before the pivot.
    pub deadline: Option<SystemTime>,
}

impl Correlation {
    /// What the record of a command or a reply says, by the headers that `header` finds; `None` where it is neither.
    ///
    /// # Errors
    /// [`Kind::Record`] where an attribute is missing or says nothing that is known.
    pub fn read<'a>(header: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Option<Self>, Error> {
        if header(ID).is_none() {
            return Ok(None);
        }
        let saga = required(&header, ID, |text| Uuid::try_parse(text).ok().map(SagaId))?;
        Ok(Some(Self {
            saga,
            definition: required(&header, DEFINITION, |text| Some(text.into()))?,
            step: required(&header, STEP, |text| Some(text.into()))?,
            operation: required(&header, OPERATION, Operation::parse)?,
            epoch: required(&header, EPOCH, |text| text.parse().ok().map(Epoch))?,
        }))
    }

    /// The attributes of the reply.
    pub fn reply_attributes(&self, answer: Answer) -> Vec<(&'static str, String)> {
        let mut attributes = self.attributes();
        attributes.push((OUTCOME, answer.as_str().to_owned()));
        attributes
    }

    fn attributes(&self) -> Vec<(&'static str, String)> {
        vec![
            (ID, self.saga.to_string()),
            (DEFINITION, self.definition.to_string()),
            (STEP, self.step.to_string()),
            (OPERATION, self.operation.as_str().to_owned()),
            (EPOCH, self.epoch.to_string()),
        ]
    }
}

impl Answer {
    /// How the reply with these headers has answered.
    ///
    /// # Errors
    /// [`Kind::Record`] where it does not say so.
    pub fn read<'a>(header: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Self, Error> {
        required(&header, OUTCOME, Self::parse)
    }
}

impl Instruction {
    /// What the record of a command says, as [`Correlation::read`].
    ///
    /// # Errors
    /// [`Kind::Record`] where an attribute is missing or says nothing that is known.
    pub fn read<'a>(header: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Option<Self>, Error> {
        let Some(correlation) = Correlation::read(&header)? else { return Ok(None) };
        let deadline = match header(DEADLINE) {
            None => None,
            Some(_) => {
                Some(required(&header, DEADLINE, |text| humantime::parse_rfc3339(text).ok())?)
            }
        };
        let reply_to = required(&header, REPLY_TO, |text| Some(text.into()))?;
        Ok(Some(Self { correlation, reply_to, deadline }))
    }

    /// The attributes of the command.
    pub fn attributes(&self) -> Vec<(&'static str, String)> {
        let mut attributes = self.correlation.attributes();
        attributes.push((REPLY_TO, self.reply_to.to_string()));
        if let Some(deadline) = self.deadline {
            attributes.push((DEADLINE, humantime::format_rfc3339_micros(deadline).to_string()));
        }
        attributes
    }
}

fn required<'a, T>(
    header: impl Fn(&str) -> Option<&'a [u8]>,
    name: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, Error> {
    let Some(value) = header(name) else {
        return Err(Error::new(Kind::Record, format!("the header {name} is missing")));
    };
    let text = str::from_utf8(value).map_err(|error| {
        Error::new(Kind::Record, format!("the header {name} is not UTF-8")).caused_by(error)
    })?;
    match parse(text) {
        Some(value) if !text.is_empty() => Ok(value),
        _ => Err(Error::new(Kind::Record, format!("the header {name} says nothing that is known"))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn correlation() -> Correlation {
        Correlation {
            saga: SagaId::from_uuid(Uuid::from_u128(7)),
            definition: "create-order/4".into(),
            step: "reserve-credit".into(),
            operation: Operation::Compensation,
            epoch: Epoch::new(2),
        }
    }

    fn header<'a>(attributes: &'a [(&'static str, String)], name: &str) -> Option<&'a [u8]> {
        attributes.iter().find(|(given, _)| *given == name).map(|(_, value)| value.as_bytes())
    }

    #[test]
    fn a_command_and_a_reply_are_read_as_they_were_written() {
        let deadline = Some(UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456));
        let instruction =
            Instruction { correlation: correlation(), reply_to: "replies".into(), deadline };

        let command = instruction.attributes();
        let reply = correlation().reply_attributes(Answer::Refused);

        let read = Instruction::read(|name| header(&command, name)).unwrap();
        assert_eq!(read, Some(instruction));
        let read = Correlation::read(|name| header(&reply, name)).unwrap();
        assert_eq!(read, Some(correlation()));
        assert_eq!(Answer::read(|name| header(&reply, name)).unwrap(), Answer::Refused);
    }

    #[test]
    fn a_command_is_written_as_the_wire_contract_has_it() {
        let instruction = Instruction {
            correlation: correlation(),
            reply_to: "replies".into(),
            deadline: Some(UNIX_EPOCH),
        };

        let expected = [
            ("ce_sagaid", "00000000-0000-0000-0000-000000000007"),
            ("ce_sagadefinition", "create-order/4"),
            ("ce_sagastep", "reserve-credit"),
            ("ce_sagaoperation", "compensation"),
            ("ce_sagaepoch", "2"),
            ("ce_sagareplyto", "replies"),
            ("ce_sagadeadline", "1970-01-01T00:00:00.000000Z"),
        ];
        assert_eq!(
            instruction.attributes(),
            expected.map(|(name, value)| (name, value.to_owned()))
        );
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        assert_eq!(Correlation::read(|_| None).unwrap(), None);

        let good = correlation().reply_attributes(Answer::Done);
        for (name, value) in
            [(ID, "7"), (OPERATION, "undo"), (EPOCH, "-1"), (DEFINITION, ""), (OUTCOME, "yes")]
        {
            let read = |given: &str| match given == name {
                true => Some(value.as_bytes()),
                false => header(&good, given),
            };
            let error = match Correlation::read(read) {
                Err(error) => error,
                Ok(_) => Answer::read(read).unwrap_err(),
            };
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
