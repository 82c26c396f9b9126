//! The messages that are under way: none is ever forgotten, so each may come late, out of order and again.

use crate::correlation::{Answer, Epoch, Operation};

use super::hash::Map;

/// A command, or the reply to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Message {
    /// The place of the step.
    pub(super) step: usize,
    pub(super) operation: Operation,
    pub(super) epoch: Epoch,
    /// Of a reply.
    pub(super) answer: Option<Answer>,
    /// Of a command, where participants tell attempts apart; 0 where they do not.
    pub(super) attempt: u32,
}

/// Which messages are there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Set(u128);

impl Set {
    pub(super) fn with(self, number: u8) -> Self {
        Self(self.0 | 1 << number)
    }

    pub(super) fn without(self, number: u8) -> Self {
        Self(self.0 & !(1 << number))
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(super) fn without_all(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) fn has(self, number: u8) -> bool {
        self.0 & 1 << number != 0
    }

    pub(super) fn has_all(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = u8> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let number = u8::try_from(left.trailing_zeros()).ok().filter(|number| *number < 128)?;
            left &= left - 1;
            Some(number)
        })
    }
}

/// Every message that was ever seen in an exploration has a number.
#[derive(Debug, Default)]
pub(super) struct Messages {
    all: Vec<Message>,
    numbers: Map<Message, u8>,
}

/// There are more messages than the exploration can tell apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct TooMany;

impl Messages {
    pub(super) fn number(&mut self, message: Message) -> Result<u8, TooMany> {
        if let Some(number) = self.numbers.get(&message) {
            return Ok(*number);
        }
        let number = u8::try_from(self.all.len()).ok().filter(|number| *number < 128);
        let number = number.ok_or(TooMany)?;
        self.all.push(message);
        self.numbers.insert(message, number);
        Ok(number)
    }

    pub(super) fn get(&self, number: u8) -> Message {
        *self.all.get(usize::from(number)).expect("numbers are those of messages")
    }
}
