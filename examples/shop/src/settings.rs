//! What the shop is told, by flags or by its environment.

use std::net::SocketAddr;

use clap::{Args, Parser, ValueEnum};

use crate::stage::trouble::{self, Trouble};

/// A shop that places orders by choreography and by orchestration, side by side
#[derive(Clone, Debug, Parser)]
#[command(name = "shop", version, about)]
pub(crate) struct Settings {
    /// Run one service alone, on servers that are there; without it everything is started
    #[arg(long, value_enum)]
    pub(crate) service: Option<Name>,
    /// Make the databases and topics of a shop on servers that are there, and end
    #[arg(long, conflicts_with_all = ["service", "headless"])]
    pub(crate) prepare: bool,
    /// Place orders under trouble, print what became of them, and end; 1 if the books do not add up
    #[arg(long, conflicts_with = "service")]
    pub(crate) headless: bool,
    /// With --headless: how many orders
    #[arg(
        long, requires = "headless",
        default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000),
    )]
    pub(crate) orders: u32,
    /// With --headless: decides what is ordered, and what goes wrong when
    #[arg(long, requires = "headless", default_value_t = 1)]
    pub(crate) seed: u64,
    /// With --headless: what goes wrong; `all`, `none`, or names with commas between
    #[arg(long, requires = "headless", default_value = "all", value_parser = trouble::parse)]
    pub(crate) trouble: Troubles,
    /// Plant a bug into every process: the books have to find it
    #[cfg(feature = "bugs")]
    #[arg(long, value_enum)]
    pub(crate) inject_bug: Option<crate::bug::Bug>,
    /// Where the page is
    #[arg(long, env = "SHOP_HTTP", default_value = "127.0.0.1:8080", value_parser = address)]
    pub(crate) http: SocketAddr,
    #[command(flatten)]
    pub(crate) surroundings: Surroundings,
}

/// Names are not looked up: one of them can stand for several addresses.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "an IP address and a port are needed, as in 127.0.0.1:8080".to_owned())
}

/// Several of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Troubles(pub(crate) Vec<Trouble>);

/// Where a service finds the others. Who starts everything says it to each of them.
#[derive(Args, Clone, Debug)]
pub(crate) struct Surroundings {
    /// The service's own database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, default_value = "")]
    pub(crate) database_url: String,
    /// Where Kafka is: host:port, with commas between several
    #[arg(long, env = "KAFKA_BROKERS", default_value = "")]
    pub(crate) kafka_brokers: String,
    /// The slot of the relay beside the service
    #[arg(long, env = "SHOP_SLOT", default_value = tailrace_outbox::DEFAULT_SLOT)]
    pub(crate) slot: String,
    /// Where the orders service takes orders
    #[arg(long, env = "SHOP_ORDERS_URL", default_value = "")]
    pub(crate) orders_url: String,
    /// Where the payments service answers
    #[arg(long, env = "SHOP_PAYMENTS_URL", default_value = "")]
    pub(crate) payments_url: String,
    /// Where the stock service answers
    #[arg(long, env = "SHOP_STOCK_URL", default_value = "")]
    pub(crate) stock_url: String,
    /// Where the shipping service answers
    #[arg(long, env = "SHOP_SHIPPING_URL", default_value = "")]
    pub(crate) shipping_url: String,
    /// Where the control lane takes orders
    #[arg(long, env = "SHOP_CONTROL_URL", default_value = "")]
    pub(crate) control_url: String,
    /// The control lane's second database
    #[arg(long, env = "SHOP_CONTROL_DATABASE_URL", hide_env_values = true, default_value = "")]
    pub(crate) control_database_url: String,
    /// Where payments are made
    #[arg(long, env = "SHOP_PROVIDER_URL", default_value = "")]
    pub(crate) provider_url: String,
    /// Where whoever started everything is asked for troubles, figures and books
    #[arg(long, env = "SHOP_STAGE_URL", default_value = "")]
    pub(crate) stage_url: String,
    /// How log lines are written, to standard error; RUST_LOG sets their level
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value = "text")]
    pub(crate) log_format: LogFormat,
}

impl Surroundings {
    /// The variables without which a service cannot run, and a shop cannot be prepared, and that say nothing.
    pub(crate) fn missing(&self, service: Option<Name>) -> Vec<&'static str> {
        let is = |name| service == Some(name);
        let needed = [
            ("DATABASE_URL", &self.database_url, !is(Name::Provider)),
            ("KAFKA_BROKERS", &self.kafka_brokers, !is(Name::Provider)),
            ("SHOP_ORDERS_URL", &self.orders_url, is(Name::Storefront)),
            ("SHOP_PROVIDER_URL", &self.provider_url, is(Name::Payments)),
            ("SHOP_CONTROL_DATABASE_URL", &self.control_database_url, is(Name::Control)),
        ];
        let missing =
            needed.into_iter().filter(|(_, said, is_needed)| *is_needed && said.is_empty());
        missing.map(|(name, ..)| name).collect()
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// The processes of the shop that are not relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Name {
    /// Takes orders; the engine of the orchestrated sagas lives in it.
    Orders,
    /// Takes money.
    Payments,
    /// Keeps the goods.
    Stock,
    /// Sends parcels.
    Shipping,
    /// The page and its read model.
    Storefront,
    /// The payment provider: somebody else's service, played by a stub.
    Provider,
    /// Payments without Tailrace.
    Control,
}

impl Name {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Name::Orders => "orders",
            Name::Payments => "payments",
            Name::Stock => "stock",
            Name::Shipping => "shipping",
            Name::Storefront => "storefront",
            Name::Provider => "provider",
            Name::Control => "control",
        }
    }
}
