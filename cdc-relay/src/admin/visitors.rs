//! A listener that serves so many connections and no more.

use std::collections::BTreeMap;
use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

/// Connections served at a time; who comes later waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;

/// A connection on which nothing moves for so long is closed, so that idle ones can not keep
/// others out.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Where there is no room, a connection on which nothing has moved for so long gives its place to
/// who comes: a probe must not wait behind people who look at nothing. No answer takes so long.
const STILL: Duration = Duration::from_secs(1);

/// How soon it is looked again for one that is still.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Takes connections as long as there is room for them.
pub(super) struct Visitors {
    listener: TcpListener,
    room: Arc<Semaphore>,
    seats: Seats,
    still: Duration,
}

/// The connections that are served, by number.
type Seats = Arc<Mutex<BTreeMap<u64, Seat>>>;

struct Seat {
    moved: Instant,
    /// Taken when its visitor was asked to go.
    leave: Option<oneshot::Sender<()>>,
}

impl Visitors {
    pub(super) fn at(listener: TcpListener) -> Self {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Visitors { listener, room, seats: Seats::default(), still: STILL }
    }

    /// Waits for room, and makes some where a visitor does nothing.
    async fn room(&self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(room) = Arc::clone(&self.room).try_acquire_owned() {
                return room;
            }
            self.send_one_away();
            let room = Arc::clone(&self.room).acquire_owned();
            if let Ok(room) = timeout(LOOK_AGAIN, room).await {
                return room.expect("the semaphore is never closed");
            }
        }
    }

    /// Asks the one to go that has been still for the longest.
    fn send_one_away(&self) {
        let mut seats = self.seats.lock().expect("no panic while it is held");
        let staying = seats.values_mut().filter(|seat| seat.leave.is_some());
        let Some(stillest) = staying.min_by_key(|seat| seat.moved) else { return };
        if stillest.moved.elapsed() >= self.still
            && let Some(leave) = stillest.leave.take()
        {
            // It may be gone by itself meanwhile.
            let _ = leave.send(());
        }
    }
}

impl Listener for Visitors {
    type Io = Visitor;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visitor, SocketAddr) {
        // The listener's own way with errors: it waits where there are no file descriptors.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let room = self.room().await;
        let now = Instant::now();
        let (leave, asked) = oneshot::channel();
        let mut seats = self.seats.lock().expect("no panic while it is held");
        let number = seats.last_key_value().map_or(0, |(last, _)| last + 1);
        seats.insert(number, Seat { moved: now, leave: Some(leave) });
        let visitor = Visitor {
            stream,
            idle: Box::pin(sleep_until(now + IDLE_MAX)),
            asked,
            number,
            seats: Arc::clone(&self.seats),
            _room: room,
        };
        (visitor, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when nothing moves on it.
pub(super) struct Visitor {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
    /// To go, for others wait.
    asked: oneshot::Receiver<()>,
    number: u64,
    seats: Seats,
    _room: OwnedSemaphorePermit,
}

impl Visitor {
    /// What the socket answers, or an error when it has been still for too long.
    fn in_time<T>(
        &mut self,
        context: &mut Context<'_>,
        answer: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if answer.is_ready() {
            let now = Instant::now();
            self.idle.as_mut().reset(now + IDLE_MAX);
            let mut seats = self.seats.lock().expect("no panic while it is held");
            if let Some(seat) = seats.get_mut(&self.number) {
                seat.moved = now;
            }
            return answer;
        }
        // What was asked once stays asked: a receiver that has answered must not be asked again.
        let goes = self.asked.is_terminated() || Pin::new(&mut self.asked).poll(context).is_ready();
        if goes {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        self.idle.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.seats.lock().expect("no panic while it is held").remove(&self.number);
    }
}

impl AsyncRead for Visitor {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let answer = Pin::new(&mut self.stream).poll_read(context, into);
        self.in_time(context, answer)
    }
}

impl AsyncWrite for Visitor {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let answer = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(context, answer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::serve::Listener as _;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::{CONNECTIONS_MAX, Visitors};

    const ANSWER_MAX: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn who_does_nothing_gives_its_place_to_who_comes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut visitors = Visitors { still: Duration::ZERO, ..Visitors::at(listener) };

        let mut clients = Vec::new();
        for _ in 0..=CONNECTIONS_MAX {
            clients.push(TcpStream::connect(address).await.unwrap());
            let (mut visitor, _) = timeout(ANSWER_MAX, visitors.accept()).await.unwrap();
            tokio::spawn(async move { visitor.read(&mut [0]).await });
        }

        let first = timeout(ANSWER_MAX, clients[0].read(&mut [0])).await.unwrap();
        assert!(!matches!(first, Ok(1..)), "{first:?}");
        for client in &clients[1..] {
            let still = client.try_read(&mut [0]).unwrap_err();
            assert_eq!(still.kind(), std::io::ErrorKind::WouldBlock);
        }
    }
}
