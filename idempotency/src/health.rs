//! Whether a consumer gets on, for whoever asks over HTTP or in the process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::position::Position;

/// The intake looks after its partitions far more often. What takes it longer than this stands still: by then its group
/// has seen it off as well (`max.poll.interval.ms`).
const BEAT_MAX: Duration = Duration::from_secs(300);

/// A handle to how a consumer is; it stays valid after the consumer has ended.
///
/// One that is made by `default` is given to a consumer by [`Config::health`](crate::Config::health), also where something
/// else runs the consumer, such as a participant of sagas.
///
/// With the feature `axum` it is a router to mount: see its method `routes`.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    stage: Stage,
    /// When the intake has looked after its partitions last.
    beat: Option<Instant>,
    away_since: Option<Instant>,
    kafka_silent_since: Option<Instant>,
    /// Topics that are subscribed and do not exist.
    gone: Vec<String>,
    /// Partitions from which nothing more is taken, since too many of their keys are parked.
    full: Vec<String>,
    /// Handlers that run now, by the number under which each has begun.
    handling: BTreeMap<u64, Handling>,
    begun: u64,
}

#[derive(Debug)]
struct Handling {
    since: Instant,
    time_out: Duration,
    with: Position,
}

/// A handler that runs, until this is dropped.
#[derive(Debug)]
pub(crate) struct Watched<'h>(&'h Health, u64);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.state().handling.remove(&self.1);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Starting,
    /// The group has not said yet which partitions are ours.
    Joining,
    Running,
    Ended,
}

impl Health {
    /// Whether the process is worth keeping: the consumer has not ended and its intake does not stand still. A consumer
    /// that starts, or waits for Postgres, is alive: to restart it would mend nothing.
    pub fn is_live(&self) -> bool {
        let state = self.state();
        state.stage != Stage::Ended && !state.stands_still(Instant::now())
    }

    /// Everything that keeps it from applying what comes; empty while it is ready.
    pub fn faults(&self) -> Vec<String> {
        self.state().faults(Instant::now())
    }

    pub(crate) fn began(&self) {
        let mut state = self.state();
        state.stage = Stage::Joining;
        state.beat = Some(Instant::now());
    }

    /// It may be given no partition at all: then it stands by, which is as well.
    pub(crate) fn joined(&self) {
        let mut state = self.state();
        if state.stage == Stage::Joining {
            state.stage = Stage::Running;
        }
    }

    pub(crate) fn ended(&self) {
        self.state().stage = Stage::Ended;
    }

    pub(crate) fn beat(&self, full: Vec<String>) {
        let mut state = self.state();
        state.beat = Some(Instant::now());
        state.full = full;
    }

    pub(crate) fn kafka(&self, silent_since: Option<Instant>, gone: Vec<String>) {
        let mut state = self.state();
        state.kafka_silent_since = silent_since;
        state.gone = gone;
    }

    /// A handler has begun that has to end within this time. One that blocks its thread cannot be cut off then.
    pub(crate) fn handles(&self, with: &Position, time_out: Duration) -> Watched<'_> {
        let mut state = self.state();
        state.begun += 1;
        let (number, since) = (state.begun, Instant::now());
        state.handling.insert(number, Handling { since, time_out, with: with.clone() });
        Watched(self, number)
    }

    pub(crate) fn away(&self, since: Option<Instant>) {
        self.state().away_since = since;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn stands_still(&self, now: Instant) -> bool {
        self.beat.is_some_and(|beat| now.saturating_duration_since(beat) > BEAT_MAX)
    }

    fn faults(&self, now: Instant) -> Vec<String> {
        let mut faults = match self.stage {
            Stage::Starting => vec!["the consumer has not started yet".to_owned()],
            Stage::Joining => vec!["the consumer has not joined its group yet".to_owned()],
            Stage::Running => Vec::new(),
            Stage::Ended => return vec!["the consumer has ended".to_owned()],
        };
        if self.stands_still(now) {
            faults.push("the intake stands still".to_owned());
        }
        if let Some(since) = self.away_since {
            let seconds = now.saturating_duration_since(since).as_secs();
            faults.push(format!("postgres has been away for {seconds} s"));
        }
        if let Some(since) = self.kafka_silent_since {
            let seconds = now.saturating_duration_since(since).as_secs();
            faults.push(format!("kafka has not answered for {seconds} s"));
        }
        faults.extend(
            self.gone.iter().map(|topic| format!("the topic {topic} does not exist any more")),
        );
        for Handling { since, time_out, with } in self.handling.values() {
            let ran = now.saturating_duration_since(*since);
            if ran > *time_out {
                let seconds = ran.as_secs();
                faults.push(format!("a handler has been running for {seconds} s, with {with}"));
            }
        }
        faults.extend(self.full.iter().map(|partition| {
            format!("too many keys of {partition} are parked: nothing more is taken from it")
        }));
        faults
    }
}

#[cfg(feature = "axum")]
mod routes {
    use axum::http::StatusCode;
    use axum::response::IntoResponse;
    use axum::routing::get;
    use axum::{Json, Router};

    use super::Health;

    impl Health {
        /// `GET /livez` and `GET /readyz`, which answer with 200 or 503 and the faults as JSON.
        ///
        /// ```no_run
        /// # fn example(consumer: tailrace_idempotency::Consumer) -> axum::Router {
        /// let health = consumer.health();
        /// axum::Router::new().nest("/billing", health.routes())
        /// # }
        /// ```
        pub fn routes<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
            let (live, ready) = (self.clone(), self.clone());
            Router::new()
                .route("/livez", get(async move || answer(live.is_live(), &live)))
                .route("/readyz", get(async move || answer(ready.faults().is_empty(), &ready)))
        }
    }

    fn answer(is_well: bool, health: &Health) -> impl IntoResponse + use<> {
        let code = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (code, Json(serde_json::json!({ "faults": health.faults() })))
    }

    #[cfg(test)]
    mod tests {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        use tokio::net::{TcpListener, TcpStream};

        use super::*;

        #[tokio::test]
        async fn health_is_mounted_in_a_router_of_the_service() {
            let health = Health::default();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let router = Router::new().nest("/billing", health.routes());
            tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
            let ask = async |path: &str| {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let request =
                    format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                answer
            };

            let starting = ask("/billing/readyz").await;
            let alive = ask("/billing/livez").await;
            health.began();
            health.joined();
            let ready = ask("/billing/readyz").await;
            health.ended();
            let dead = ask("/billing/livez").await;

            assert!(starting.starts_with("HTTP/1.1 503 "), "{starting}");
            assert!(starting.ends_with(r#"{"faults":["the consumer has not started yet"]}"#));
            assert!(alive.starts_with("HTTP/1.1 200 "), "{alive}");
            assert!(ready.starts_with("HTTP/1.1 200 ") && ready.ends_with(r#"{"faults":[]}"#));
            assert!(dead.starts_with("HTTP/1.1 503 "), "{dead}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Offset;

    #[test]
    fn it_is_ready_while_nothing_keeps_it_from_applying_and_alive_until_it_ends_or_stands_still() {
        let health = Health::default();
        assert_eq!(health.faults(), ["the consumer has not started yet"]);
        health.began();
        assert_eq!(health.faults(), ["the consumer has not joined its group yet"]);
        health.joined();
        assert!(health.is_live() && health.faults().is_empty());

        health.away(Some(Instant::now()));
        health.beat(vec!["orders 3".to_owned()]);
        let faults = health.faults().join("; ");
        assert!(faults.contains("postgres has been away for 0 s"), "{faults}");
        assert!(faults.contains("too many keys of orders 3 are parked"), "{faults}");
        assert!(health.is_live());
        let later = Instant::now() + BEAT_MAX * 2;
        assert!(health.state().faults(later).contains(&"the intake stands still".to_owned()));
        health.away(None);
        health.beat(Vec::new());
        assert!(health.faults().is_empty());

        health.kafka(Some(Instant::now()), vec!["orders".to_owned()]);
        let faults = health.faults().join("; ");
        assert!(faults.contains("kafka has not answered for 0 s"), "{faults}");
        assert!(faults.contains("the topic orders does not exist any more"), "{faults}");
        assert!(health.is_live());
        health.kafka(None, Vec::new());
        assert!(health.faults().is_empty());

        let with = Position { topic: "orders".into(), partition: 3, offset: Offset::new(7) };
        let quick = health.handles(&with, BEAT_MAX);
        let slow = health.handles(&with, Duration::ZERO);
        let faults = health.faults();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].ends_with("with topic orders partition 3 offset 7"), "{faults:?}");
        drop((quick, slow));
        assert!(health.faults().is_empty());

        health.ended();
        health.joined();
        assert!(!health.is_live());
        assert_eq!(health.faults(), ["the consumer has ended"]);
    }
}
