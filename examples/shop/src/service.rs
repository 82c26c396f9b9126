//! What all services have in common: a database, consumers, an HTTP server, and an orderly end.

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, Postgres};
use tailrace_idempotency::Config;
use tailrace_idempotency::metrics::SECONDS_BUCKETS;
use tailrace_saga::{Participant, choreography};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{interval, timeout};

use crate::Failure;
use crate::readiness::Readiness;
use crate::settings::{Name, Settings, Surroundings};
use crate::{set_aside, traces};

/// A server that was stopped or paused is back by then.
const START_MAX: Duration = Duration::from_secs(120);
/// What is under way when the service is asked to stop has this long to end.
const DRAIN_MAX: Duration = Duration::from_secs(8);
const CONNECTIONS_MAX: u32 = 12;
/// Those that the first order would have to wait for.
const CONNECTIONS_MIN: u32 = 6;
/// A consumer that is killed is given up, and replaced, after this time.
const SESSION_MS: u32 = 6_000;

/// A service that is about to run.
pub(crate) struct Service {
    name: &'static str,
    pub(crate) surroundings: Surroundings,
    pub(crate) pool: PgPool,
    listen: std::net::SocketAddr,
    metrics: PrometheusHandle,
    readiness: Readiness,
    stop: watch::Receiver<bool>,
}

impl Service {
    /// Installs what every service has. To be called once in a process.
    pub(crate) fn open(name: Name, settings: &Settings) -> Result<Self, Failure> {
        let metrics = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
            .install_recorder()?;
        let surroundings = settings.surroundings.clone();
        let missing = surroundings.missing(Some(name));
        if !missing.is_empty() {
            let (name, missing) = (name.as_str(), missing.join(", "));
            return Err(format!("{name} does not run without {missing}: set them").into());
        }
        // Who needs none is not asked for any, and never opens it.
        let url = match surroundings.database_url.as_str() {
            "" => "postgres://localhost/none",
            url => url,
        };
        let pool = PgPoolOptions::new()
            .min_connections(CONNECTIONS_MIN)
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy(url)
            .map_err(|error| format!("DATABASE_URL is no URL of a Postgres: {error}"))?;
        let (stopping, stop) = watch::channel(false);
        tokio::spawn(async move {
            asked_to_stop().await;
            tracing::info!("asked to stop");
            // Nobody may listen any more.
            let _ = stopping.send(true);
            tokio::time::sleep(DRAIN_MAX).await;
            tracing::warn!("what is under way takes too long: it is left");
            std::process::exit(1);
        });
        Ok(Service {
            name: name.as_str(),
            surroundings,
            pool,
            listen: settings.http,
            metrics,
            readiness: Readiness::new(stop.clone()),
            stop,
        })
    }

    /// Makes the tables of the crates and of the service. They may be there.
    pub(crate) async fn prepare(&self, tables: &'static [&'static str]) -> Result<(), Failure> {
        let preparing = async {
            let mut conn = self.connection().await?;
            tailrace_idempotency::schema::install(&mut conn).await?;
            tailrace_saga::schema::install(&mut conn).await?;
            for tables in tables {
                sqlx::raw_sql(*tables).execute(&mut *conn).await?;
            }
            Ok(())
        };
        let late = || format!("Postgres does not answer within {START_MAX:?}: see DATABASE_URL");
        timeout(START_MAX, preparing).await.map_err(|_| late())?
    }

    /// A connection, as soon as Postgres lets anybody in.
    async fn connection(&self) -> Result<PoolConnection<Postgres>, Failure> {
        loop {
            match self.pool.acquire().await {
                // It is paused, or just being started.
                Err(sqlx::Error::PoolTimedOut) => {}
                acquired => return Ok(acquired?),
            }
        }
    }

    /// Waits until the relay keeps what is written: a message from before would vanish.
    pub(crate) async fn relay_is_ready(&self) -> Result<(), Failure> {
        let mut look = interval(Duration::from_millis(100));
        let waiting = async {
            loop {
                look.tick().await;
                match tailrace_outbox::check(&self.pool, &self.surroundings.slot).await {
                    Ok(()) => return Ok(()),
                    // A slot that is still to be made is the only fault that passes by itself.
                    Err(error) if error.is_setup() => {}
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let slot = &self.surroundings.slot;
        let late = || format!("the slot {slot} is not there within {START_MAX:?}: see its relay");
        timeout(START_MAX, waiting).await.map_err(|_| late())?
    }

    /// The configuration of one of its consumers.
    pub(crate) fn config(&self, name: &str) -> Config {
        self.projection_config(&format!("{}-{name}", self.name))
            .rebalance_deadline(Duration::from_secs(2))
            // What fails because something else is away is tried again soon, and for as long as it takes.
            .parked_wait(Duration::from_millis(200), Duration::from_secs(2))
            .attempts_max(1_000)
    }

    /// The configuration of a read model, whose name is that of a schema.
    pub(crate) fn projection_config(&self, name: &str) -> Config {
        Config::new(name, &self.surroundings.kafka_brokers, self.pool.clone())
            .health(self.readiness.of(name))
            .start_deadline(START_MAX)
            .shutdown_deadline(DRAIN_MAX / 2)
            .kafka_property("session.timeout.ms", SESSION_MS.to_string())
            .kafka_property("heartbeat.interval.ms", (SESSION_MS / 20).to_string())
    }

    /// Where it is asked for its own.
    pub(crate) fn own_url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// Resolves when the service is to stop.
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stop = self.stop.clone();
        async move {
            // The sender lives as long as the process.
            let _ = stop.wait_for(|stop| *stop).await;
        }
    }

    /// Runs what answers commands and what reacts to events, beside what [`serve`](Self::serve) adds.
    pub(crate) async fn run(
        &self,
        commands: Participant,
        events: choreography::Service,
    ) -> Result<(), Failure> {
        self.run_with((), commands, events, Router::new()).await
    }

    /// As [`run`](Self::run), with the state that the handlers share and with more routes.
    pub(crate) async fn run_with<S: Clone + Send + Sync + 'static>(
        &self,
        state: S,
        commands: Participant<S>,
        events: choreography::Service<S>,
        routes: Router,
    ) -> Result<(), Failure> {
        let of = |name: &str| self.config(name).state(state.clone());
        let (by_commands, by_events) = (of("on-commands"), of("by-events"));
        tokio::try_join!(
            async { Ok::<_, Failure>(Box::pin(commands.run(by_commands, self.stopped())).await?) },
            async { Ok(Box::pin(events.run(by_events, self.stopped())).await?) },
            self.serve(routes),
        )?;
        Ok(())
    }

    /// Serves these routes, `/livez`, `/readyz`, `/metrics` and what was set aside, until the service is to stop.
    pub(crate) async fn serve(&self, routes: Router) -> Result<(), Failure> {
        let metrics = self.metrics.clone();
        let routes = match self.surroundings.database_url.is_empty() {
            true => routes,
            false => routes.merge(set_aside::routes(self.pool.clone())),
        };
        let routes = routes
            .layer(axum::middleware::from_fn(traces::of_request))
            .merge(self.readiness.routes())
            .route("/metrics", get(async move || metrics.render()));
        let (name, address) = (self.name, self.listen);
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| format!("{name} cannot listen on {address}: {error}"))?;
        tracing::info!(address = %self.listen, "listening");
        let serving = axum::serve(listener, routes).with_graceful_shutdown(self.stopped());
        let stopped = self.stopped();
        tokio::select! {
            served = serving => Ok(served?),
            // A feed never ends by itself.
            () = async { stopped.await; tokio::time::sleep(DRAIN_MAX / 4).await } => Ok(()),
        }
    }
}

/// Resolves at SIGTERM and at Ctrl-C.
pub(crate) async fn asked_to_stop() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
