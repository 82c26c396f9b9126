//! How a saga is written down.
//!
//! What may follow what is in the types: a struct has the methods that make sense where it stands, and no others. What
//! types can not say, `build` checks, all of it at once.

use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::correlation::SagaId;
use crate::definition::{
    Closure, Definition, Fold, Forward, OnRefused, OnTimeout, Refuse, Start, Step, StepKind,
    Work as Inner,
};
use crate::draft::Draft;
use crate::error::Error;
use crate::instance::Instance;
use crate::lock::{self, Lock};
use crate::retry::Retry;
use crate::unreadable::{Unreadable, read, write};
use crate::work::{Awaits, CanBeUndone, CannotBeRefused, Does, Work};

/// How long an attempt waits for its answer if nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(60);

/// An event from outside that a saga waits for.
pub trait Signal: Serialize + DeserializeOwned + Send + 'static {
    /// The message type, for example `payment.confirmed.v1`.
    const TYPE: &'static str;
}

/// A saga: its definition, with the type of its data.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use std::time::Duration;
/// # use tailrace_saga::{Command, Compensable, Irrefusable};
/// # #[derive(Serialize, Deserialize)] struct Order { customer: String, cents: i64, hold: Option<i64> }
/// # #[derive(Serialize, Deserialize)] struct ReserveCredit { customer: String, cents: i64 }
/// # #[derive(Serialize, Deserialize)] struct CreditReserved { hold: i64 }
/// # #[derive(Serialize, Deserialize)] struct CreditLimitExceeded { missing_cents: i64 }
/// # impl Command for ReserveCredit {
/// #     const TYPE: &'static str = "credit.reserve.v1";
/// #     const TOPIC: &'static str = "customers.commands";
/// #     type Reply = CreditReserved;
/// #     type Refusal = CreditLimitExceeded;
/// # }
/// # impl Compensable for ReserveCredit {}
/// # #[derive(Serialize, Deserialize)] struct Capture { hold: Option<i64> }
/// # impl Command for Capture {
/// #     const TYPE: &'static str = "payment.capture.v1";
/// #     const TOPIC: &'static str = "payments.commands";
/// #     type Reply = ();
/// #     type Refusal = ();
/// # }
/// use tailrace_saga::{Error, Forward, OnRefused, OnTimeout, Retry, Saga};
///
/// fn reserve_credit(order: &Order) -> ReserveCredit {
///     ReserveCredit { customer: order.customer.clone(), cents: order.cents }
/// }
///
/// fn capture(order: &Order) -> Capture {
///     Capture { hold: order.hold }
/// }
///
/// fn create_order() -> Result<Saga<Order>, Error> {
///     Saga::define("create-order", 1)
///         .deadline(Duration::from_secs(3600))
///         .step("reserve-credit", reserve_credit)
///         .retry(Retry::exponential(Duration::from_millis(200), Duration::from_secs(30)).attempts(8))
///         .timeout(Duration::from_secs(20), OnTimeout::Retry)
///         .on_refused(|_order, _refusal| OnRefused::Abort)
///         .on_reply(|order, reply| order.hold = Some(reply.hold))
///         .compensate()
///         .pivot("capture-payment", capture)
///         .timeout(Duration::from_secs(60), Forward::Park)
///         .build()
/// }
/// # assert!(create_order().is_ok());
/// ```
pub struct Saga<D> {
    definition: Definition,
    data: PhantomData<fn() -> D>,
}

impl<D> Clone for Saga<D> {
    fn clone(&self) -> Self {
        Self { definition: self.definition.clone(), data: PhantomData }
    }
}

impl<D> fmt::Debug for Saga<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Saga").field(self.definition.identity()).finish()
    }
}

impl<D: Serialize + DeserializeOwned + 'static> Saga<D> {
    /// Begins a definition. Everything that a running saga relies on (its steps' names, kinds, order, groups and
    /// messages) stays as it is under one version; what else changes, changes for running sagas too.
    pub fn define(name: &str, version: u32) -> BeforePivot<D> {
        BeforePivot { draft: Draft::new::<D>(name, version), data: PhantomData }
    }

    /// A saga that has not begun: give it [`Input::Start`](crate::Input::Start).
    ///
    /// # Errors
    /// [`Kind::Unreadable`](crate::Kind::Unreadable) where the data can not be written as JSON.
    pub fn instance(&self, id: SagaId, data: &D, now: SystemTime) -> Result<Instance, Error> {
        Ok(Instance::new(&self.definition, id, write("the data", data)?, now))
    }

    /// The data of an instance.
    ///
    /// # Errors
    /// [`Kind::Unreadable`](crate::Kind::Unreadable) where it is not of the saga's type.
    pub fn data(&self, instance: &Instance) -> Result<D, Error> {
        Ok(read("the data", instance.data())?)
    }
}

impl<D> Saga<D> {
    /// The definition without the type of its data.
    pub fn definition(&self) -> &Definition {
        &self.definition
    }
}

impl<D> AsRef<Definition> for Saga<D> {
    fn as_ref(&self) -> &Definition {
        &self.definition
    }
}

/// A saga whose steps can all be undone so far.
#[must_use = "a definition ends with `build()`"]
pub struct BeforePivot<D> {
    draft: Draft,
    data: PhantomData<fn() -> D>,
}

/// A step before the pivot, of which must be said what undoes it: `compensate()` or `no_effect()`.
#[must_use = "a step before the pivot ends with `compensate()` or `no_effect()`"]
pub struct StepNeedsCompensation<P, W> {
    place: P,
    current: Step,
    work: PhantomData<fn() -> W>,
}

/// Steps that are done side by side. The next group begins when all of them are done.
#[must_use = "the branches are given back to `parallel`"]
pub struct Branches<D> {
    draft: Draft,
    data: PhantomData<fn() -> D>,
}

/// The pivot: if it is refused everything before it is undone, and if it is done the saga only goes forward.
#[must_use = "a definition ends with `build()`"]
pub struct Pivot<D, W> {
    draft: Draft,
    current: Step,
    types: PhantomData<fn() -> (D, W)>,
}

/// A saga behind its pivot: what follows is asked for until it is done.
#[must_use = "a definition ends with `build()`"]
pub struct AfterPivot<D, W> {
    draft: Draft,
    current: Step,
    types: PhantomData<fn() -> (D, W)>,
}

/// Where a step before the pivot stands: in the sequence, or among branches.
pub trait Place: Sized {
    /// The saga's data.
    type Data: Serialize + DeserializeOwned + 'static;

    #[doc(hidden)]
    fn take(self, step: Step) -> Self;
}

impl<D: Serialize + DeserializeOwned + 'static> Place for BeforePivot<D> {
    type Data = D;

    fn take(mut self, step: Step) -> Self {
        self.draft.next_group();
        self.draft.push(step);
        self
    }
}

impl<D: Serialize + DeserializeOwned + 'static> Place for Branches<D> {
    type Data = D;

    fn take(mut self, step: Step) -> Self {
        self.draft.push(step);
        self
    }
}

impl<D: Serialize + DeserializeOwned + 'static> BeforePivot<D> {
    /// The topic to which participants reply. Default: `NAME.replies`, with the saga's name.
    pub fn replies(mut self, topic: &str) -> Self {
        self.draft.replies = topic.into();
        self
    }

    /// A saga that has not asked for its pivot so long after its start is undone. Its actions before the pivot carry
    /// the deadline, and participants begin none of them behind it. Default: none.
    pub fn deadline(mut self, after: Duration) -> Self {
        self.draft.deadline = Some(after);
        self
    }

    /// A message that starts a saga, with the data that is made of its payload.
    pub fn start_on<E: DeserializeOwned + 'static>(
        mut self,
        topic: &str,
        message_type: &str,
        data: impl Fn(E) -> D + Send + Sync + 'static,
    ) -> Self {
        let begin = move |payload: &Value| write("the data", &data(read("the message", payload)?));
        self.draft.starts.push(Start {
            topic: topic.into(),
            message_type: message_type.into(),
            begin: Closure(Box::new(begin)),
        });
        self
    }

    /// How the data of the version before this one becomes that of the next: JSON to JSON, in the order in which the
    /// versions came. None is ever taken away while a saga may hold such data.
    pub fn upcast(mut self, upcast: impl Fn(Value) -> Value + Send + Sync + 'static) -> Self {
        self.draft.upcasters.push(Closure(Box::new(upcast)));
        self
    }

    /// The next step.
    pub fn step<W: Work>(
        self,
        name: &str,
        work: impl Does<D, W>,
    ) -> StepNeedsCompensation<Self, W> {
        StepNeedsCompensation::new(self, name, work)
    }

    /// Steps that are done side by side.
    pub fn parallel(mut self, branches: impl FnOnce(Branches<D>) -> Branches<D>) -> Self {
        self.draft.next_group();
        let steps = self.draft.steps.len();
        let mut after = branches(Branches { draft: self.draft, data: PhantomData });
        if after.draft.steps.len() == steps {
            after.draft.faults.push("a parallel group has no branch".to_owned());
        }
        Self { draft: after.draft, data: PhantomData }
    }

    /// Waits for a signal, so long at most. One that came before is taken at once.
    pub fn wait<S: Signal>(
        self,
        name: &str,
        within: Duration,
        on_timeout: OnTimeout,
        fold: impl Fn(&mut D, S) + Send + Sync + 'static,
    ) -> Self {
        let mut step = waiting::<D, S>(name, StepKind::NoEffect, within, fold);
        step.on_timeout = on_timeout;
        self.take(step)
    }

    /// The locks that sagas of this definition take, in the order in which they take them. All definitions of a service
    /// had best share one constant: an engine takes none whose orders contradict each other. Default: none.
    pub fn lock_order(mut self, order: &[&str]) -> Self {
        self.draft.lock_order = order.iter().map(|name| (*name).into()).collect();
        self
    }

    /// Takes a lock, for all of these keys, and keeps it until the saga has ended. The step is named after the lock.
    ///
    /// Whoever asks first has it first. Keys are taken one after another in their order, whatever the order in which
    /// they are given; without any, nothing is locked. A saga takes each lock once, in the declared
    /// [order](Self::lock_order), and none behind its pivot or in a branch; so no two sagas wait for each other.
    pub fn lock<K>(self, lock: Lock, keys: impl Fn(&D) -> K + Send + Sync + 'static) -> Self
    where
        K: IntoIterator<Item = String>,
    {
        let keys = move |data: &Value| {
            lock::in_order(keys(&read("the data", data)?))
                .map_err(|what| Unreadable { what: format!("the lock {}: {what}", lock.name) })
        };
        let work = Inner::Lock { lock, keys: Closure(Box::new(keys)) };
        let mut step = new_step(lock.name, StepKind::NoEffect, work);
        step.timeout = lock.wait;
        step.on_timeout = lock.on_timeout;
        self.take(step)
    }

    /// The point of no return.
    pub fn pivot<W: Work>(self, name: &str, work: impl Does<D, W>) -> Pivot<D, W> {
        let mut step = new_step(name, StepKind::Pivot, work.inner().0);
        step.retry = Retry::RETRIABLE;
        step.can_be_refused = W::can_be_refused();
        let mut draft = self.draft;
        draft.next_group();
        Pivot { draft, current: step, types: PhantomData }
    }

    /// The saga, if it is right.
    ///
    /// # Errors
    /// [`Kind::Definition`](crate::Kind::Definition), with every fault.
    pub fn build(self) -> Result<Saga<D>, Error> {
        Ok(Saga { definition: self.draft.build()?, data: PhantomData })
    }
}

impl<D: Serialize + DeserializeOwned + 'static> Branches<D> {
    /// Another branch.
    pub fn step<W: Work>(
        self,
        name: &str,
        work: impl Does<D, W>,
    ) -> StepNeedsCompensation<Self, W> {
        StepNeedsCompensation::new(self, name, work)
    }
}

impl<P: Place, W: Work> StepNeedsCompensation<P, W> {
    fn new(place: P, name: &str, work: impl Does<P::Data, W>) -> Self {
        let step = new_step(name, StepKind::Compensable, work.inner().0);
        Self { place, current: step, work: PhantomData }
    }

    /// When it is asked for again. Default: 1 s doubling to 60 s, 10 attempts, within an hour.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.current.retry = retry;
        self
    }

    /// How long an attempt waits for its answer, and what follows. Default: 60 s, [`OnTimeout::Retry`].
    pub fn timeout(mut self, timeout: Duration, then: OnTimeout) -> Self {
        self.current.timeout = timeout;
        self.current.on_timeout = then;
        self
    }

    /// How a refusal comes into the saga's data, and what follows. Default: it is dropped, and [`OnRefused::Abort`]
    /// follows, as it does where nothing is returned.
    pub fn on_refused<F, T>(mut self, decide: F) -> Self
    where
        F: Fn(&mut P::Data, W::Refusal) -> T + Send + Sync + 'static,
        T: Into<OnRefused>,
    {
        self.current.on_refused = Some(refusal(move |data, refused| decide(data, refused).into()));
        self
    }

    /// How the reply comes into the saga's data. Default: it is dropped.
    pub fn on_reply<F>(mut self, fold: F) -> Self
    where
        F: Fn(&mut P::Data, W::Reply) + Send + Sync + 'static,
    {
        self.current.on_reply = Some(reply(fold));
        self
    }

    /// When its compensation is asked for again; at the end of that a person decides. Default: 1 s doubling to 5
    /// minutes, 100 attempts, within a day.
    pub fn retry_compensation(mut self, retry: Retry) -> Self {
        self.current.retry_compensation = retry;
        self
    }

    /// It is undone by its participant. The compensation is the command itself, sent again to be undone: the
    /// participant knows what it did.
    pub fn compensate(self) -> P
    where
        W: CanBeUndone,
    {
        self.place.take(self.current)
    }

    /// It leaves nothing that would have to be undone.
    pub fn no_effect(mut self) -> P {
        self.current.kind = StepKind::NoEffect;
        self.place.take(self.current)
    }
}

impl<D: Serialize + DeserializeOwned + 'static, W: Work> Pivot<D, W> {
    /// When it is asked for again. Default: 1 s doubling to 5 minutes, 100 attempts, within a day.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.current.retry = retry;
        self
    }

    /// How long an attempt waits for its answer, and what follows. Default: 60 s, [`Forward::Retry`].
    pub fn timeout(mut self, timeout: Duration, then: Forward) -> Self {
        self.current.wait_forward(timeout, then);
        self
    }

    /// How its refusal comes into the saga's data; then everything before it is undone.
    pub fn on_refused<F>(mut self, fold: F) -> Self
    where
        F: Fn(&mut D, W::Refusal) + Send + Sync + 'static,
    {
        self.current.on_refused = Some(refusal(move |data, refusal| {
            fold(data, refusal);
            OnRefused::Abort
        }));
        self
    }

    /// How the reply comes into the saga's data. Default: it is dropped.
    pub fn on_reply<F>(mut self, fold: F) -> Self
    where
        F: Fn(&mut D, W::Reply) + Send + Sync + 'static,
    {
        self.current.on_reply = Some(reply(fold));
        self
    }

    /// The next step, which can not be refused.
    pub fn retriable<N>(self, name: &str, work: impl Does<D, N>) -> AfterPivot<D, N>
    where
        N: Work + CannotBeRefused,
    {
        AfterPivot::<D, N>::behind(self.draft, self.current, retriable(name, work), false)
    }

    /// Waits for a signal; if it does not come within that time, a person decides. One that came before is taken at
    /// once.
    pub fn wait<S: Signal>(
        self,
        name: &str,
        within: Duration,
        fold: impl Fn(&mut D, S) + Send + Sync + 'static,
    ) -> AfterPivot<D, Awaits<S>> {
        let mut step = waiting::<D, S>(name, StepKind::Retriable, within, fold);
        step.on_timeout = OnTimeout::Park;
        AfterPivot::<D, Awaits<S>>::behind(self.draft, self.current, step, false)
    }

    /// The saga, if it is right.
    ///
    /// # Errors
    /// [`Kind::Definition`](crate::Kind::Definition), with every fault.
    pub fn build(mut self) -> Result<Saga<D>, Error> {
        self.draft.push(self.current);
        Ok(Saga { definition: self.draft.build()?, data: PhantomData })
    }
}

impl<D: Serialize + DeserializeOwned + 'static, W: Work> AfterPivot<D, W> {
    /// A step in the group behind, or in that of the step before.
    fn behind(mut draft: Draft, before: Step, current: Step, alongside: bool) -> Self {
        draft.push(before);
        if !alongside {
            draft.next_group();
        }
        Self { draft, current, types: PhantomData }
    }

    /// When it is asked for again. Default: 1 s doubling to 5 minutes, 100 attempts, within a day.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.current.retry = retry;
        self
    }

    /// How long an attempt waits for its answer, and what follows. Default: 60 s, [`Forward::Retry`].
    pub fn timeout(mut self, timeout: Duration, then: Forward) -> Self {
        self.current.wait_forward(timeout, then);
        self
    }

    /// How the reply comes into the saga's data. Default: it is dropped.
    pub fn on_reply<F>(mut self, fold: F) -> Self
    where
        F: Fn(&mut D, W::Reply) + Send + Sync + 'static,
    {
        self.current.on_reply = Some(reply(fold));
        self
    }

    /// The next step, which can not be refused.
    pub fn retriable<N>(self, name: &str, work: impl Does<D, N>) -> AfterPivot<D, N>
    where
        N: Work + CannotBeRefused,
    {
        AfterPivot::<D, N>::behind(self.draft, self.current, retriable(name, work), false)
    }

    /// Waits for a signal; if it does not come within that time, a person decides. One that came before is taken at
    /// once.
    pub fn wait<S: Signal>(
        self,
        name: &str,
        within: Duration,
        fold: impl Fn(&mut D, S) + Send + Sync + 'static,
    ) -> AfterPivot<D, Awaits<S>> {
        let mut step = waiting::<D, S>(name, StepKind::Retriable, within, fold);
        step.on_timeout = OnTimeout::Park;
        AfterPivot::<D, Awaits<S>>::behind(self.draft, self.current, step, false)
    }

    /// Another step, which can not be refused, side by side with the one before.
    pub fn alongside<N>(self, name: &str, work: impl Does<D, N>) -> AfterPivot<D, N>
    where
        N: Work + CannotBeRefused,
    {
        AfterPivot::<D, N>::behind(self.draft, self.current, retriable(name, work), true)
    }

    /// The saga, if it is right.
    ///
    /// # Errors
    /// [`Kind::Definition`](crate::Kind::Definition), with every fault.
    pub fn build(mut self) -> Result<Saga<D>, Error> {
        self.draft.push(self.current);
        Ok(Saga { definition: self.draft.build()?, data: PhantomData })
    }
}

impl Step {
    fn wait_forward(&mut self, timeout: Duration, then: Forward) {
        self.timeout = timeout;
        self.on_timeout = match then {
            Forward::Retry => OnTimeout::Retry,
            Forward::Park => OnTimeout::Park,
        };
    }
}

fn new_step(name: &str, kind: StepKind, work: Inner) -> Step {
    Step {
        name: name.into(),
        group: 0,
        kind,
        can_be_refused: true,
        work,
        timeout: TIMEOUT,
        on_timeout: OnTimeout::Retry,
        retry: Retry::ACTION,
        retry_compensation: Retry::COMPENSATION,
        on_reply: None,
        on_refused: None,
    }
}

fn retriable<D, W>(name: &str, work: impl Does<D, W>) -> Step {
    let mut step = new_step(name, StepKind::Retriable, work.inner().0);
    step.retry = Retry::RETRIABLE;
    step
}

fn waiting<D, S: Signal>(
    name: &str,
    kind: StepKind,
    within: Duration,
    fold: impl Fn(&mut D, S) + Send + Sync + 'static,
) -> Step
where
    D: Serialize + DeserializeOwned + 'static,
{
    let mut step = new_step(name, kind, Inner::Wait { signal_type: S::TYPE });
    step.timeout = within;
    step.on_reply = Some(reply(fold));
    step
}

fn reply<D, R>(fold: impl Fn(&mut D, R) + Send + Sync + 'static) -> Closure<Fold>
where
    D: Serialize + DeserializeOwned,
    R: DeserializeOwned,
{
    Closure(Box::new(move |data, reply| {
        let mut data: D = read("the data", data)?;
        fold(&mut data, read("the reply", reply)?);
        write("the data", &data)
    }))
}

fn refusal<D, R>(decide: impl Fn(&mut D, R) -> OnRefused + Send + Sync + 'static) -> Closure<Refuse>
where
    D: Serialize + DeserializeOwned,
    R: DeserializeOwned,
{
    Closure(Box::new(move |data, refusal| {
        let mut data: D = read("the data", data)?;
        let then = decide(&mut data, read("the refusal", refusal)?);
        Ok((write("the data", &data)?, then))
    }))
}

impl<D> fmt::Debug for BeforePivot<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.draft.fmt(f)
    }
}

impl<D> fmt::Debug for Branches<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.draft.fmt(f)
    }
}

impl<P: fmt::Debug, W> fmt::Debug for StepNeedsCompensation<P, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StepNeedsCompensation").field(&self.place).field(&self.current).finish()
    }
}

impl<D, W> fmt::Debug for Pivot<D, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pivot").field(&self.draft).field(&self.current).finish()
    }
}

impl<D, W> fmt::Debug for AfterPivot<D, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AfterPivot").field(&self.draft).field(&self.current).finish()
    }
}
