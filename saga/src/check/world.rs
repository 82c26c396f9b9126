//! A saga, its participants and all that is under way between them.

use std::rc::Rc;

use crate::correlation::Operation;
use crate::definition::{Definition, Step, StepKind};
use crate::instance::{Phase, StepStatus};

use super::hash::Map;
use super::line::{self, Line, Place};
use super::message::{Message, Set, TooMany};
use super::orchestrator::{Orchestrator, Stimulus};
use super::participant::{Knows, Participant};
use super::rows::Rows;
use super::{Assumptions, Broken, STUCK_MAX, Stop};

mod rest;

use rest::Unrested;

/// A person asks again up to this epoch.
const RETRIED_EPOCH_MAX: u32 = 2;

/// Everything at one moment, in numbers: an exploration copies and compares more of these than anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) saga: u32,
    /// What was ever sent. Nothing is forgotten: it may arrive again at any time.
    commands: Set,
    replies: Set,
    /// The number of a row: by the place of their step.
    participants: u32,
    /// The number of a row: by the place of their step; none where the saga takes no lock.
    lines: u32,
    /// What has not arrived yet; counted only where faults are.
    fresh_commands: Set,
    fresh_replies: Set,
    faults: u8,
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Move {
    Saga(Stimulus),
    Participant {
        command: u8,
        how: &'static str,
    },
    /// It is its turn to have the lock of this step.
    Give(usize),
}

/// What a participant may make of a command: how it is then, its reply, how it came to it, and whether that is a
/// refusal.
type Ends = Rc<[(u16, u8, &'static str, bool)]>;

/// All that can happen, by the machine and by the barrier.
pub(super) struct Stage<'d> {
    pub(super) orchestrator: Orchestrator<'d>,
    knows: Knows,
    participants: Vec<Participant>,
    numbers: Map<Participant, u16>,
    /// How all participants are, and how all lines.
    all_participants: Rows<u16>,
    all_lines: Rows<Line>,
    /// By the numbers of a participant and a command.
    known: Vec<Vec<Option<Ends>>>,
    /// By the number of a saga: of which replies it is known whether they can do anything, and which can not.
    judged: Vec<(Set, Set)>,
    /// How sagas and participants are once their steps have come to rest.
    rested: Map<Unrested, (u32, u32)>,
    /// With how many faults a schedule is still looked at; none where they are not counted.
    faults_max: Option<u8>,
    forgets: bool,
}

impl<'d> Stage<'d> {
    pub(super) fn new(definition: &'d Definition, by: Assumptions, faults_max: Option<u8>) -> Self {
        let tells_attempts = by.knows.tells_attempts();
        let mut this = Self {
            orchestrator: Orchestrator::new(definition, by.rules, tells_attempts),
            knows: by.knows,
            participants: Vec::new(),
            numbers: Map::default(),
            all_participants: Rows::default(),
            all_lines: Rows::default(),
            known: Vec::new(),
            judged: Vec::new(),
            rested: Map::default(),
            faults_max,
            forgets: by.forgets,
        };
        this.intern(Participant::default());
        let steps = || definition.steps();
        let locks = steps().any(|step| step.lock().is_some());
        let lines = if locks { steps().map(|_| Line::default()).collect() } else { Box::default() };
        this.all_participants.number(steps().map(|_| 0).collect());
        this.all_lines.number(lines);
        this
    }

    pub(super) fn first(&self) -> World {
        World {
            saga: Orchestrator::FIRST,
            commands: Set::default(),
            replies: Set::default(),
            participants: 0,
            lines: 0,
            fresh_commands: Set::default(),
            fresh_replies: Set::default(),
            faults: 0,
        }
    }

    fn intern(&mut self, participant: Participant) -> u16 {
        if let Some(number) = self.numbers.get(&participant) {
            return *number;
        }
        let number = u16::try_from(self.participants.len()).expect("a participant has few states");
        self.participants.push(participant.clone());
        self.numbers.insert(participant, number);
        number
    }

    fn participant(&self, number: u16) -> &Participant {
        self.participants.get(usize::from(number)).expect("numbers are those of participants")
    }

    /// Everything that can happen in a world and changes it.
    pub(super) fn moves(&mut self, world: &World) -> Result<Vec<(Move, World)>, Stop> {
        let mut moves = Vec::new();
        for command in world.commands.iter() {
            self.deliver(world, command, &mut moves)?;
        }
        for (stimulus, cost) in self.stimuli(world) {
            self.tell(world, stimulus, cost, &mut moves)?;
        }
        self.give(world, &mut moves);
        moves.retain(|(_, after)| {
            self.orchestrator.instance(after.saga).stuck().count() <= STUCK_MAX
        });
        let faults_max = self.faults_max;
        let counts =
            |after: &World| after != world && faults_max.is_none_or(|max| after.faults <= max);
        moves.retain(|(_, after)| counts(after));
        if self.forgets {
            for (_, after) in &mut moves {
                self.forget(after)?;
                self.rest(after);
            }
            moves.retain(|(_, after)| counts(after));
        }
        Ok(moves)
    }

    /// Leaves out the messages that can do nothing any more. Without it there are tens of times as many worlds, which
    /// differ by nothing that matters.
    ///
    /// A reply to a step that is over, or of an older epoch, does nothing from now on, because epochs never fall and a
    /// step begins nothing again without a new one; the orchestrator holds the machine to both. A command that the
    /// barrier only answers, with a reply that is there already or would do nothing, does so from now on.
    fn forget(&mut self, world: &mut World) -> Result<(), Stop> {
        let dead = self.dead(world)?;
        world.replies = world.replies.without_all(dead);
        world.fresh_replies = world.fresh_replies.without_all(dead);
        for command in world.commands.iter() {
            let at = self.orchestrator.messages.get(command).step;
            let before = self.all_participants.at(world.participants, at);
            let before = before.expect("commands are of steps");
            let ends = self.ends(before, command).map_err(|TooMany| Stop::TooLarge)?;
            let says_nothing_new = |(after, reply, ..): &(u16, u8, _, _)| {
                *after == before && (world.replies.has(*reply) || self.is_dead(world, *reply))
            };
            if ends.iter().all(says_nothing_new) {
                world.commands = world.commands.without(command);
                world.fresh_commands = world.fresh_commands.without(command);
            }
        }
        Ok(())
    }

    /// The replies that can do nothing any more.
    fn dead(&mut self, world: &World) -> Result<Set, Stop> {
        let at = usize::try_from(world.saga).unwrap_or(usize::MAX);
        if self.judged.len() <= at {
            self.judged.resize(at + 1, (Set::default(), Set::default()));
        }
        let (mut judged, mut dead) = self.judged.get(at).copied().unwrap_or_default();
        for reply in world.replies.without_all(judged).iter() {
            judged = judged.with(reply);
            if self.is_dead(world, reply) {
                self.expect_nothing(world, reply)?;
                dead = dead.with(reply);
            }
        }
        if let Some(of_saga) = self.judged.get_mut(at) {
            *of_saga = (judged, dead);
        }
        Ok(world.replies.both(dead))
    }

    fn is_dead(&self, world: &World, reply: u8) -> bool {
        let instance = self.orchestrator.instance(world.saga);
        let reply = self.orchestrator.messages.get(reply);
        let step = instance.steps.get(reply.step);
        instance.phase.is_over()
            || step.is_none_or(|step| reply.epoch < step.epoch || step.operation().is_none())
    }

    fn expect_nothing(&mut self, world: &World, reply: u8) -> Result<(), Stop> {
        let outcomes = self.orchestrator.react(world.saga, Stimulus::Reply(reply))?;
        let is_nothing = outcomes.iter().all(|outcome| {
            outcome.saga == world.saga && outcome.sent.is_empty() && outcome.effects.is_empty()
        });
        if is_nothing { Ok(()) } else { Err(Stop::Broken(Broken::Twice)) }
    }

    fn stimuli(&self, world: &World) -> Vec<(Stimulus, u8)> {
        let instance = self.orchestrator.instance(world.saga);
        if instance.revision == 0 {
            return vec![(Stimulus::Start, 0)];
        }
        let is_quiet = world.fresh_commands.is_empty() && world.fresh_replies.is_empty();
        let mut stimuli: Vec<(Stimulus, u8)> = world
            .replies
            .iter()
            .map(|reply| (Stimulus::Reply(reply), u8::from(!world.fresh_replies.has(reply))))
            .collect();
        let lines = self.all_lines.row(world.lines).iter().enumerate();
        let told = lines.filter(|(_, line)| line.is_told);
        stimuli.extend(told.map(|(at, _)| (Stimulus::Held(at), 0)));
        if instance.phase.is_over() {
            return stimuli;
        }
        for (at, step) in instance.steps.iter().enumerate() {
            if step.due.is_some() {
                let is_fault = !is_quiet && step.status != StepStatus::Delayed;
                stimuli.push((Stimulus::Tick(at), u8::from(is_fault)));
            }
            let lock = step.lock.as_ref().filter(|lock| !lock.is_expired);
            if lock.is_some_and(|lock| lock.expires_at.is_some()) {
                stimuli.push((Stimulus::Expire(at), 1));
            }
        }
        let waits = self.orchestrator.definition.steps().enumerate();
        let waits = waits.filter(|(_, step)| step.signal_type().is_some()).map(|(at, _)| at);
        if instance.signals.is_empty() {
            stimuli.extend(waits.map(|at| (Stimulus::Signal(at), 0)));
        }
        stimuli.extend([(Stimulus::Cancel, 1)]);
        stimuli.extend(instance.deadline.map(|_| (Stimulus::Deadline, 1)));
        let mut stuck = instance.stuck().peekable();
        if stuck.peek().is_some() && stuck.all(|step| step.epoch.get() <= RETRIED_EPOCH_MAX) {
            stimuli.push((Stimulus::Retry, 1));
        }
        stimuli
    }

    fn tell(
        &mut self,
        world: &World,
        stimulus: Stimulus,
        cost: u8,
        moves: &mut Vec<(Move, World)>,
    ) -> Result<(), Stop> {
        for outcome in self.orchestrator.react(world.saga, stimulus)?.iter() {
            let is_word = matches!(stimulus, Stimulus::Held(_));
            let is_new = outcome.saga != world.saga
                || !world.commands.has_all(outcome.sent)
                || is_word
                || !outcome.lines.is_empty();
            if !is_new && self.faults_max.is_none() {
                continue;
            }
            let mut after = *world;
            after.saga = outcome.saga;
            after.commands = after.commands.and(outcome.sent);
            if self.faults_max.is_some() {
                after.faults += cost;
                after.fresh_commands = after.fresh_commands.and(outcome.sent);
                if let Stimulus::Reply(reply) = stimulus {
                    after.fresh_replies = after.fresh_replies.without(reply);
                }
            }
            for (at, effect) in &outcome.effects {
                self.add_effect(&mut after, *at, *effect);
            }
            if let Stimulus::Held(at) = stimulus
                && let Some(line) = self.all_lines.at(after.lines, at)
            {
                after.lines = self.all_lines.with(after.lines, at, Line { is_told: false, ..line });
            }
            let ways = self.in_line(after, &outcome.lines);
            moves.extend(ways.into_iter().map(|after| (Move::Saga(stimulus), after)));
        }
        Ok(())
    }

    /// What a local step did.
    fn add_effect(&mut self, world: &mut World, at: usize, effect: i8) {
        let before = self.all_participants.at(world.participants, at);
        let mut participant = self.participant(before.expect("effects are of steps")).clone();
        participant.effect = participant.effect.saturating_add(effect);
        let number = self.intern(participant);
        world.participants = self.all_participants.with(world.participants, at, number);
    }

    fn deliver(
        &mut self,
        world: &World,
        command: u8,
        moves: &mut Vec<(Move, World)>,
    ) -> Result<(), Stop> {
        let at = self.orchestrator.messages.get(command).step;
        let before = self.all_participants.at(world.participants, at);
        let before = before.expect("commands are of steps");
        let ends = self.ends(before, command).map_err(|TooMany| Stop::TooLarge)?;
        for (participant, reply, how, is_refusal) in ends.iter().copied() {
            let is_new = participant != before || !world.replies.has(reply);
            if !is_new && self.faults_max.is_none() {
                continue;
            }
            let mut after = *world;
            after.participants = self.all_participants.with(world.participants, at, participant);
            after.replies = after.replies.with(reply);
            if self.faults_max.is_some() {
                let is_again = !world.fresh_commands.has(command);
                after.faults += u8::from(is_again) + u8::from(is_refusal);
                after.fresh_commands = after.fresh_commands.without(command);
                after.fresh_replies = after.fresh_replies.with(reply);
            }
            moves.push((Move::Participant { command, how }, after));
        }
        Ok(())
    }

    fn ends(&mut self, participant: u16, command: u8) -> Result<Ends, TooMany> {
        let (row, column) = (usize::from(participant), usize::from(command));
        if let Some(Some(known)) = self.known.get(row).and_then(|row| row.get(column)) {
            return Ok(Rc::clone(known));
        }
        let message = self.orchestrator.messages.get(command);
        let refuses = self.spec(message.step).kind != StepKind::Retriable;
        let handled = self.participant(participant).clone().handle(&message, self.knows, refuses);
        let mut ends = Vec::new();
        for handled in handled {
            let reply = Message { answer: Some(handled.answer), attempt: 0, ..message };
            let reply = self.orchestrator.messages.number(reply)?;
            let is_refusal = handled.how == "refuses it";
            ends.push((self.intern(handled.after), reply, handled.how, is_refusal));
        }
        let ends: Ends = ends.into();
        if self.known.len() <= row {
            self.known.resize(row + 1, Vec::new());
        }
        if let Some(row) = self.known.get_mut(row) {
            row.resize(row.len().max(column + 1), None);
            if let Some(place) = row.get_mut(column) {
                *place = Some(Rc::clone(&ends));
            }
        }
        Ok(ends)
    }

    fn spec(&self, at: usize) -> &'d Step {
        self.orchestrator.definition.0.steps.get(at).expect("places are those of steps")
    }

    /// Whether the saga has ended, or waits for a person.
    pub(super) fn is_end(&self, world: &World) -> bool {
        let instance = self.orchestrator.instance(world.saga);
        instance.phase.is_over() || instance.stuck().next().is_some()
    }

    /// The promise that is broken in a world.
    pub(super) fn judge(&self, world: &World) -> Option<Broken> {
        let instance = self.orchestrator.instance(world.saga);
        instance.steps.iter().enumerate().find_map(|(at, step)| {
            let number = self.all_participants.at(world.participants, at)?;
            let effect = self.participant(number).effect;
            let kind = self.spec(at).kind;
            let is_undone = matches!(kind, StepKind::Compensable | StepKind::Pivot);
            let spec = self.spec(at);
            let has_effect = spec.signal_type().is_none() && spec.lock().is_none();
            let name = step.name.to_string();
            let line = self.all_lines.at(world.lines, at).unwrap_or_default();
            let holds = step.lock.as_ref().is_some_and(|lock| !lock.held().is_empty());
            match (instance.phase, step.status) {
                _ if holds && line.place != Place::Holds => Some(Broken::LockLost(name)),
                _ if instance.phase.is_over() && line.place == Place::Holds && !line.is_told => {
                    Some(Broken::LockKept(name))
                }
                _ if !(0..=1).contains(&effect) => Some(Broken::EffectTwice(name)),
                (Phase::Completed, StepStatus::Done) if has_effect && effect != 1 => {
                    Some(Broken::EffectMissing(name))
                }
                (Phase::Compensated, _) if is_undone && effect != 0 => {
                    Some(Broken::EffectLeft(name))
                }
                _ => None,
            }
        })
    }

    /// What of a world decides whether a promise is broken; how often its steps have turned round does not.
    #[cfg(test)]
    pub(super) fn judged_by(&self, world: &World) -> (String, Vec<i8>) {
        let instance = self.orchestrator.instance(world.saga);
        let states = instance.steps.iter().map(|step| step.status);
        let saga = format!("{:?} {:?}", instance.phase, states.collect::<Vec<_>>());
        let all = self.all_participants.row(world.participants).iter();
        let effects = all.map(|number| self.participant(*number).effect);
        (saga, effects.collect())
    }

    /// The name of a step, for people.
    pub(super) fn name(&self, at: usize) -> &'d str {
        &self.spec(at).name
    }

    /// The commands in a world that were not in the one before.
    pub(super) fn newly_sent(&self, before: &World, after: &World) -> Vec<Message> {
        let new = after.commands.iter().filter(|command| !before.commands.has(*command));
        new.map(|command| self.orchestrator.messages.get(command)).collect()
    }

    /// The phase of the saga and where it is stuck, for people.
    pub(super) fn stands(&self, world: &World) -> &'static str {
        self.orchestrator.instance(world.saga).status().as_str()
    }

    /// What the operation of a step is called.
    pub(super) fn operation(operation: Operation) -> &'static str {
        match operation {
            Operation::Action => "do",
            Operation::Compensation => "undo",
        }
    }

    /// Every way in which the saga's turn can come.
    fn give(&mut self, world: &World, moves: &mut Vec<(Move, World)>) {
        for at in 0..self.all_lines.row(world.lines).len() {
            let given = self.all_lines.at(world.lines, at).and_then(Line::given);
            if let Some(line) = given {
                let lines = self.all_lines.with(world.lines, at, line);
                moves.push((Move::Give(at), World { lines, ..*world }));
            }
        }
    }

    /// Every way in which a world can be after the saga has done something in its lines.
    fn in_line(&mut self, world: World, steps: &[(usize, line::Step)]) -> Vec<World> {
        let mut worlds = vec![world];
        for (at, step) in steps {
            let mut ways = Vec::with_capacity(worlds.len());
            for world in worlds {
                let line = self.all_lines.at(world.lines, *at).unwrap_or_default();
                for line in line.after(*step) {
                    let lines = self.all_lines.with(world.lines, *at, line);
                    ways.push(World { lines, ..world });
                }
            }
            worlds = ways;
        }
        worlds
    }
}
