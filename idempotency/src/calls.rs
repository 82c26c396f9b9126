//! The calls of a lane that are being made, each in a task of its own.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::{JoinError, JoinSet};
use tracing::Instrument as _;

use crate::breaker::Permit;
use crate::call::Answer;
use crate::error::{Error, Kind};
use crate::lane::Shared;
use crate::milestone::Milestone;
use crate::parking::Queue;
use crate::position::Offset;
use crate::record::Record;
use crate::route::{Outcall, RouteId};
use crate::trace;

/// A call that is permitted and whose intent is stored.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) route: RouteId,
    pub(crate) record: Record,
    pub(crate) intent: Vec<u8>,
    pub(crate) permit: Permit,
}

/// A call that has ended.
pub(crate) struct Called {
    pub(crate) queue: Queue,
    pub(crate) route: RouteId,
    pub(crate) offset: Offset,
    pub(crate) intent: Vec<u8>,
    pub(crate) answer: Result<Answer<Outcall>, Error>,
}

/// Dropped, it breaks off what runs: the next owner repeats it with the same key.
#[derive(Default)]
pub(crate) struct Calls {
    tasks: JoinSet<Called>,
    offsets: HashSet<Offset>,
}

impl Calls {
    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether the call of the message at this offset is being made.
    pub(crate) fn holds(&self, offset: Offset) -> bool {
        self.offsets.contains(&offset)
    }

    pub(crate) fn start(&mut self, shared: Arc<Shared>, queue: Queue, start: Start) {
        self.offsets.insert(start.record.meta.position().offset);
        self.tasks.spawn(make(shared, queue, start));
    }

    /// The next call that ends; never while none is made. Nothing is lost where this is dropped.
    pub(crate) async fn next(&mut self) -> Result<Called, Error> {
        let Some(called) = self.tasks.join_next().await else {
            return std::future::pending().await;
        };
        self.ended(called)
    }

    /// A further call that has ended already.
    pub(crate) fn next_ended(&mut self) -> Option<Result<Called, Error>> {
        let called = self.tasks.try_join_next()?;
        Some(self.ended(called))
    }

    fn ended(&mut self, called: Result<Called, JoinError>) -> Result<Called, Error> {
        let called = called.map_err(|error| {
            Error::new(Kind::Internal, "the task of a call broke off").caused_by(error)
        })?;
        self.offsets.remove(&called.offset);
        Ok(called)
    }
}

async fn make(shared: Arc<Shared>, queue: Queue, start: Start) -> Called {
    let Start { route, record, intent, permit } = start;
    shared.reached(Milestone::Prepared).await;
    let began = Instant::now();
    let answer = match shared.dispatch.limits(route) {
        None => Err(Error::new(Kind::Internal, "a call without bounds was made")),
        Some(limits) => {
            let span = trace::of_call(&record);
            let calling = shared.dispatch.call(route, &record, &intent).instrument(span.clone());
            let called = tokio::time::timeout(limits.time_out, calling).await;
            let called = called.unwrap_or_else(|_| {
                let (of, seconds) = (record.meta.message_type(), limits.time_out.as_secs_f32());
                let text = format!("the call of {of} has not ended within {seconds} s");
                Err(Error::new(Kind::Handler, text)
                    .at(record.meta.position())
                    .about(record.meta.message_id()))
            });
            if !matches!(called, Ok(Answer::Done(_))) {
                trace::failed(&span);
            }
            called
        }
    };
    let took = began.elapsed();
    shared.reached(Milestone::Called).await;
    let told = permit.ended(answer.is_err(), took);
    shared.counters.count_call(answer.is_err(), told);
    if told.opened {
        tracing::error!(
            message_type = record.meta.message_type(),
            "a circuit breaker opens: calls fail or are slow, and none is made for a while"
        );
    }
    Called { queue, route, offset: record.meta.position().offset, intent, answer }
}
