//! What the services of the two saga examples stand on: a database each, with its relay, and the topics between them.

use std::time::Duration;

use sqlx::PgPool;
use tailrace_cdc_relay::Relay;
use tailrace_idempotency::{BoxError, Config};
use tailrace_stack::{Database, Needs, Stack};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What is waited for has come by then, or the example fails.
const WAIT_MAX: Duration = Duration::from_secs(60);

pub(crate) struct Site {
    /// Before the names of topics and groups, so that examples can share servers. A shop of its own needs none.
    pub(crate) prefix: String,
    running: JoinSet<Result<(), BoxError>>,
    stop: watch::Sender<()>,
    // The servers are the last to go.
    databases: Vec<Database>,
    stack: Stack,
}

impl Site {
    /// With these topics, which exist before anybody listens to them.
    pub(crate) async fn new(
        name: &str,
        topics: impl IntoIterator<Item = &str>,
    ) -> Result<Self, BoxError> {
        let stack = Stack::start(Needs::BOTH).await?;
        let prefix = stack.kafka().fresh_topics(name, topics, 1).await?;
        let (running, stop) = (JoinSet::new(), watch::Sender::new(()));
        Ok(Self { prefix, running, stop, databases: Vec::new(), stack })
    }

    /// A service's own database, and the relay that publishes what is written there.
    pub(crate) async fn database(
        &mut self,
        name: &str,
        tables: &'static str,
    ) -> Result<PgPool, BoxError> {
        let database = self.stack.postgres().fresh_database(name).await?;
        let pool = PgPool::connect(database.url()).await?;
        let mut conn = pool.acquire().await?;
        tailrace_idempotency::schema::install(&mut conn).await?;
        tailrace_saga::schema::install(&mut conn).await?;
        sqlx::raw_sql(tables).execute(&mut *conn).await?;

        let config = tailrace_cdc_relay::Config::new(database.url(), self.stack.kafka().brokers())
            .slot(database.name());
        let relay = Relay::new(config);
        self.start(relay.run_on_own_thread(self.stopped()));
        // What is written before there is a slot would not be published.
        let ready = async || Ok(tailrace_outbox::check(&pool, database.name()).await.ok());
        self.until(ready).await?;
        self.databases.push(database);
        Ok(pool)
    }

    /// The consumer of a service.
    pub(crate) fn config(&self, name: &str, pool: &PgPool) -> Config {
        let name = format!("{}{name}", self.prefix);
        Config::new(name, self.stack.kafka().brokers(), pool.clone())
    }

    /// Until when all of them run.
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stop = self.stop.subscribe();
        async move { stop.changed().await.unwrap_or_default() }
    }

    /// Runs a service, each of which would be a process of its own.
    pub(crate) fn start<T, E: Into<BoxError>>(
        &mut self,
        service: impl Future<Output = Result<T, E>> + Send + 'static,
    ) {
        self.running.spawn(async move { service.await.map(drop).map_err(Into::into) });
    }

    /// Asks until there is an answer. A service that ends meanwhile ends the example.
    pub(crate) async fn until<T>(
        &mut self,
        mut ask: impl AsyncFnMut() -> Result<Option<T>, BoxError>,
    ) -> Result<T, BoxError> {
        let asking = async {
            loop {
                if let Some(answer) = ask().await? {
                    return Ok(answer);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            answer = asking => answer,
            Some(ended) = self.running.join_next() => {
                ended??;
                Err("a service has ended".into())
            }
            () = tokio::time::sleep(WAIT_MAX) => Err("what was waited for has not come".into()),
        }
    }

    /// Ends all of them: what they have begun is finished.
    pub(crate) async fn stop(mut self) -> Result<(), BoxError> {
        self.stop.send_replace(());
        while let Some(ended) = self.running.join_next().await {
            ended??;
        }
        Ok(())
    }
}
