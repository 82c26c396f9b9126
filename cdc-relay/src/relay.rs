//! The relay's loop: the only place that waits for more than one thing.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use crate::admin::Http;
use crate::config::Config;
use crate::error::{Error, Kind, Reaction};
use crate::lookout::Lookout;
use crate::milestone::{Milestone, Observer};
use crate::publisher::{Publisher, unix_ms};
use crate::replication::{Large, Stream};
use crate::session::{Session, lead};
use crate::sink::{Connect, Kafka, Sink};
use crate::status::{Line, Status};
use crate::streamed::Streamed;
use crate::trouble::{Refused, Trouble};

/// Pause after a first failure; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause between two sessions.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A relay that finds no way back for this long ends with the last error, so that whoever
/// supervises it hears of it.
const GIVE_UP_AFTER: Duration = Duration::from_secs(300);

/// How long a stop waits for the end of a source transaction that is half received.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Tails one database's log and publishes its messages, to Kafka unless it is given another sink.
///
/// ```no_run
/// use tailrace_cdc_relay::{Config, Relay};
///
/// # async fn run() -> Result<(), tailrace_cdc_relay::Error> {
/// let config = Config::new("postgres://relay:secret@localhost/shop?sslmode=disable", "localhost:9092");
/// Relay::new(config).run(async { tokio::signal::ctrl_c().await.unwrap_or(()) }).await
/// # }
/// ```
#[derive(Debug)]
pub struct Relay<C = Kafka> {
    config: Config,
    connect: C,
    observer: Observer,
    status: Status,
    http: Option<Http>,
}

impl Relay {
    /// A relay with these settings. Nothing happens before [`Relay::run`].
    pub fn new(config: Config) -> Self {
        let kafka = Kafka::of(&config);
        Relay::with_sink(config, kafka)
    }
}

impl<C: Connect> Relay<C> {
    /// A relay that publishes to another destination; [`Config::for_sink`] makes its settings.
    pub fn with_sink(config: Config, connect: C) -> Self {
        let status = Status::new(config.slot_name());
        Relay { config, connect, observer: Observer::default(), status, http: None }
    }

    /// A handle to what the relay does, by which it can be paused too.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Shows what this relay does in the status of the one before it.
    pub(crate) fn with_status(mut self, status: Status) -> Self {
        self.status = status;
        self
    }

    /// Serves the relay's HTTP endpoints while it runs. Default none.
    #[must_use]
    pub fn http(mut self, http: Http) -> Self {
        self.http = Some(http);
        self
    }

    /// Calls `observe` at each [`Milestone`], on the relay's own task: it must not block.
    #[must_use]
    pub fn on_milestone(mut self, observe: impl Fn(Milestone) + Send + Sync + 'static) -> Self {
        self.observer = Observer::new(observe);
        self
    }

    /// Publishes until `shutdown` resolves, then finishes the open transaction, flushes the slot
    /// and returns.
    ///
    /// Every message that committed before is in Kafka once, in commit order, whatever crashes in
    /// between. While another relay holds the slot this one stands by. A server that cannot be
    /// reached at the start is an error at once; later it is waited for, up to five minutes.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        self.config.validate()?;
        self.config.check_spool()?;
        let _server = match self.http.take() {
            Some(http) => Some(http.serve(self.status()).await?),
            None => None,
        };
        self.status.begins();
        let _lookout = Lookout::spawn(&self.config, &self.status);
        let (stop, stopped) = watch::channel(false);
        let mut sessions = pin!(self.sessions(stopped));
        tokio::select! {
            ended = &mut sessions => return ended,
            () = shutdown => {}
        }
        self.status.stops();
        stop.send_replace(true);
        sessions.await
    }

    /// [`Relay::run`] on a thread of its own, with a runtime for nothing else.
    ///
    /// A runtime of many threads reads the relay's sockets on one of them and wakes another for
    /// each piece: twice the processor time per message, measured. Dropping the future asks the
    /// relay to stop, and does not wait for it.
    pub async fn run_on_own_thread(
        self,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), Error> {
        let (ended, end) = oneshot::channel();
        let (alive, dropped) = oneshot::channel::<()>();
        let shutdown = async move {
            tokio::select! {
                () = shutdown => {}
                _ = dropped => {}
            }
        };
        let no_thread =
            |error| Error::new(Kind::Unavailable, "no thread for the relay").caused_by(error);
        std::thread::Builder::new()
            .name("cdc-relay".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                // Whoever waited for it may be gone.
                let _ = ended.send(match runtime {
                    Ok(runtime) => runtime.block_on(self.run(shutdown)),
                    Err(error) => Err(no_thread(error)),
                });
            })
            .map_err(no_thread)?;
        let outcome = end.await;
        drop(alive);
        outcome.map_err(|_| Error::new(Kind::Unavailable, "the relay's thread has panicked"))?
    }

    async fn sessions(&self, mut stop: watch::Receiver<bool>) -> Result<(), Error> {
        let mut settled = false;
        let mut pause = PAUSE_MIN;
        let mut failing_since: Option<Instant> = None;
        let mut trouble = Trouble::default();
        let mut large = self.large();
        loop {
            let ended = self
                .session(&mut stop, &trouble, &mut large, &mut settled, &mut failing_since)
                .await;
            let Err(End { error, refused, gave_up }) = ended else { return Ok(()) };
            self.status.failed(&error);
            if let Some(refused) = refused {
                tracing::warn!(error = %error, "a batch was refused: looking for the message");
                trouble.learn(refused);
                continue;
            }
            if gave_up {
                large = Large::AtCommit;
                self.status.gave_up_streaming();
                tracing::warn!(
                    error = %error,
                    cause = error.causes(),
                    mend = error.mend(),
                    "transactions in progress can not be kept: going on without streaming"
                );
                continue;
            }
            let since = *failing_since.get_or_insert_with(|| {
                pause = PAUSE_MIN;
                Instant::now()
            });
            match error.reaction() {
                Reaction::Stop => return Err(error),
                Reaction::Retry if !settled || since.elapsed() >= GIVE_UP_AFTER => {
                    return Err(error);
                }
                Reaction::Retry => tracing::warn!(
                    error = %error,
                    cause = error.causes(),
                    mend = error.mend(),
                    ?pause,
                    "session ended, trying again"
                ),
                Reaction::StandBy => tracing::info!(error = %error, ?pause, "standing by"),
            }
            tokio::select! {
                () = until_stopped(&mut stop) => return Ok(()),
                () = tokio::time::sleep(jittered(pause)) => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// When a session is to receive large transactions.
    fn large(&self) -> Large {
        self.config.streamed().map_or(Large::AtCommit, |_| Large::InProgress)
    }

    async fn session(
        &self,
        stop: &mut watch::Receiver<bool>,
        trouble: &Trouble,
        large: &mut Large,
        settled: &mut bool,
        failing_since: &mut Option<Instant>,
    ) -> Result<(), End> {
        let Relay { config, connect, observer, status, .. } = self;
        let lead = lead(config, connect, observer, trouble, status, *large, settled);
        let mut session = tokio::select! {
            biased;
            () = until_stopped(stop) => return Ok(()),
            session = Box::pin(lead) => session?,
        };
        *failing_since = None;
        // What one session could not keep, the next may.
        *large = self.large();
        let publisher = &session.publisher;
        let (relay_id, source) = (&publisher.relay_id, &publisher.source);
        let flushed = publisher.progress.flush_lsn();
        let line =
            Line { arrived: session.stream.arrived(), in_progress: publisher.streamed.is_some() };
        let number = status.leads(relay_id, source.incarnation, flushed, line);
        let ended = tokio::select! {
            biased;
            cause = status.end_of(number) => {
                let text = format!("the watchdog ended the session: {}", cause.text());
                let fault = status.fault_of(number);
                Err(fault.unwrap_or_else(|| Error::new(Kind::Unavailable, text)))
            }
            ended = publish(&mut session, stop) => ended,
        };
        match ended {
            Ok(()) => Ok(session.stream.close().await?),
            Err(error) => {
                let Session { publisher, .. } = &session;
                let gave_up = publisher.streamed.as_ref().is_some_and(Streamed::gave_up);
                Err(End { refused: publisher.refused(&error), gave_up, error })
            }
        }
    }
}

/// Why a session ended, and what the next one has to know of it.
struct End {
    error: Error,
    /// The refused batch behind it, if there is one.
    refused: Option<Refused>,
    /// Whether it could not keep the transactions in progress.
    gave_up: bool,
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        End { error, refused: None, gave_up: false }
    }
}

/// Publishes what the slot sends until it is told to stop or something fails.
async fn publish<S: Sink>(
    session: &mut Session<'_, S>,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), Error> {
    let Session { stream, publisher } = session;
    let mut paused = publisher.report.paused();
    let mut drain_until: Option<Instant> = None;
    loop {
        // Before anything more is taken in: a busy source would never be drained otherwise.
        if drain_until.is_some() && publisher.progress.is_drained() {
            break;
        }
        let reads = !*paused.borrow_and_update() || drain_until.is_some();
        if reads {
            take_in(stream, publisher).await?;
        }
        if let Some(due) = publisher.progress.due(Instant::now(), false) {
            publisher.seal(due).await?;
            continue;
        }
        if drain_until.is_some_and(|until| Instant::now() >= until) {
            tracing::warn!(
                "stopping inside a source transaction: it is published at the next start"
            );
            publisher.sink.abort().await?;
            break;
        }
        let reads_back = reads && publisher.reads_back();
        let due = publisher.progress.due(Instant::now(), !publisher.behind && !reads_back);
        let committing = publisher.progress.is_committing();
        let wake = [publisher.progress.deadline(!publisher.behind), drain_until]
            .into_iter()
            .flatten()
            .min();
        tokio::select! {
            biased;
            () = until_stopped(stop), if drain_until.is_none() => {
                drain_until = Some(Instant::now() + DRAIN_MAX);
                publisher.progress.drain();
            }
            event = stream.next(), if reads && !reads_back => {
                let now = Instant::now();
                publisher.report.heard(now);
                publisher.take(event?, now).await?;
            }
            // The stream has nothing to give: what is due only then is due now.
            due = ready(due) => publisher.seal(due).await?,
            confirmed = publisher.confirmed(), if committing => confirmed?,
            () = until(wake) => {}
            // Other tasks of this thread have their turn, the status updates among them.
            () = tokio::task::yield_now(), if reads_back => {}
            // The sender lives as long as the publisher.
            _ = paused.changed() => {}
        }
    }
    tracing::info!(flushed = %publisher.progress.flush_lsn(), "stopped");
    Ok(())
}

/// Takes in what has been received already, until a batch is due.
async fn take_in<S: Sink>(
    stream: &mut Stream,
    publisher: &mut Publisher<'_, S>,
) -> Result<(), Error> {
    let now = Instant::now();
    let mut taken = 0;
    if publisher.reads_back() {
        publisher.report.heard(now);
        publisher.read_back_some(now).await?;
    }
    while publisher.progress.due(now, false).is_none() && !publisher.reads_back() {
        let Some(event) = stream.try_next()? else { break };
        publisher.take(event, now).await?;
        taken += 1;
    }
    if taken > 0 {
        publisher.report.heard(now);
    }
    Ok(())
}

async fn ready<T>(value: Option<T>) -> T {
    match value {
        Some(value) => value,
        None => std::future::pending().await,
    }
}

async fn until_stopped(stop: &mut watch::Receiver<bool>) {
    // The sender lives as long as `run`, which this future is a part of.
    if stop.wait_for(|stopped| *stopped).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

/// Up to half again as long, so that relays that failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let per_mille = u32::try_from(unix_ms() % 500).expect("below 500");
    pause + pause * per_mille / 1_000
}
