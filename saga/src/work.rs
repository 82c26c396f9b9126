//! What can stand in a step: a command, a local function or another saga.

use std::any::TypeId;
use std::fmt;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::builder::{Saga, Signal};
use crate::command::{Command, Compensable, Irrefusable};
use crate::definition::{Closure, Work as Inner};
use crate::local::{Local, Undone};
use crate::unreadable::{read, write};

/// What kind of work a step is, and with what it ends.
pub trait Work {
    /// What it answers with when it is done.
    type Reply: DeserializeOwned;
    /// What it answers with when it is refused.
    type Refusal: DeserializeOwned;

    #[doc(hidden)]
    fn can_be_refused() -> bool;
}

fn is_refusal<F: 'static>() -> bool {
    TypeId::of::<F>() != TypeId::of::<Irrefusable>()
}

/// Asks a participant, by this command.
#[derive(Debug)]
pub enum Asks<C> {
    #[doc(hidden)]
    Never(std::convert::Infallible, PhantomData<C>),
}

/// Is done by the engine in its own transaction.
#[derive(Debug)]
pub enum Locally<R, F, U> {
    #[doc(hidden)]
    Never(std::convert::Infallible, PhantomData<(R, F, U)>),
}

/// Is another saga, with this data.
#[derive(Debug)]
pub enum Part<D> {
    #[doc(hidden)]
    Never(std::convert::Infallible, PhantomData<D>),
}

/// Waits for this signal.
#[derive(Debug)]
pub enum Awaits<S> {
    #[doc(hidden)]
    Never(std::convert::Infallible, PhantomData<S>),
}

impl<C: Command> Work for Asks<C> {
    type Reply = C::Reply;
    type Refusal = C::Refusal;

    fn can_be_refused() -> bool {
        is_refusal::<C::Refusal>()
    }
}

impl<R: DeserializeOwned, F: DeserializeOwned + 'static, U> Work for Locally<R, F, U> {
    type Reply = R;
    type Refusal = F;

    fn can_be_refused() -> bool {
        is_refusal::<F>()
    }
}

impl<D: DeserializeOwned> Work for Part<D> {
    type Reply = D;
    /// The part says why it was undone in its own journal.
    type Refusal = Option<Irrefusable>;

    /// What the saga itself says of that counts.
    fn can_be_refused() -> bool {
        true
    }
}

impl<S: Signal> Work for Awaits<S> {
    type Reply = S;
    type Refusal = Irrefusable;

    fn can_be_refused() -> bool {
        false
    }
}

/// Work that can be undone.
#[diagnostic::on_unimplemented(
    message = "this step has no compensation",
    label = "nothing undoes it",
    note = "give a local step its compensation: `local(do_it).undo(undo_it)`"
)]
pub trait CanBeUndone {}

impl<C: Compensable> CanBeUndone for Asks<C> {}
impl<R, F> CanBeUndone for Locally<R, F, Undone> {}
impl<D> CanBeUndone for Part<D> {}

/// Work that nobody can refuse, as what follows the pivot must be.
#[diagnostic::on_unimplemented(
    message = "behind the pivot nothing can be refused",
    label = "this can be refused",
    note = "put the step before the pivot, or let its command have `type Refusal = Irrefusable`"
)]
pub trait CannotBeRefused {}

impl<C: Command<Refusal = Irrefusable>> CannotBeRefused for Asks<C> {}
impl<R, U> CannotBeRefused for Locally<R, Irrefusable, U> {}
// Which saga it is, is known when the whole is built.
impl<D> CannotBeRefused for Part<D> {}

/// What can be given to a step of a saga with the data `D`: a function from the data to a [`Command`], a
/// [`local`](crate::local()) function, or [`part`] for another saga.
#[diagnostic::on_unimplemented(
    message = "this can not be a step of a saga with the data `{D}`",
    label = "no step of a saga with the data `{D}`",
    note = "a step is a function `fn(&{D}) -> impl Command`, a `local(…)` function with that data, or a `part(…)`"
)]
pub trait Does<D, W> {
    #[doc(hidden)]
    fn inner(self) -> DoesInner;
}

/// A step's work without its types.
#[derive(Debug)]
pub struct DoesInner(pub(crate) Inner);

impl<D, C, F> Does<D, Asks<C>> for F
where
    D: DeserializeOwned,
    C: Command,
    F: Fn(&D) -> C + Send + Sync + 'static,
{
    fn inner(self) -> DoesInner {
        let build = move |data: &Value| {
            let command = self(&read::<D>("the data", data)?);
            Ok((command.target(), write("the command", &command)?))
        };
        DoesInner(Inner::Command {
            topic: C::TOPIC,
            message_type: C::TYPE,
            build: Closure(Box::new(build)),
        })
    }
}

impl<D, R, F, U> Does<D, Locally<R, F, U>> for Local<D, R, F, U> {
    fn inner(self) -> DoesInner {
        DoesInner(Inner::Local { run: self.run, undo: self.undo })
    }
}

/// Another saga as a step, made by [`part`].
pub struct PartOf<D, P> {
    saga: Saga<P>,
    data: Box<dyn Fn(&D) -> P + Send + Sync>,
}

impl<D, P> fmt::Debug for PartOf<D, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PartOf").field(&self.saga.definition().identity()).finish()
    }
}

/// Another saga as a step: it is started with the data that `data` makes of this saga's, and its own data at its end is
/// the reply.
///
/// The step is done when that saga has completed, and refused when it was undone. If this saga is undone later, that
/// one is too; so one that has a pivot can only stand in the place of the pivot or behind it. Behind the pivot nothing can
/// be refused, so there stands only a saga that begins with its pivot, which nobody may refuse
/// ([`Irrefusable`]): any other one may be undone by itself, when a step is refused or late, or by its deadline.
///
/// An aborted part answers nothing: its whole asks for it until its attempts are used up, and then goes on as after any
/// time-out. Locks that a part takes are free when it has completed: see [`Lock`](crate::Lock).
pub fn part<D, P>(saga: Saga<P>, data: impl Fn(&D) -> P + Send + Sync + 'static) -> PartOf<D, P> {
    PartOf { saga, data: Box::new(data) }
}

impl<D, P> Does<D, Part<P>> for PartOf<D, P>
where
    D: DeserializeOwned + 'static,
    P: Serialize + 'static,
{
    fn inner(self) -> DoesInner {
        let make = self.data;
        let build = move |data: &Value| {
            let data = make(&read::<D>("the data", data)?);
            Ok((None, write("the data of the part", &data)?))
        };
        let definition = self.saga.definition().clone();
        DoesInner(Inner::Part { definition, build: Closure(Box::new(build)) })
    }
}
