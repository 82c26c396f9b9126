//! A running saga that goes on under another definition.

use std::collections::BTreeSet;
use std::fmt;
use std::time::SystemTime;

use serde_json::Value;

use crate::definition::{Closure, Definition, Identity, Upcast};
use crate::error::Error;
use crate::instance::{Instance, Phase, StepState, StepStatus};
use crate::machine;
use crate::structure::{Shape, Structure};
use crate::transition::{Happening, Transition};

/// How sagas come from one definition to another.
///
/// Steps are found by their names. One that has begun must be there under its name, and be the same work: its
/// participant knows it so. One that has not may be missing, or be another. One that is new runs when its turn comes;
/// where its turn is over already it has to be passed over by [`skip`](Self::skip).
#[derive(Default)]
pub struct Mapping {
    data: Option<Closure<Upcast>>,
    skipped: BTreeSet<Box<str>>,
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("data", &self.data.is_some())
            .field("skipped", &self.skipped)
            .finish()
    }
}

impl Mapping {
    /// The data stays as it is, and no step is passed over.
    pub fn new() -> Self {
        Self::default()
    }

    /// What becomes of the data. It is given in the newest form of the old definition.
    #[must_use]
    pub fn data(mut self, data: impl Fn(Value) -> Value + Send + Sync + 'static) -> Self {
        self.data = Some(Closure(Box::new(data)));
        self
    }

    /// A step of the new definition that sagas go past which are further already.
    #[must_use]
    pub fn skip(mut self, step: &str) -> Self {
        self.skipped.insert(step.into());
        self
    }
}

/// A saga as it goes on under another definition, with all that comes of that.
///
/// Like [`step`](fn@crate::step) it changes nothing by itself: a dry run is not to write the answer.
///
/// # Errors
/// [`Kind::Definition`](crate::Kind::Definition), with every reason why it can not go on so.
pub fn migrate(
    instance: &Instance,
    from: &Definition,
    to: &Definition,
    mapping: &Mapping,
    now: SystemTime,
) -> Result<Transition, Error> {
    let map = |data: Value| match &mapping.data {
        Some(map) => Ok((map.0)(data)),
        None => Ok(data),
    };
    migrate_by(
        instance,
        (&from.structure(), Some(from)),
        to,
        &Way { skipped: &mapping.skipped, map: &map },
        now,
    )
}

/// A mapping, wherever it comes from.
pub(crate) struct Way<'m> {
    pub(crate) skipped: &'m BTreeSet<Box<str>>,
    /// What becomes of the data, or why it can not be mapped.
    pub(crate) map: &'m dyn Fn(Value) -> Result<Value, String>,
}

/// The same where of the old definition there may be no more than its structure.
pub(crate) fn migrate_by(
    instance: &Instance,
    (from, code): (&Structure, Option<&Definition>),
    to: &Definition,
    way: &Way<'_>,
    now: SystemTime,
) -> Result<Transition, Error> {
    let Way { skipped, map } = *way;
    let target = to.structure();
    let mut faults = faults(instance, from, &target, skipped);
    if code.is_none() && instance.data_version < from.data_version {
        faults.push(needs_upcasters(from.identity()));
    }
    let refused =
        |faults| Error::faults(&format!("saga {} as {}", instance.id, to.identity()), faults);
    if !faults.is_empty() {
        return Err(refused(faults));
    }
    let upcasters = code.into_iter().flat_map(|code| code.upcasters_from(instance.data_version));
    let data = upcasters.fold(instance.data.clone(), |data, upcast| upcast(data));
    let data = map(data).map_err(|fault| refused(vec![fault]))?;
    let furthest = furthest(instance, &target);
    let steps = to.steps().map(|step| match instance.step(step.name()) {
        Some(state) if state.status != StepStatus::Pending => state.clone(),
        _ => {
            let mut state = StepState::new(step.name());
            if Some(step.group()) <= furthest && skipped.contains(step.name()) {
                state.status = StepStatus::Skipped;
            }
            state
        }
    });
    let moved = Instance {
        definition: to.identity().clone(),
        data,
        data_version: to.data_version(),
        steps: steps.collect(),
        ..instance.clone()
    };
    let what = Happening::Migrated {
        from: from.identity().to_string().into(),
        to: to.identity().to_string().into(),
    };
    machine::go_on(to, &moved, what, now)
}

/// Old data can not be brought up to date by a structure.
pub(crate) fn needs_upcasters(from: &Identity) -> String {
    format!(
        "its data is of an older form, which only the code of {from} brings up to date: let an engine have both"
    )
}

/// The last group of the new definition in which something has begun.
fn furthest(instance: &Instance, to: &Structure) -> Option<usize> {
    let has_begun = |step: &&Shape| {
        instance.step(step.name()).is_some_and(|state| state.status != StepStatus::Pending)
    };
    to.steps().iter().filter(has_begun).map(|step| step.group).max()
}

/// Everything for which the saga can not go on so, as far as structures tell.
pub(crate) fn faults(
    instance: &Instance,
    from: &Structure,
    to: &Structure,
    skipped: &BTreeSet<Box<str>>,
) -> Vec<String> {
    let mut faults = Vec::new();
    if instance.definition != *from.identity() {
        faults.push(format!("it follows {}, not {}", instance.definition, from.identity()));
    }
    if instance.phase.is_over() {
        faults.push("it is over".to_owned());
    }
    if instance.data_version > from.data_version {
        faults.push("its data was written by a newer release".to_owned());
    }
    let is_under_way = instance.steps.iter().any(|step| step.operation().is_some());
    if is_under_way && from.replies != to.replies {
        faults.push(format!("its replies come to {}, not {}", from.replies, to.replies));
    }
    let mut last = 0;
    for state in instance.steps.iter().filter(|state| state.status != StepStatus::Pending) {
        let name = &state.name;
        let (Some(old), Some(new)) = (from.step(name), to.step(name)) else {
            faults.push(format!("step {name} has begun, and is not there"));
            continue;
        };
        if old.nature != new.nature {
            faults.push(format!("step {name} has begun, and is something else"));
        }
        if new.group < last {
            faults.push(format!("step {name} has begun, and stands before another one now"));
        }
        last = last.max(new.group);
    }
    if instance.phase == Phase::Running {
        faults.extend(passed(instance, to, skipped));
    }
    faults
}

/// New steps whose turn is over.
fn passed<'a>(
    instance: &'a Instance,
    to: &'a Structure,
    skipped: &'a BTreeSet<Box<str>>,
) -> impl Iterator<Item = String> + 'a {
    let furthest = furthest(instance, to);
    to.steps().iter().filter_map(move |step| {
        let state = instance.step(step.name()).map(|state| state.status);
        let is_new = matches!(state, None | Some(StepStatus::Pending));
        // In a group that is under way it can still be asked for; in one before it, it can not.
        let is_passed = Some(step.group) < furthest;
        let is_skipped = skipped.contains(step.name());
        (is_new && is_passed && !is_skipped)
            .then(|| format!("step {} is new, and its turn is over: skip it", step.name()))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::builder::Saga;
    use crate::fixture::{
        AllocateStock, CapturePayment, CreditReserved, Order, QuoteShipping, ReserveCredit, at,
        order,
    };
    use crate::instance::Status;
    use crate::testing::Scenario;
    use crate::transition::Tick;

    fn old() -> Saga<Order> {
        Saga::define("order", 3)
            .replies("replies")
            .step("reserve", ReserveCredit::of)
            .compensate()
            .step("allocate", AllocateStock::of)
            .compensate()
            .pivot("pay", CapturePayment::of)
            .build()
            .unwrap()
    }

    /// A step more before the two, another pivot, and no allocation.
    fn new(first: &str, replies: &str) -> Saga<Order> {
        Saga::define("order", 4)
            .replies(replies)
            .step(first, QuoteShipping::of)
            .no_effect()
            .step("reserve", ReserveCredit::of)
            .compensate()
            .pivot("pay", CapturePayment::of)
            .build()
            .unwrap()
    }

    fn told(instance: &Instance, to: &Saga<Order>, mapping: &Mapping) -> Vec<String> {
        let error = migrate(instance, old().definition(), to.definition(), mapping, at(9));
        error.unwrap_err().list().to_vec()
    }

    #[test]
    fn a_saga_goes_on_under_another_definition_with_its_timers_and_its_data() {
        let running = Scenario::given(&old(), &order());
        let mapping = Mapping::new().skip("quote").data(|mut data| {
            data["cents"] = json!(5);
            data
        });
        let to = new("quote", "replies");

        let moved =
            migrate(running.instance(), old().definition(), to.definition(), &mapping, at(9))
                .unwrap();

        assert_eq!(moved.instance.definition(), to.definition().identity());
        assert_eq!(moved.instance.data()["cents"], 5);
        assert_eq!(moved.instance.step("quote").unwrap().status(), StepStatus::Skipped);
        assert_eq!(moved.instance.step("reserve"), running.instance().step("reserve"));
        let [timer] = &moved.timers[..] else { panic!("{:?}", moved.timers) };
        assert!(matches!(&timer.tick, Tick::Step { step, .. } if &**step == "reserve"));
        assert_eq!(moved.instance.revision(), running.instance().revision() + 1);
        assert_eq!(moved.commands, []);
    }

    #[test]
    fn a_saga_whose_last_steps_are_gone_completes() {
        let reserved = Scenario::given(&old(), &order())
            .when_done("reserve", &CreditReserved { hold: 3 })
            .when_done("allocate", &());
        let instance = {
            // The pivot is not asked for yet where the one before is not done.
            let mut instance = reserved.instance().clone();
            for step in &mut instance.steps {
                if &*step.name == "pay" {
                    *step = StepState::new("pay");
                }
            }
            instance
        };
        let short = Saga::<Order>::define("order", 4)
            .replies("replies")
            .step("reserve", ReserveCredit::of)
            .compensate()
            .step("allocate", AllocateStock::of)
            .compensate()
            .build()
            .unwrap();

        let moved =
            migrate(&instance, old().definition(), short.definition(), &Mapping::new(), at(9));

        assert_eq!(moved.unwrap().instance.status(), Status::Completed);
    }

    #[test]
    fn everything_that_is_in_the_way_is_told_at_once() {
        let allocating =
            Scenario::given(&old(), &order()).when_done("reserve", &CreditReserved { hold: 3 });

        assert_eq!(
            told(allocating.instance(), &new("quote", "elsewhere"), &Mapping::new()),
            [
                "its replies come to replies, not elsewhere",
                "step allocate has begun, and is not there",
                "step quote is new, and its turn is over: skip it",
            ]
        );
        assert_eq!(
            told(allocating.instance(), &new("allocate", "replies"), &Mapping::new()),
            [
                "step allocate has begun, and is something else",
                "step allocate has begun, and stands before another one now",
            ]
        );
        let over = allocating.when_cancelled().when_undone("allocate").when_undone("reserve");
        assert_eq!(told(over.instance(), &old(), &Mapping::new()), ["it is over"]);
    }
}
