//! What a saga has seen of a row, and acts upon later: the row may have changed meanwhile.
//!
//! Instead of a [`Lock`](crate::Lock), which keeps others out from the first step to the end, a saga can go by what it
//! saw and be refused where that is no longer so (the countermeasure "reread value": Richardson, Microservices Patterns,
//! chapter 4). That costs nothing while nobody else comes, holds nobody up, and works across all who change the row, sagas
//! or not. So prefer it where two seldom meet at one row, and where an order can be given up without harm; prefer a lock
//! where they meet often, since then everybody is undone again and again, where the saga works at several rows that have
//! to fit each other all the time, or where what it would have to undo is dear.

use serde::{Deserialize, Serialize};

/// A value as a saga saw it: a version, an amount, several of them. It stands in the saga's data and in the command of
/// the step that relies on it.
///
/// The participant reads the row again, in the transaction of its action and with the row locked, and refuses where it
/// is another one now. The saga decides by [`on_refused`](crate::StepNeedsCompensation::on_refused) what then: it is
/// undone, or asks again with a command that is made of what it knows now ([`OnRefused::Anew`](crate::OnRefused::Anew)).
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use tailrace_saga::{Command, Compensable, Saga};
/// use tailrace_saga::participant::Cx;
/// use tailrace_saga::{Changed, OnRefused, Seen};
///
/// #[derive(Serialize, Deserialize)]
/// struct Debit {
///     account: i64,
///     cents: i64,
///     balance: Seen<i64>,
/// }
/// # impl Command for Debit {
/// #     const TYPE: &'static str = "account.debit.v1";
/// #     const TOPIC: &'static str = "accounts.commands";
/// #     type Reply = ();
/// #     type Refusal = Changed<i64>;
/// # }
/// # impl Compensable for Debit {}
///
/// async fn debit(cx: Cx<'_>, command: Debit) -> Result<Result<(), Changed<i64>>, sqlx::Error> {
///     let now = sqlx::query_scalar("SELECT cents FROM account WHERE id = $1 FOR UPDATE")
///         .bind(command.account)
///         .fetch_one(&mut *cx.conn)
///         .await?;
///     if let Err(changed) = command.balance.reread(now) {
///         return Ok(Err(changed));
///     }
///     sqlx::query("UPDATE account SET cents = cents - $2 WHERE id = $1")
///         .bind(command.account)
///         .bind(command.cents)
///         .execute(cx.conn)
///         .await?;
///     Ok(Ok(()))
/// }
///
/// #[derive(Serialize, Deserialize)]
/// struct Transfer {
///     account: i64,
///     cents: i64,
///     balance: Seen<i64>,
/// }
///
/// let saga = Saga::<Transfer>::define("transfer", 1)
///     .step("debit", |transfer: &Transfer| Debit {
///         account: transfer.account,
///         cents: transfer.cents,
///         balance: transfer.balance,
///     })
///     .on_refused(|transfer, changed| {
///         transfer.balance = Seen::new(changed.now);
///         if changed.now >= transfer.cents { OnRefused::Anew } else { OnRefused::Abort }
///     })
///     .compensate()
///     .build()?;
/// # let _ = tailrace_saga::Participant::on("accounts.commands").handle(debit);
/// # Ok::<(), tailrace_saga::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seen<T>(T);

impl<T> Seen<T> {
    /// The saga saw this.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// What it saw.
    pub fn value(&self) -> &T {
        &self.0
    }
}

impl<T: PartialEq> Seen<T> {
    /// The value, if it is now as it was seen.
    ///
    /// # Errors
    /// What it is now. In an action or a local step, that is the refusal.
    pub fn reread(&self, now: T) -> Result<T, Changed<T>> {
        if self.0 == now { Ok(now) } else { Err(Changed { now }) }
    }
}

/// The refusal of a step whose saga saw another value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Changed<T> {
    /// What it is now.
    pub now: T,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_is_refused_where_it_is_not_as_it_was_seen() {
        let seen = Seen::new((7, "ada"));

        assert_eq!(seen.reread((7, "ada")), Ok((7, "ada")));
        assert_eq!(seen.reread((8, "ada")), Err(Changed { now: (8, "ada") }));
    }

    #[test]
    fn what_was_seen_is_written_as_the_value_itself() {
        assert_eq!(serde_json::to_value(Seen::new(7)).unwrap(), json!(7));
        assert_eq!(serde_json::from_value::<Seen<i64>>(json!(7)).unwrap(), Seen::new(7));
        assert_eq!(serde_json::to_value(Changed { now: 8 }).unwrap(), json!({ "now": 8 }));
    }
}
