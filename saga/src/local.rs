//! Steps that the orchestrator does itself, in its own transaction and without a message.

use std::fmt;
use std::future::ready;
use std::marker::PhantomData;
use std::pin::Pin;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::PgConnection;
use tailrace_idempotency::BoxError;

use crate::correlation::{Answer, Correlation, Operation, SagaId};
use crate::definition::{Closure, Definition};
use crate::instance::Instance;
use crate::unreadable::{read, write};

/// What a local step works with.
#[derive(Debug)]
#[non_exhaustive]
pub struct LocalCx<'a> {
    /// The connection inside the transaction in which the saga goes on.
    pub conn: &'a mut PgConnection,
    /// The saga.
    pub saga: SagaId,
    /// Which step it is, and whether it is done or undone.
    pub of: &'a Correlation,
    /// The saga as it stands, before this step is over: which steps are done, and why it is undone if it is.
    pub instance: &'a Instance,
    /// What messages of the saga are tied to.
    pub(crate) cause: Vec<(String, String)>,
}

impl LocalCx<'_> {
    /// The attributes that tie a message of the step's own to what has caused it, as
    /// [`participant::Cx::cause`](crate::participant::Cx::cause) has them: the trace and the conversation of the saga, and
    /// the message upon which it goes on; none of the latter where a timer is the cause.
    ///
    /// ```no_run
    /// # use tailrace_saga::LocalCx;
    /// # use tailrace_outbox::Message;
    /// async fn tell(cx: LocalCx<'_>) -> Result<(), tailrace_outbox::Error> {
    ///     let told = Message::builder("orders", "order.approved.v1")
    ///         .source("/orders")
    ///         .caused_by(cx.cause())
    ///         .build()?;
    ///     tailrace_outbox::write(cx.conn, &told).await.map(drop)
    /// }
    /// ```
    pub fn cause(&self) -> Vec<(String, String)> {
        self.cause.clone()
    }
}

/// A local step: any `async fn(LocalCx<'_>, Data) -> Result<Result<Reply, Refusal>, Error>`, as that of a participant;
/// or for its compensation `-> Result<(), Error>`.
///
/// A refusal and an error roll back what it did. An error is an attempt that is over: the step's retry policy says when it
/// runs again and how often, and what follows the last one is the step's [`OnTimeout`](crate::OnTimeout). The saga keeps
/// the error's text, at most 500 characters of it; of what Postgres says the SQLSTATE alone.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no local step of a saga with the data `{D}`",
    note = "a local step is an `async fn(LocalCx<'_>, Data) -> Result<Result<Reply, Refusal>, Error>`; its compensation is one `-> Result<(), Error>`"
)]
pub trait LocalHandler<'a, D, O>: Send + Sync {
    /// Its error.
    type Error: Into<BoxError>;
    /// The running step.
    type Future: Future<Output = Result<O, Self::Error>> + Send + 'a;

    /// Starts it.
    fn call(&self, cx: LocalCx<'a>, data: D) -> Self::Future;
}

impl<'a, D, O, F, Fut, Err> LocalHandler<'a, D, O> for F
where
    F: Fn(LocalCx<'a>, D) -> Fut + Send + Sync,
    Fut: Future<Output = Result<O, Err>> + Send + 'a,
    Err: Into<BoxError>,
{
    type Error = Err;
    type Future = Fut;

    fn call(&self, cx: LocalCx<'a>, data: D) -> Fut {
        self(cx, data)
    }
}

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A local step without its types: from the data to the answer and its payload.
pub(crate) type LocalRun = dyn for<'a> Fn(LocalCx<'a>, &Value) -> BoxFuture<'a, Result<(Answer, Value), BoxError>>
    + Send
    + Sync;

/// A local step that can not be undone.
#[derive(Debug, Clone, Copy)]
pub enum NotUndone {}

/// A local step that can be undone.
#[derive(Debug, Clone, Copy)]
pub enum Undone {}

/// From the data to the reply, the refusal, and whether it can be undone.
type Types<D, R, F, U> = PhantomData<fn(D) -> (R, F, U)>;

/// A local step, made by [`local`].
pub struct Local<D, R, F, U = NotUndone> {
    pub(crate) run: Closure<LocalRun>,
    pub(crate) undo: Option<Closure<LocalRun>>,
    types: Types<D, R, F, U>,
}

impl<D, R, F, U> fmt::Debug for Local<D, R, F, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").field("can_be_undone", &self.undo.is_some()).finish()
    }
}

/// A step in the orchestrator's own database: it runs in the transaction in which the saga goes on, and needs no
/// message.
pub fn local<D, R, F, H>(handler: H) -> Local<D, R, F>
where
    D: DeserializeOwned + Send + 'static,
    R: Serialize + 'static,
    F: Serialize + 'static,
    H: for<'a> LocalHandler<'a, D, Result<R, F>> + 'static,
{
    let run = erased(handler, |answer| match answer {
        Ok(reply) => Ok((Answer::Done, write("a local reply", &reply)?)),
        Err(refusal) => Ok((Answer::Refused, write("a local refusal", &refusal)?)),
    });
    Local { run, undo: None, types: PhantomData }
}

impl<D, R, F> Local<D, R, F>
where
    D: DeserializeOwned + Send + 'static,
{
    /// What undoes it.
    #[must_use]
    pub fn undo<H>(self, handler: H) -> Local<D, R, F, Undone>
    where
        H: for<'a> LocalHandler<'a, D, ()> + 'static,
    {
        let undo = erased(handler, |()| Ok((Answer::Done, Value::Null)));
        Local { run: self.run, undo: Some(undo), types: PhantomData }
    }
}

type Answered = Result<(Answer, Value), crate::unreadable::Unreadable>;

fn erased<D, O, H>(handler: H, answered: fn(O) -> Answered) -> Closure<LocalRun>
where
    D: DeserializeOwned + Send + 'static,
    O: 'static,
    H: for<'a> LocalHandler<'a, D, O> + 'static,
{
    Closure(Box::new(move |cx, data| {
        let data = match read::<D>("the data", data) {
            Ok(data) => data,
            Err(unreadable) => return Box::pin(ready(Err(unreadable.what.into()))),
        };
        let running = handler.call(cx, data);
        Box::pin(async move {
            let answer = running.await.map_err(Into::into)?;
            answered(answer).map_err(|unreadable| unreadable.what.into())
        })
    }))
}

/// Runs a local step of a saga. The answer and its payload are what
/// [`Input::Reply`](crate::Input::Reply) takes.
///
/// # Errors
/// That of the step itself; what it did is to be rolled back.
pub(crate) async fn run(
    definition: &Definition,
    step: &str,
    operation: Operation,
    data: &Value,
    cx: LocalCx<'_>,
) -> Result<(Answer, Value), BoxError> {
    let step = definition.step(step).ok_or(NoLocal)?;
    step.local(operation)?(cx, data).await
}

/// The step is not done by the engine, or not in that direction.
#[derive(Debug, thiserror::Error)]
#[error("the step is not local in that direction")]
pub(crate) struct NoLocal;
