//! What the shop sells, and to whom: the payload of every message.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The topic on which the orders service says how orders stand.
pub(crate) const FACTS: &str = "orders.facts";
/// The message that says so; its payload is a [`Fact`].
pub(crate) const ORDER_CHANGED: &str = "order.changed.v1";

/// A card that the payment provider declines.
pub(crate) const DECLINED_CARD: &str = "card-declined";
/// An article of which there is nothing left.
pub(crate) const SOLD_OUT: &str = "moon-rock";
/// Where the carrier does not go.
pub(crate) const UNREACHABLE: &str = "Atlantis";

/// How an order is carried through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Style {
    /// Services react to each other's events.
    Choreography,
    /// The engine in the orders service asks one service after the other.
    Orchestration,
}

impl Style {
    pub(crate) const ALL: [Style; 2] = [Style::Choreography, Style::Orchestration];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Style::Choreography => "choreography",
            Style::Orchestration => "orchestration",
        }
    }
}

/// An order, as all services see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: Uuid,
    pub(crate) style: Style,
    pub(crate) sku: String,
    pub(crate) quantity: i64,
    pub(crate) cents: i64,
    /// What the provider knows the customer's card by.
    pub(crate) card: String,
    pub(crate) address: String,
    /// Why it is not carried out, once a service has refused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// How an order stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Placed,
    Completed,
    Rejected,
}

impl State {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            State::Placed => "placed",
            State::Completed => "completed",
            State::Rejected => "rejected",
        }
    }
}

/// What the orders service says of an order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Fact {
    pub(crate) order: Order,
    /// The saga that carries it through.
    pub(crate) saga: Uuid,
    pub(crate) state: State,
}
