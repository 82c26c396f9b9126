//! A lane as the intake sees it: a queue to fill, records that found no place, and how the lane ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::flow::{Flow, QUEUE_BYTES_MAX};
use crate::lane::{Gauge, LaneEnd};
use crate::position::Offset;
use crate::progress;
use crate::record::Delivery;

/// A running lane, seen from the intake.
pub(crate) struct Running {
    pub(crate) epoch: progress::Epoch,
    pub(crate) began_at: Option<Offset>,
    pub(crate) queue: mpsc::Sender<Delivery>,
    pub(crate) held: VecDeque<Delivery>,
    pub(crate) flow: Flow,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) hinted: i64,
    pub(crate) task: JoinHandle<LaneEnd>,
}

impl Running {
    /// Gives a record to the lane, or holds it behind those that are held already.
    pub(crate) fn offer(&mut self, delivery: Delivery) {
        self.held.push_back(delivery);
        self.offer_held();
    }

    pub(crate) fn offer_held(&mut self) {
        while let Some(delivery) = self.held.pop_front() {
            let bytes = delivery.bytes();
            if self.queued_bytes() >= QUEUE_BYTES_MAX {
                self.held.push_front(delivery);
                return;
            }
            self.gauge.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
            match self.queue.try_send(delivery) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(delivery)) => {
                    self.gauge.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
                    self.held.push_front(delivery);
                    return;
                }
                // The lane has ended; the intake finds out why when it looks after it.
                Err(mpsc::error::TrySendError::Closed(_)) => self.held.clear(),
            }
        }
    }

    pub(crate) fn flow_now(&self) -> Flow {
        let queued = self.queue.max_capacity() - self.queue.capacity();
        self.flow.after(self.held.len(), queued, self.queued_bytes())
    }

    fn queued_bytes(&self) -> usize {
        self.gauge.queued_bytes.load(Ordering::Relaxed)
    }
}
