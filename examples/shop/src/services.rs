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
        Name::Orders => orders::run(service).await,
        Name::Payments => payments::run(service).await,
        Name::Stock => stock::run(service).await,
        Name::Shipping => shipping::run(service).await,
        Name::Storefront => storefront::run(service).await,
        Name::Provider => provider::run(service).await,
        Name::Control => control::run(service).await,
    }
}
