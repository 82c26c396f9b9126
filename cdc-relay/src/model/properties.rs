//! What must hold in every state, and what must be reached for that to mean something.

use stateright::Property;

use super::session::Session;
use super::wal::Number;
use super::{KEYS, Relay, Relays, State, TURNS};

pub(super) const ONCE: &str = "each message is published once";
pub(super) const IN_ORDER: &str = "records of a key are in the order of the commits";
pub(super) const NOTHING_LOST: &str = "what is checkpointed or flushed is published";
pub(super) const CHECKPOINTED: &str = "the slot is never ahead of the newest committed checkpoint";
pub(super) const NO_FALSE_GAP: &str = "no relay finds a gap where there is none";
pub(super) const COMPLETE: &str = "when nothing is left to do everything is published";
pub(super) const UNDISTURBED: &str = "a relay that nothing has befallen is not fenced";

pub(super) const ENDS_WELL: &str = "everything is published after the last fault";
pub(super) const SPLIT: &str = "a session goes on inside a split transaction";
pub(super) const SHARED: &str = "two sessions own a producer each";
pub(super) const ZOMBIE: &str = "a relay without the slot publishes";

pub(super) fn all() -> Vec<Property<Relays>> {
    vec![
        Property::always(ONCE, once),
        Property::always(IN_ORDER, in_order),
        Property::always(NOTHING_LOST, nothing_lost),
        Property::always(CHECKPOINTED, checkpointed),
        Property::always(NO_FALSE_GAP, no_false_gap),
        Property::always(COMPLETE, complete_when_quiet),
        Property::always(UNDISTURBED, undisturbed),
        Property::sometimes(ENDS_WELL, ends_well),
        Property::sometimes(SPLIT, split),
        Property::sometimes(SHARED, shared),
        Property::sometimes(ZOMBIE, zombie),
    ]
}

fn once(_: &Relays, state: &State) -> bool {
    KEYS.iter().all(|key| {
        let mut seen: Vec<Number> = state.kafka.read(*key).collect();
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        seen.len() == count
    })
}

fn in_order(_: &Relays, state: &State) -> bool {
    KEYS.iter().all(|key| state.kafka.read(*key).is_sorted())
}

/// Neither a session that goes on from the newest checkpoint nor a slot that goes on from where it
/// was flushed would come to a message again that is not published.
fn nothing_lost(model: &Relays, state: &State) -> bool {
    let newest = state.kafka.checkpoints().next().map(|it| it.flush_lsn);
    let Some(covered) = newest.max(state.slot) else { return true };
    let messages = model.wal.messages.iter().enumerate();
    let mut below = messages.filter(|(_, message)| message.place.commit_lsn < covered);
    below.all(|(number, _)| model.holds(state, number))
}

fn checkpointed(model: &Relays, state: &State) -> bool {
    let newest = state.kafka.checkpoints().next().map(|it| it.flush_lsn);
    state.slot.is_none_or(|slot| slot <= newest.unwrap_or(model.wal.start))
}

fn no_false_gap(_: &Relays, state: &State) -> bool {
    !state.relays.contains(&Relay::Refused)
}

/// A late request of a relay that is gone may still be under way then; it may never come.
fn complete_when_quiet(model: &Relays, state: &State) -> bool {
    let mut actions = Vec::new();
    model.orderly(state, &mut actions);
    !actions.is_empty() || model.is_complete(state)
}

/// Where relays make the slot themselves, the last to come there fences the others.
fn undisturbed(model: &Relays, state: &State) -> bool {
    !model.has_slot
        || state.faults_left < model.faults_max
        || !state.sessions().any(|session| session.is_fenced())
}

fn ends_well(model: &Relays, state: &State) -> bool {
    state.faults_left == 0 && model.is_complete(state)
}

fn split(_: &Relays, state: &State) -> bool {
    let newest = state.kafka.checkpoints().next();
    newest.is_some_and(|it| it.partial.is_some()) && state.sessions().any(Session::reads)
}

fn shared(_: &Relays, state: &State) -> bool {
    TURNS.iter().all(|turn| state.is_owned(*turn))
        && !state.sessions().any(|it| TURNS.iter().all(|turn| it.owns(*turn)))
}

fn zombie(_: &Relays, state: &State) -> bool {
    state.sessions().any(Session::is_zombie)
}
