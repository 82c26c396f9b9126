//! What can go wrong, and how it is made to.

use std::time::Duration;

use clap::ValueEnum;
use serde_json::json;
use tokio::time::sleep;

use crate::Failure;
use crate::settings::Troubles;
use crate::stage::{RELAYS, Stage};

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Trouble {
    /// Some orders are paid by a card that the provider declines.
    CardDeclined,
    /// Some orders want what is sold out.
    OutOfStock,
    /// Some orders go where the carrier does not.
    CarrierRefuses,
    /// The payment provider answers later than anybody waits.
    ProviderSlow,
    /// Every record is in its topic twice.
    Duplicates,
    /// The handler that credits points has a fault, and what it is told becomes dead letters.
    Poison,
    /// A relay is killed.
    RelayCrash,
    /// The payment service is killed in the middle of a transaction.
    PaymentsCrash,
    /// Postgres stands still.
    PostgresPaused,
    /// Kafka is away.
    KafkaStopped,
}

/// Later than anybody waits.
const SLOW_MS: u64 = 3_000;

impl Trouble {
    /// As the command line and the page call it.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|it| it.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether it is in the orders rather than in the machinery.
    pub(crate) fn is_of_orders(self) -> bool {
        matches!(self, Trouble::CardDeclined | Trouble::OutOfStock | Trouble::CarrierRefuses)
    }

    /// Whether it is nothing that can be switched off: what it kills is started again.
    pub(crate) fn is_over_at_once(self) -> bool {
        matches!(self, Trouble::RelayCrash | Trouble::PaymentsCrash)
    }

    /// How long it lasts where a program makes it.
    pub(crate) fn lasts(self) -> Duration {
        match self {
            Trouble::ProviderSlow => Duration::from_secs(4),
            Trouble::PostgresPaused | Trouble::KafkaStopped | Trouble::Poison => {
                Duration::from_secs(3)
            }
            _ => Duration::from_secs(1),
        }
    }
}

/// `all`, `none`, or names with commas between.
pub(crate) fn parse(text: &str) -> Result<Troubles, String> {
    let troubles = match text {
        "all" => Trouble::value_variants().to_vec(),
        "none" => Vec::new(),
        names => names.split(',').map(named).collect::<Result<_, _>>()?,
    };
    Ok(Troubles(troubles))
}

fn named(name: &str) -> Result<Trouble, String> {
    if ["all", "none"].contains(&name) {
        return Err(format!("{name:?} stands alone, and has no other names beside it"));
    }
    Trouble::from_str(name, true).map_err(|_| {
        let known: Vec<String> = Trouble::value_variants().iter().map(|it| it.name()).collect();
        format!("{name:?} is none of all, none, {}", known.join(", "))
    })
}

impl Stage {
    /// Switches a trouble on or off. What is over at once is only switched on.
    pub(crate) async fn trouble(&self, trouble: Trouble, on: bool) -> Result<(), Failure> {
        tracing::info!(trouble = trouble.name(), on, "trouble");
        match (trouble, on) {
            (Trouble::ProviderSlow, on) => self.slow_provider(if on { SLOW_MS } else { 0 }).await,
            (Trouble::Duplicates, on) => {
                self.repeater.switch(on);
                Ok(())
            }
            (Trouble::RelayCrash, true) => {
                for (relay, _) in RELAYS {
                    self.child(relay)?.kill()?;
                    sleep(Duration::from_millis(100)).await;
                }
                Ok(())
            }
            (Trouble::PaymentsCrash, true) => {
                // The control lane has no transaction that would be worth waiting for.
                self.child("control")?.kill()?;
                let url = format!("http://{}/failpoint", self.address("payments")?);
                self.client.post(url).send().await?.error_for_status()?;
                Ok(())
            }
            (Trouble::PostgresPaused, true) => Ok(self.stack.postgres().pause().await?),
            (Trouble::PostgresPaused, false) => Ok(self.stack.postgres().resume().await?),
            (Trouble::KafkaStopped, true) => Ok(self.stack.kafka().stop().await?),
            (Trouble::KafkaStopped, false) => Ok(self.stack.kafka().restart().await?),
            (Trouble::Poison, on) => {
                let url = format!("http://{}/points/fault", self.address("storefront")?);
                self.client.put(url).json(&on).send().await?.error_for_status()?;
                Ok(())
            }
            // They are in the orders that are placed.
            (Trouble::CardDeclined | Trouble::OutOfStock | Trouble::CarrierRefuses, _)
            | (Trouble::RelayCrash | Trouble::PaymentsCrash, false) => Ok(()),
        }
    }

    async fn slow_provider(&self, delay_ms: u64) -> Result<(), Failure> {
        let url = format!("http://{}/behaviour", self.address("provider")?);
        let behaviour = json!({ "delay_ms": delay_ms });
        self.client.put(url).json(&behaviour).send().await?.error_for_status()?;
        Ok(())
    }
}
