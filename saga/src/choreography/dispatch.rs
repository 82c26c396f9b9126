//! The handlers of a consumer that a service of a choreography is.

use std::sync::Arc;
use std::time::Duration;

use tailrace_idempotency::{
    BoxError, Call, CallCx, CallHandler, Codec, Consumer, Handler, Outcome, Prepared, RecordHandler,
};

use super::outward::Due;
use super::react::Reactor;
use crate::error::{Error, Kind};
use crate::participant::BoxFuture;
use crate::participant::outside::{Answered, Limits};

/// Registers what a service does about one event.
pub(super) fn register<S: Send + Sync + 'static>(
    consumer: Consumer<S>,
    event: &str,
    reactor: &Arc<Reactor<S>>,
) -> Consumer<S> {
    let dispatch = || Dispatch(Arc::clone(reactor));
    let calls = reactor.calls(event);
    let time_out = one_after_another(&calls);
    match calls.into_iter().next() {
        None => consumer.on_with(Raw, event, dispatch()),
        Some(first) => {
            let call = Call::new(dispatch(), dispatch(), dispatch());
            let call = call.time_out(time_out).breaker(first.breaker);
            consumer.on_call_with::<Payload, Vec<Due>, Vec<Answered>>(Raw, event, call)
        }
    }
}

/// How long the calls about one event may take together.
fn one_after_another(calls: &[Limits]) -> Duration {
    calls.iter().map(|limits| limits.time_out).fold(Duration::ZERO, Duration::saturating_add)
}

/// What stands in a record, not yet read.
pub(super) struct Payload(Vec<u8>);

/// Leaves the payload to the handlers: those of one event may read it as different types.
struct Raw;

impl Codec<Payload> for Raw {
    fn decode(&self, payload: Option<&[u8]>) -> Result<Payload, BoxError> {
        Ok(Payload(payload.unwrap_or(b"null").to_vec()))
    }
}

/// The handler of every event, in one transaction or, where a call is due, in three steps.
struct Dispatch<S>(Arc<Reactor<S>>);

impl<'a, S: Send + Sync + 'static> Handler<'a, S, Payload> for Dispatch<S> {
    type Error = BoxError;
    type Future = BoxFuture<'a, Result<Outcome, BoxError>>;

    fn call(&self, cx: tailrace_idempotency::Cx<'a, S>, payload: Payload) -> Self::Future {
        let reactor = Arc::clone(&self.0);
        Box::pin(async move {
            match reactor.take(cx, &payload.0).await? {
                Prepared::End(outcome) => Ok(outcome),
                _ => {
                    let text = "an event leads to a call for which it is not registered";
                    Err(Error::new(Kind::Definition, text).into())
                }
            }
        })
    }
}

impl<'a, S: Send + Sync + 'static> Handler<'a, S, Payload, Prepared<Vec<Due>>> for Dispatch<S> {
    type Error = BoxError;
    type Future = BoxFuture<'a, Result<Prepared<Vec<Due>>, BoxError>>;

    fn call(&self, cx: tailrace_idempotency::Cx<'a, S>, payload: Payload) -> Self::Future {
        let reactor = Arc::clone(&self.0);
        Box::pin(async move { reactor.take(cx, &payload.0).await })
    }
}

impl<'a, S: Send + Sync + 'static> CallHandler<'a, S, Vec<Due>, Vec<Answered>> for Dispatch<S> {
    type Error = BoxError;
    type Future = BoxFuture<'a, Result<tailrace_idempotency::Answer<Vec<Answered>>, BoxError>>;

    fn call(&self, cx: CallCx<'a, S>, due: Vec<Due>) -> Self::Future {
        let reactor = Arc::clone(&self.0);
        Box::pin(async move { reactor.call(cx, &due).await })
    }
}

impl<'a, S: Send + Sync + 'static> RecordHandler<'a, S, Vec<Due>, Vec<Answered>> for Dispatch<S> {
    type Error = BoxError;
    type Future = BoxFuture<'a, Result<(), BoxError>>;

    fn record(
        &self,
        cx: tailrace_idempotency::Cx<'a, S>,
        due: Vec<Due>,
        answered: Vec<Answered>,
    ) -> Self::Future {
        let reactor = Arc::clone(&self.0);
        Box::pin(async move { reactor.record(cx, due, answered).await })
    }
}

#[cfg(test)]
mod tests {
    use tailrace_idempotency::Breaker;

    use super::*;

    #[test]
    fn calls_about_one_event_have_their_time_outs_together_however_long() {
        let limits = |time_out| Limits { time_out, breaker: Breaker::new() };
        let [five, sixty] = [5, 60].map(|seconds| limits(Duration::from_secs(seconds)));

        assert_eq!(one_after_another(&[five.clone(), sixty]), Duration::from_secs(65));
        assert_eq!(one_after_another(&[limits(Duration::MAX), five]), Duration::MAX);
    }
}
