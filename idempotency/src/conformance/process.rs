//! A process of a run: a runtime on a thread of its own, which can be ended at any point of its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use tokio::sync::{mpsc, oneshot, watch};

use super::Member;
use crate::config::Config;
use crate::consumer::Runner;
use crate::error::{BoxError, Error};
use crate::metrics::Counters;
use crate::milestone::{Hook, Milestone};

/// Makes the consumer of a process.
pub(super) type Plant = Arc<dyn Fn(&Member) -> Runner + Send + Sync>;

/// How long a process that ended may take for its last breath.
const BREATH: Duration = Duration::from_millis(100);
/// A process makes its consumer within this time.
const BEGIN_MAX: Duration = Duration::from_secs(30);
/// Connections of a process.
const CONNECTIONS: u32 = 6;

/// What a process is started with.
#[derive(Clone)]
pub(super) struct Begin {
    pub(super) database_url: String,
    pub(super) brokers: String,
    pub(super) consumer: String,
    pub(super) group: String,
    pub(super) topic: String,
    pub(super) batch_records: usize,
    /// Where it stands still, and at which time that it comes there.
    pub(super) halts_at: Option<(Milestone, u32)>,
}

/// A running process. Dropped, it is ended where it is.
pub(super) struct Process {
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    pub(super) counters: Counters,
    halted: mpsc::Receiver<()>,
    /// True lets it go on from where it stands still.
    go_on: watch::Sender<bool>,
    ended: oneshot::Receiver<Error>,
}

impl Process {
    pub(super) async fn start(plant: &Plant, begin: Begin) -> Result<Self, BoxError> {
        let (halt, halted) = mpsc::channel(1);
        let (go_on, goes_on) = watch::channel(false);
        let (end, told) = oneshot::channel();
        let (tell, ended) = oneshot::channel();
        let (made, counters) = oneshot::channel();
        let plant = Arc::clone(plant);
        let thread = thread::Builder::new().name("conformance".to_owned()).spawn(move || {
            let built =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            let Ok(runtime) = built else { return };
            runtime.block_on(async {
                let runner = runner(&plant, &begin, hook(&begin, halt, goes_on));
                if made.send(runner.counters.clone()).is_err() {
                    return;
                }
                tokio::select! {
                    biased;
                    _ = told => {}
                    ended = runner.run(std::future::pending()) => {
                        if let Err(error) = ended {
                            // Whoever is not there any more does not want to know.
                            tell.send(error).ok();
                        }
                    }
                }
            });
            // Tasks end where they are; connections close without a word.
            runtime.shutdown_timeout(BREATH);
        })?;
        let counters = tokio::time::timeout(BEGIN_MAX, counters).await??;
        Ok(Self { end: Some(end), thread: Some(thread), counters, halted, go_on, ended })
    }

    /// Waits until it stands still where it was told to; false where it never comes there.
    pub(super) async fn halts(&mut self) -> bool {
        self.halted.recv().await.is_some()
    }

    /// It goes on, and stands still no more.
    pub(super) fn go_on(&self) {
        self.go_on.send_replace(true);
    }

    /// The error that it ended with by itself; never while it runs.
    pub(super) async fn failure(&mut self) -> Error {
        match (&mut self.ended).await {
            Ok(error) => error,
            Err(_) => std::future::pending().await,
        }
    }

    /// Ends it where it is, and waits until nothing of it is left.
    pub(super) async fn kill(mut self) {
        self.end.take();
        let thread = self.thread.take();
        // A thread that broke off has said so on standard error.
        let joined = tokio::task::spawn_blocking(move || thread.map(|thread| thread.join().ok()));
        joined.await.ok();
    }
}

fn runner(plant: &Plant, begin: &Begin, hook: Hook) -> Runner {
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect_lazy(&begin.database_url);
    let pool = pool.expect("the suite has connected to this url");
    let config = Config::new(&begin.consumer, &begin.brokers, pool);
    let mut runner = plant(&Member { config, topic: begin.topic.clone() });
    let options = &mut runner.options;
    options.consumer.clone_from(&begin.consumer);
    options.batch_records_max = begin.batch_records;
    // A former owner that stands still is ended soon, and a message that fails comes again soon.
    options.rebalance_deadline = Duration::from_millis(800);
    options.shutdown_deadline = Duration::from_secs(1);
    options.policy.parked_wait = Duration::from_millis(20);
    options.policy.parked_wait_max = Duration::from_millis(200);
    runner.group = Some(begin.group.clone());
    runner.hook = Some(hook);
    runner
}

/// Stands still at a milestone, once.
fn hook(begin: &Begin, halt: mpsc::Sender<()>, goes_on: watch::Receiver<bool>) -> Hook {
    let (halts_at, seen) = (begin.halts_at, AtomicU32::new(0));
    Arc::new(move |milestone| {
        let here = halts_at.is_some_and(|(at, time)| {
            at == milestone && seen.fetch_add(1, Ordering::Relaxed) + 1 == time
        });
        let (halt, mut goes_on) = (halt.clone(), goes_on.clone());
        Box::pin(async move {
            if here && halt.try_send(()).is_ok() && goes_on.wait_for(|go_on| *go_on).await.is_err()
            {
                std::future::pending::<()>().await;
            }
        })
    })
}
