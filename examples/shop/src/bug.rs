//! Bugs that are planted into every process, to show that the books find them. Only in builds with the feature `bugs`.

use clap::ValueEnum;

/// Says to a child which bug it has.
pub(crate) const VARIABLE: &str = "SHOP_BUG";

/// What can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bug {
    /// Consumers take every record for new.
    DedupeOff,
    /// Participants do whatever they are asked to, also again, and too late.
    BarrierOff,
    /// A relay that starts takes what was written before its checkpoint for published.
    RelayByMessageLsn,
}

impl Bug {
    /// As the command line calls it.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|it| it.get_name().to_owned()).unwrap_or_default()
    }

    fn plant(self) {
        match self {
            Bug::DedupeOff => tailrace_idempotency::faults::ignore_claims(),
            Bug::BarrierOff => tailrace_saga::faults::drop_barrier(),
            Bug::RelayByMessageLsn => tailrace_cdc_relay::faults::resume_by_message_lsn(),
        }
    }
}

/// Plants what this process was told, if anything.
pub(crate) fn plant() {
    let named = std::env::var(VARIABLE).ok();
    if let Some(bug) = named.and_then(|name| Bug::from_str(&name, true).ok()) {
        bug.plant();
    }
}
