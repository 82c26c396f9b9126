//! The processes of the shop.

pub(crate) mod control;
pub(crate) mod orders;
pub(crate) mod payments;
pub(crate) mod provider;
pub(crate) mod shipping;
pub(crate) mod stock;
pub(crate) mod storefront;

use crate::Failure;
use crate::service::Service;
use crate::settings::{Name, Settings};

/// Runs a service until it is told to stop.
pub(crate) async fn run(name: Name, settings: &Settings) -> Result<(), Failure> {
    let service = Service::open(name, settings)?;
    tracing::info!(service = name.as_str(), "starting");
    match name {
        Name::Orders => Box::pin(orders::run(service)).await,
        Name::Payments => Box::pin(payments::run(service)).await,
        Name::Stock => Box::pin(stock::run(service)).await,
        Name::Shipping => Box::pin(shipping::run(service)).await,
        Name::Storefront => Box::pin(storefront::run(service)).await,
        Name::Provider => Box::pin(provider::run(service)).await,
        Name::Control => Box::pin(control::run(service)).await,
    }
}
