//! Standby status updates, sent by a task of their own.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend::{self, CopyData};
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::connection::{WriteHalf, late, lost};
use super::endpoint::Endpoint;
use crate::error::{Error, Kind};
use crate::lsn::Lsn;

/// How often the server hears from us. A standby takes the leader for dead when
/// `pg_stat_replication.reply_time` stands still for 1.5 s: five updates must have been missed.
const INTERVAL: Duration = Duration::from_millis(250);

/// How often the server is asked to answer. A caught-up walsender is silent otherwise, and then
/// nothing would tell an idle database from a dead peer; the answer also carries the newest
/// position, which lets an idle relay move its slot.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// An update is 39 bytes: when not even that can be written for so long, the walsender has not
/// read for far longer than its own time-out (`wal_sender_timeout`, 60 s by default).
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Seconds from 1970 to 2000, where Postgres' clock begins.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// Reports positions back to the server; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct StatusHandle(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    received: AtomicU64,
    flushed: AtomicU64,
    closing: AtomicBool,
    wake: Notify,
}

impl StatusHandle {
    /// Everything up to here is safe: the server may forget it. Sent at once when it is news;
    /// a position below an earlier one changes nothing.
    pub(crate) fn flushed(&self, lsn: Lsn) {
        if self.0.flushed.fetch_max(lsn.0, Ordering::AcqRel) < lsn.0 {
            self.0.wake.notify_one();
        }
    }

    /// Everything up to here has arrived. Goes out with the next update.
    pub(crate) fn received(&self, lsn: Lsn) {
        self.0.received.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// Sends an update at once: the server asked for one.
    pub(crate) fn reply_now(&self) {
        self.0.wake.notify_one();
    }
}

/// The task that owns the write half; it ends with this.
pub(super) struct StatusTask {
    handle: StatusHandle,
    task: JoinHandle<Result<WriteHalf, Error>>,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Running,
    /// Ended by [`StatusTask::close`].
    Closed,
    Failed,
}

impl StatusTask {
    pub(super) fn spawn(writer: WriteHalf, endpoint: Endpoint) -> Self {
        let handle = StatusHandle(Arc::default());
        let sender = Sender { shared: Arc::clone(&handle.0), writer, endpoint };
        StatusTask { handle, task: tokio::spawn(sender.run()), state: State::Running }
    }

    pub(super) fn handle(&self) -> &StatusHandle {
        &self.handle
    }

    /// Ready when the task has failed: with its error, and from then on without one.
    pub(super) fn poll_failure(&mut self, context: &mut Context<'_>) -> Poll<Option<Error>> {
        match self.state {
            State::Running => {}
            State::Closed => return Poll::Pending,
            State::Failed => return Poll::Ready(None),
        }
        Poll::Ready(ready!(self.poll_end(context)).err())
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<Result<WriteHalf, Error>> {
        let outcome = match ready!(Pin::new(&mut self.task).poll(context)) {
            Ok(outcome) => outcome,
            // Only its owner aborts it, and then no longer waits: what is left is the end of the
            // whole runtime.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => {
                    Err(Error::new(Kind::Unavailable, "the runtime has ended").caused_by(error))
                }
            },
        };
        self.state = if outcome.is_ok() { State::Closed } else { State::Failed };
        Poll::Ready(outcome)
    }

    /// Sends a last update and the end of the copy; gives the write half back.
    pub(super) async fn close(&mut self) -> Option<Result<WriteHalf, Error>> {
        if !matches!(self.state, State::Running) {
            return None;
        }
        self.handle.0.closing.store(true, Ordering::Release);
        self.handle.0.wake.notify_one();
        Some(std::future::poll_fn(|context| self.poll_end(context)).await)
    }
}

impl Drop for StatusTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What runs in the task.
struct Sender {
    shared: Arc<Shared>,
    writer: WriteHalf,
    endpoint: Endpoint,
}

impl Sender {
    async fn run(mut self) -> Result<WriteHalf, Error> {
        let mut ask_at = Instant::now();
        loop {
            let closing = self.shared.closing.load(Ordering::Acquire);
            let ask = Instant::now() >= ask_at;
            if ask {
                ask_at = Instant::now() + ASK_INTERVAL;
            }
            let mut message = self.update(ask);
            if closing {
                frontend::copy_done(&mut message);
            }
            self.write(&message).await?;
            if closing {
                return Ok(self.writer);
            }
            // Time running out is the ordinary case: an update is due either way.
            timeout(INTERVAL, self.shared.wake.notified()).await.ok();
        }
    }

    fn update(&self, ask: bool) -> BytesMut {
        let flushed = self.shared.flushed.load(Ordering::Acquire);
        // What is safe has been received, also where the relay has not said so.
        let received = self.shared.received.load(Ordering::Acquire).max(flushed);
        status_update(Lsn(received), Lsn(flushed), SystemTime::now(), ask)
    }

    async fn write(&mut self, message: &[u8]) -> Result<(), Error> {
        match timeout(WRITE_TIMEOUT, self.writer.write_all(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(lost(&self.endpoint, error)),
            Err(_) => Err(late(&self.endpoint, "a status update", WRITE_TIMEOUT)),
        }
    }
}

/// The standby status update
/// (<https://www.postgresql.org/docs/current/protocol-replication.html>): what was written,
/// flushed and applied. To us flushed and applied are the same, durable elsewhere.
fn status_update(received: Lsn, flushed: Lsn, now: SystemTime, ask: bool) -> BytesMut {
    let clock = now
        .duration_since(SystemTime::UNIX_EPOCH + POSTGRES_EPOCH)
        .map_or(0, |since| since.as_micros() as u64);
    let mut body = BytesMut::with_capacity(34);
    body.put_u8(b'r');
    body.put_u64(received.0);
    body.put_u64(flushed.0);
    body.put_u64(flushed.0);
    body.put_u64(clock);
    body.put_u8(u8::from(ask));
    let mut message = BytesMut::with_capacity(64);
    CopyData::new(body).expect("34 bytes fit a message").write(&mut message);
    message
}
