//! Wakes the reader for a pile of bytes while it is behind.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::pace::Pace;
use crate::native::socket::set_receive_low_water;

/// Carries out what a [`Pace`] decides, on the socket of the stream.
pub(super) struct LowWater {
    /// The same socket by another descriptor, since its two halves are in other hands.
    socket: OwnedFd,
    pace: Pace,
    /// What the socket is set to.
    mark: usize,
    alarm: Pin<Box<Sleep>>,
}

impl LowWater {
    /// For this socket; `None` where the option is not to be had.
    pub(super) fn new(socket: &TcpStream) -> Option<Self> {
        let socket = socket.as_fd().try_clone_to_owned().ok()?;
        set_receive_low_water(socket.as_fd(), 1).ok()?;
        let now = Instant::now();
        let alarm = Box::pin(tokio::time::sleep_until(now.into()));
        Some(LowWater { socket, pace: Pace::new(now), mark: 1, alarm })
    }

    /// So many bytes were read.
    pub(super) fn read(&mut self, bytes: usize) -> io::Result<()> {
        self.pace.read(bytes, Instant::now());
        self.apply()
    }

    /// To be polled when there was nothing to read: gives up waiting for the pile in time.
    ///
    /// What has come is readable from then on, and the task is woken for it as for all that
    /// comes later.
    pub(super) fn poll_late(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.mark == 1 || self.alarm.as_mut().poll(context) == Poll::Pending {
            return Ok(());
        }
        self.pace.late();
        self.apply()
    }

    fn apply(&mut self) -> io::Result<()> {
        if self.pace.mark() != self.mark {
            set_receive_low_water(self.socket.as_fd(), self.pace.mark())?;
            self.mark = self.pace.mark();
        }
        if let Some(deadline) = self.pace.deadline() {
            self.alarm.as_mut().reset(deadline.into());
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn mark(&self) -> usize {
        self.mark
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::pin::Pin;
    use std::task::Poll;
    use std::time::{Duration, Instant};

    use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::LowWater;

    const DEADLINE: Duration = Duration::from_secs(10);

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    /// A socket whose mark has been raised by a stream in full flow.
    async fn in_full_flow() -> (TcpStream, LowWater, TcpStream) {
        let (near, far) = pair().await;
        let mut low_water = LowWater::new(&near).unwrap();
        let start = Instant::now();
        while low_water.mark() == 1 {
            assert!(start.elapsed() < DEADLINE);
            low_water.read(10_000_000).unwrap();
        }
        (near, low_water, far)
    }

    /// Reads as the stream does.
    async fn read(near: &mut TcpStream, low_water: &mut LowWater) -> usize {
        let mut room = vec![0; 1 << 20];
        let mut room = ReadBuf::new(&mut room);
        std::future::poll_fn(|context| {
            if let Poll::Ready(read) = Pin::new(&mut *near).poll_read(context, &mut room) {
                return Poll::Ready(read);
            }
            low_water
                .poll_late(context)
                .map_or_else(|error| Poll::Ready(Err(error)), |()| Poll::Pending)
        })
        .await
        .unwrap();
        low_water.read(room.filled().len()).unwrap();
        room.filled().len()
    }

    #[tokio::test]
    async fn a_reader_sleeps_through_less_than_its_mark_and_wakes_when_it_is_lowered() {
        let (near, mut low_water, mut far) = in_full_flow().await;

        far.write_all(b"few").await.unwrap();

        assert!(timeout(Duration::from_millis(50), near.readable()).await.is_err());
        low_water.pace.late();
        low_water.apply().unwrap();
        timeout(DEADLINE, near.readable()).await.expect("what is there is told").unwrap();
    }

    #[tokio::test]
    async fn bytes_that_stay_below_the_mark_are_given_up_waiting_for() {
        let (mut near, mut low_water, mut far) = in_full_flow().await;

        far.write_all(b"few").await.unwrap();

        assert_eq!(timeout(DEADLINE, read(&mut near, &mut low_water)).await.unwrap(), 3);
        assert_eq!(low_water.mark(), 1);
    }

    #[tokio::test]
    async fn bytes_that_come_after_the_wait_was_given_up_are_told_at_once() {
        let (mut near, mut low_water, mut far) = in_full_flow().await;
        let (mut waiting, mut lowered) = (Box::pin(read(&mut near, &mut low_water)), 0);

        // Long past the point at which the pile is given up, with nothing to read.
        while timeout(Duration::from_millis(10), &mut waiting).await.is_err() {
            lowered += 1;
            far.write_all(b"few").await.unwrap();
        }

        assert!(lowered > 0);
    }

    #[tokio::test]
    async fn the_end_of_a_connection_is_told_below_the_mark() {
        let (mut near, mut low_water, far) = in_full_flow().await;

        drop(far);

        assert_eq!(timeout(DEADLINE, read(&mut near, &mut low_water)).await.unwrap(), 0);
    }
}
