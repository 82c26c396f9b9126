//! What an orchestrator asks of a participant.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A message that asks a participant for the action of a step.
///
/// The same message with [`Operation::Compensation`](crate::Operation::Compensation) asks for the action to be
/// undone: type, topic, key and payload are those of the action, so that both stay in one order, and the participant
/// needs no copy of what it was asked.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tailrace_saga::Command;
///
/// #[derive(Serialize, Deserialize)]
/// struct ReserveCredit {
///     customer: String,
///     cents: i64,
/// }
///
/// #[derive(Serialize, Deserialize)]
/// struct CreditReserved {
///     hold: i64,
/// }
///
/// #[derive(Serialize, Deserialize)]
/// struct CreditLimitExceeded {
///     missing_cents: i64,
/// }
///
/// impl Command for ReserveCredit {
///     const TYPE: &'static str = "credit.reserve.v1";
///     const TOPIC: &'static str = "customers.commands";
///     type Reply = CreditReserved;
///     type Refusal = CreditLimitExceeded;
///
///     fn target(&self) -> Option<String> {
///         Some(self.customer.clone())
///     }
/// }
/// ```
pub trait Command: Serialize + DeserializeOwned + Send + 'static {
    /// The message type, for example `credit.reserve.v1`.
    const TYPE: &'static str;

    /// The topic that the participant listens to.
    const TOPIC: &'static str;

    /// What the participant answers when it is done.
    type Reply: Serialize + DeserializeOwned + Send + 'static;

    /// What it answers when its business rules forbid the action; [`Irrefusable`] where none does.
    type Refusal: Serialize + DeserializeOwned + Send + 'static;

    /// The aggregate that the action changes: commands for one target are carried out in order. Default: the saga's id.
    fn target(&self) -> Option<String> {
        None
    }
}

/// A command whose participant can undo it. A step that is to be compensated takes no other.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use tailrace_saga::{Command, Compensable, Irrefusable};
/// # #[derive(Serialize, Deserialize)]
/// # struct AllocateStock;
/// # impl Command for AllocateStock {
/// #     const TYPE: &'static str = "stock.allocate.v1";
/// #     const TOPIC: &'static str = "warehouse.commands";
/// #     type Reply = ();
/// #     type Refusal = Irrefusable;
/// # }
/// impl Compensable for AllocateStock {}
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be compensated",
    label = "nothing says that its participant can undo `{Self}`",
    note = "write `impl Compensable for {Self} {{}}` and give its participant an `undo`",
    note = "or say `.no_effect()` where there is nothing to undo, and `.pivot(…)` for the step behind which nothing is undone"
)]
pub trait Compensable: Command {}

/// The refusal of a command that cannot be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Irrefusable {}
