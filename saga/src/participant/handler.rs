//! The shapes of what a participant registers.

use std::pin::Pin;

use sqlx::PgConnection;
use tailrace_idempotency::{BoxError, Meta};

use crate::command::Command;
use crate::correlation::Correlation;

/// What an action or its compensation works with.
#[derive(Debug)]
#[non_exhaustive]
pub struct Cx<'a, S = ()> {
    /// The connection inside the transaction that also holds the barrier and the reply. What stands for
    /// [`tailrace_idempotency::Cx::conn`] stands for it too.
    pub conn: &'a mut PgConnection,
    /// Which step of which saga it is for.
    pub saga: &'a Correlation,
    /// What the command's record says about itself.
    pub meta: &'a Meta,
    /// The state given to [`Config::state`](tailrace_idempotency::Config::state).
    pub state: &'a S,
}

impl<'a, S> Cx<'a, S> {
    pub(crate) fn new(
        conn: &'a mut PgConnection,
        saga: &'a Correlation,
        meta: &'a Meta,
        state: &'a S,
    ) -> Self {
        Self { conn, saga, meta, state }
    }

    /// The headers that tie a message of the handler's own to the one that caused it, as
    /// [`tailrace_idempotency::Cx::cause`].
    pub fn cause(&self) -> Vec<(String, String)> {
        self.meta.cause()
    }
}

/// The action of a step: any `async fn(Cx<'_, S>, C) -> Result<Result<C::Reply, C::Refusal>, impl Into<BoxError>>`.
///
/// It answers with the reply, or refuses for reasons of the business: a refusal leaves nothing of what the action
/// changed, and stands as the answer to every repetition. An error is neither: the transaction is rolled back, and the
/// command is tried again, as with any [handler](tailrace_idempotency::Handler).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not the action of `{C}`",
    note = "an action is an `async fn(Cx<'_, State>, Command) -> Result<Result<Command::Reply, Command::Refusal>, Error>` whose `State` is that of the consumer's `Config`"
)]
pub trait Action<'a, S, C: Command>: Send + Sync {
    /// The action's error.
    type Error: Into<BoxError>;
    /// The running action.
    type Future: Future<Output = Result<Result<C::Reply, C::Refusal>, Self::Error>> + Send + 'a;

    /// Starts the action.
    fn run(&self, cx: Cx<'a, S>, command: C) -> Self::Future;
}

impl<'a, S, C, F, Fut, Err> Action<'a, S, C> for F
where
    S: 'a,
    C: Command,
    F: Fn(Cx<'a, S>, C) -> Fut + Send + Sync,
    Fut: Future<Output = Result<Result<C::Reply, C::Refusal>, Err>> + Send + 'a,
    Err: Into<BoxError>,
{
    type Error = Err;
    type Future = Fut;

    fn run(&self, cx: Cx<'a, S>, command: C) -> Fut {
        self(cx, command)
    }
}

/// The compensation of an action: any `async fn(Cx<'_, S>, C, C::Reply) -> Result<(), impl Into<BoxError>>`.
///
/// It is given the command and what the action has answered, and runs once, after an action that was done and in no
/// other case. It cannot refuse; an error is tried again.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not the compensation of `{C}`",
    note = "a compensation is an `async fn(Cx<'_, State>, Command, Command::Reply) -> Result<(), Error>` whose `State` is that of the consumer's `Config`"
)]
pub trait Undo<'a, S, C: Command>: Send + Sync {
    /// The compensation's error.
    type Error: Into<BoxError>;
    /// The running compensation.
    type Future: Future<Output = Result<(), Self::Error>> + Send + 'a;

    /// Starts the compensation.
    fn run(&self, cx: Cx<'a, S>, command: C, output: C::Reply) -> Self::Future;
}

impl<'a, S, C, F, Fut, Err> Undo<'a, S, C> for F
where
    S: 'a,
    C: Command,
    F: Fn(Cx<'a, S>, C, C::Reply) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), Err>> + Send + 'a,
    Err: Into<BoxError>,
{
    type Error = Err;
    type Future = Fut;

    fn run(&self, cx: Cx<'a, S>, command: C, output: C::Reply) -> Fut {
        self(cx, command, output)
    }
}

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What an action ends with: a reply, or a refusal.
pub(crate) type Ran<C> = Result<Result<<C as Command>::Reply, <C as Command>::Refusal>, BoxError>;

/// An [`Action`] without its own type.
pub(crate) trait AnyAction<S, C: Command>: Send + Sync {
    fn run<'a>(&self, cx: Cx<'a, S>, command: C) -> BoxFuture<'a, Ran<C>>;
}

/// An [`Undo`] without its own type.
pub(crate) trait AnyUndo<S, C: Command>: Send + Sync {
    fn run<'a>(
        &self,
        cx: Cx<'a, S>,
        command: C,
        output: C::Reply,
    ) -> BoxFuture<'a, Result<(), BoxError>>;
}

/// Takes a function for what it is.
pub(crate) struct Plain<F>(pub(crate) F);

impl<S: 'static, C: Command, F: for<'a> Action<'a, S, C>> AnyAction<S, C> for Plain<F> {
    fn run<'a>(&self, cx: Cx<'a, S>, command: C) -> BoxFuture<'a, Ran<C>> {
        let running = self.0.run(cx, command);
        Box::pin(async move { running.await.map_err(Into::into) })
    }
}

impl<S: 'static, C: Command, F: for<'a> Undo<'a, S, C>> AnyUndo<S, C> for Plain<F> {
    fn run<'a>(
        &self,
        cx: Cx<'a, S>,
        command: C,
        output: C::Reply,
    ) -> BoxFuture<'a, Result<(), BoxError>> {
        let running = self.0.run(cx, command, output);
        Box::pin(async move { running.await.map_err(Into::into) })
    }
}
