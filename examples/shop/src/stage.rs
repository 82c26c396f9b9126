//! Whoever starts everything: servers, databases, topics, relays, services. Here it is also broken.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tailrace_stack::{Database, Needs, Stack};
use tokio::time::{interval, timeout};

use crate::Failure;
use crate::prepare::{self, DATABASES};
use crate::settings::{LogFormat, Name, Settings};

pub(crate) mod api;
mod child;
pub(crate) mod figures;
mod repeater;
pub(crate) mod trouble;

use child::Child;
pub(crate) use repeater::Repeater;

/// A process is ready by then.
const READY_MAX: Duration = Duration::from_secs(90);
/// Postgres may be paused for a while.
const ACQUIRE_MAX: Duration = Duration::from_secs(60);
/// The argument that makes this program the sidecar.
pub(crate) const SIDECAR: &str = "cdc-relay";

/// A database of the shop, as the stage sees it from outside.
pub(crate) struct Home {
    pub(crate) pool: PgPool,
    database: Database,
}

/// All of the shop.
pub(crate) struct Stage {
    pub(crate) homes: BTreeMap<&'static str, Home>,
    pub(crate) addresses: BTreeMap<&'static str, SocketAddr>,
    pub(crate) client: reqwest::Client,
    pub(crate) repeater: Repeater,
    /// In the order of their start.
    children: Vec<(&'static str, Child)>,
    brokers: String,
    log_format: LogFormat,
    /// What is planted into each process, as its environment says it.
    bug: Option<(&'static str, String)>,
    /// After the processes: fields are dropped in this order.
    pub(crate) stack: Stack,
}

/// Has this process end when its standard input does, if it was started by a stage: it never outlives it.
pub(crate) fn end_with_the_parent() {
    if std::env::var_os(child::CHILD).is_some() {
        std::thread::spawn(|| {
            // Whether it ends or breaks, the parent is gone.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            std::process::exit(1);
        });
    }
}

/// What is told of each thing that was started.
type Tell<'t> = &'t (dyn Fn(String) + Send + Sync);

impl Stage {
    /// Starts everything, and answers when orders can be placed.
    pub(crate) async fn start(settings: &Settings, tell: Tell<'_>) -> Result<Arc<Self>, Failure> {
        // A port that is taken is told before anybody has waited for anything.
        let addresses = addresses(settings)?;
        let stack = Stack::start(Needs::BOTH.breakable()).await?;
        tell(format!("postgres    port {}", stack.postgres().port()));
        tell(format!("kafka       {}", stack.kafka().brokers()));
        let homes = homes(&stack).await?;
        let brokers = stack.kafka().brokers().to_owned();
        prepare::topics(&brokers).await?;
        let mut stage = Stage {
            homes,
            addresses,
            client: reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?,
            repeater: Repeater::start(&brokers, prepare::topic_names()?)?,
            children: Vec::new(),
            brokers,
            log_format: settings.surroundings.log_format,
            bug: bug(settings),
            stack,
        };
        for (relay, service) in RELAYS {
            stage.start_relay(relay, service.as_str())?;
        }
        for service in SERVICES {
            stage.start_service(service)?;
        }
        stage.all_ready(tell).await?;
        Ok(Arc::new(stage))
    }

    fn start_relay(&mut self, name: &'static str, service: &'static str) -> Result<(), Failure> {
        let address = self.address(name)?.to_string();
        let url = self.home(service)?.database.url().to_owned();
        let arguments = [SIDECAR, "run", "--slot", name, "--relay-id", name, "--http", &address];
        let environment = [("DATABASE_URL", url), ("KAFKA_BROKERS", self.brokers.clone())];
        self.start_child(name, &arguments, &environment)
    }

    fn start_service(&mut self, service: Name) -> Result<(), Failure> {
        let name = service.as_str();
        let url_of = |name| Ok::<_, Failure>(format!("http://{}", self.address(name)?));
        let database = |name| Ok::<_, Failure>(self.home(name)?.database.url().to_owned());
        let mut environment = vec![
            ("KAFKA_BROKERS", self.brokers.clone()),
            ("SHOP_HTTP", self.address(name)?.to_string()),
            ("SHOP_SLOT", format!("{name}_relay")),
            ("SHOP_ORDERS_URL", url_of("orders")?),
            ("SHOP_PAYMENTS_URL", url_of("payments")?),
            ("SHOP_STOCK_URL", url_of("stock")?),
            ("SHOP_SHIPPING_URL", url_of("shipping")?),
            ("SHOP_CONTROL_URL", url_of("control")?),
            ("SHOP_PROVIDER_URL", url_of("provider")?),
            ("SHOP_STAGE_URL", url_of("stage")?),
            ("SHOP_CONTROL_DATABASE_URL", database("control_payments")?),
        ];
        if self.homes.contains_key(name) {
            environment.push(("DATABASE_URL", database(name)?));
        }
        self.start_child(name, &["--service", name], &environment)
    }

    fn start_child(
        &mut self,
        name: &'static str,
        arguments: &[&str],
        environment: &[(&str, String)],
    ) -> Result<(), Failure> {
        let format = if self.log_format == LogFormat::Json { "json" } else { "text" };
        let mut environment = environment.to_vec();
        environment.extend(self.bug.clone());
        let child = Child::start(name, arguments, &environment, format)?;
        self.children.push((name, child));
        Ok(())
    }

    async fn all_ready(&self, tell: Tell<'_>) -> Result<(), Failure> {
        for (name, child) in &self.children {
            let address = self.address(name)?;
            let serving = async {
                let mut look = interval(Duration::from_millis(50));
                let url = format!("http://{address}/readyz");
                while !self.client.get(&url).send().await.is_ok_and(|it| it.status().is_success()) {
                    look.tick().await;
                }
            };
            timeout(READY_MAX, serving).await.map_err(|_| {
                format!("{name} is not ready after {READY_MAX:?}; RUST_LOG=info says more")
            })?;
            tell(format!("{name:<16} {address:<21} process {}", child.pid()));
        }
        Ok(())
    }

    pub(crate) fn address(&self, name: &str) -> Result<SocketAddr, Failure> {
        let address = self.addresses.get(name).copied();
        address.ok_or_else(|| format!("{name} has no address").into())
    }

    pub(crate) fn home(&self, name: &str) -> Result<&Home, Failure> {
        self.homes.get(name).ok_or_else(|| format!("{name} has no database").into())
    }

    pub(crate) fn child(&self, name: &str) -> Result<&Child, Failure> {
        let found = self.children.iter().find(|(of, _)| *of == name);
        found.map(|(_, child)| child).ok_or_else(|| format!("there is no process {name}").into())
    }

    /// How often each process was started again, since it had died.
    pub(crate) fn restarts(&self) -> BTreeMap<&'static str, u64> {
        self.children.iter().map(|(name, child)| (*name, child.restarts())).collect()
    }

    /// Has all processes end in order, all at once: what is under way is continued after the next start.
    pub(crate) async fn stop(&self) {
        for (_, child) in self.children.iter().rev() {
            child.ask_to_stop();
        }
        for (_, child) in &self.children {
            child.ended().await;
        }
    }
}

/// A relay for each service that has an outbox.
pub(crate) const RELAYS: [(&str, Name); 4] = [
    ("orders_relay", Name::Orders),
    ("payments_relay", Name::Payments),
    ("stock_relay", Name::Stock),
    ("shipping_relay", Name::Shipping),
];

/// The provider first: others depend on it.
const SERVICES: [Name; 7] = [
    Name::Provider,
    Name::Orders,
    Name::Payments,
    Name::Stock,
    Name::Shipping,
    Name::Control,
    Name::Storefront,
];

#[cfg(feature = "bugs")]
fn bug(settings: &Settings) -> Option<(&'static str, String)> {
    settings.inject_bug.map(|bug| (crate::bug::VARIABLE, bug.name()))
}

#[cfg(not(feature = "bugs"))]
fn bug(_: &Settings) -> Option<(&'static str, String)> {
    None
}

async fn homes(stack: &Stack) -> Result<BTreeMap<&'static str, Home>, Failure> {
    let mut homes = BTreeMap::new();
    for name in DATABASES {
        let database = stack.postgres().fresh_database(name).await?;
        let options = PgPoolOptions::new().max_connections(2).acquire_timeout(ACQUIRE_MAX);
        homes.insert(name, Home { pool: options.connect_lazy(database.url())?, database });
    }
    Ok(homes)
}

/// A port for each process. The storefront's is the one that people are told.
fn addresses(settings: &Settings) -> Result<BTreeMap<&'static str, SocketAddr>, Failure> {
    let relays = RELAYS.iter().map(|(name, _)| *name);
    let names = relays.chain(SERVICES.map(Name::as_str)).chain(["stage"]);
    // All are held until each has its own.
    let mut held = Vec::new();
    let mut addresses = BTreeMap::new();
    for name in names {
        let is_page = name == Name::Storefront.as_str() && !settings.headless;
        let wanted = if is_page { settings.http } else { SocketAddr::from(([127, 0, 0, 1], 0)) };
        let listener = TcpListener::bind(wanted).map_err(|error| {
            format!("{wanted} cannot be listened on ({error}); --http takes another address")
        })?;
        addresses.insert(name, listener.local_addr()?);
        held.push(listener);
    }
    Ok(addresses)
}
