//! Explores crash and delivery: a source, a server, a Kafka and a relay in one thread, where the
//! relay may die between any two steps.

use std::time::{Duration, Instant};

use super::{Counting, Limits, Progress, Verdict};
use crate::checkpoint::Published;
use crate::error::Kind;
use crate::lsn::Lsn;
use crate::position::{Incarnation, Position};

const INCARNATION: Incarnation = Incarnation(7);
const LIMITS: Limits = Limits {
    batch_records: 4,
    batch_bytes: 400,
    linger: Duration::from_millis(5),
    behind_age: Duration::from_millis(20),
    split_bytes: 250,
    split_age: Duration::from_millis(50),
    idle_bytes: 1_000,
    idle_age: Duration::from_millis(80),
};
const RECORD_BYTES: usize = 100;

/// Numbers from a seed: the same seed, the same run (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % sides
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Begin { commit_lsn: Lsn },
    Change { lsn: Lsn, ours: bool },
    Commit { commit_lsn: Lsn, end_lsn: Lsn },
    Keepalive { wal_end: Lsn },
}

/// The log of the source: transactions in commit order, foreign log between them.
struct Source {
    transactions: Vec<(Lsn, Vec<Event>)>,
    end: Lsn,
}

impl Source {
    fn made_by(dice: &mut Dice) -> Self {
        let mut at = 1_000;
        let mut transactions = Vec::new();
        for _ in 0..dice.roll(12) + 1 {
            let mut changes = Vec::new();
            for _ in 0..dice.roll(9) {
                changes.push(Event::Change { lsn: Lsn(at), ours: dice.roll(4) > 0 });
                at += 10;
            }
            // The commit record of one transaction may begin where the one before it ends.
            at += dice.roll(2) * dice.roll(600);
            let (commit_lsn, end_lsn) = (Lsn(at), Lsn(at + 20));
            at += 20;
            let mut events = vec![Event::Begin { commit_lsn }];
            events.extend(changes);
            events.push(Event::Commit { commit_lsn, end_lsn });
            transactions.push((commit_lsn, events));
        }
        Source { transactions, end: Lsn(at) }
    }

    /// What the server sends to a slot that was flushed to `from`.
    fn sent_from(&self, from: Lsn, dice: &mut Dice) -> Vec<Event> {
        let mut sent = Vec::new();
        for (commit_lsn, events) in &self.transactions {
            if *commit_lsn < from {
                continue;
            }
            for event in events {
                sent.push(*event);
                if dice.roll(6) == 0 {
                    // In the midst of a transaction the server names the end of what it decoded.
                    sent.push(Event::Keepalive { wal_end: *commit_lsn });
                }
            }
        }
        sent.push(Event::Keepalive { wal_end: self.end });
        sent
    }

    fn published_once(&self) -> Vec<(Lsn, u32)> {
        let mut places = Vec::new();
        for (commit_lsn, events) in &self.transactions {
            let changes = events.iter().filter(|event| matches!(event, Event::Change { .. }));
            for (ordinal, event) in changes.enumerate() {
                if matches!(event, Event::Change { ours: true, .. }) {
                    places.push((*commit_lsn, u32::try_from(ordinal).unwrap()));
                }
            }
        }
        places
    }
}

/// What read_committed readers see, and the checkpoint that was committed with it.
struct Kafka {
    log: Vec<Position>,
    checkpoint: Published,
}

/// The rules that a run keeps. With one switched off the exploration must find a fault, or it
/// would prove nothing.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    All,
    FlushesWhatIsReceived,
    FlushesWhatIsSealed,
    ForgetsThePartial,
    CheckpointOutsideTheTransaction,
}

/// One life of the relay.
struct Life<'k> {
    kafka: &'k mut Kafka,
    slot: &'k mut Lsn,
    progress: Progress,
    /// Produced since the newest seal.
    batch: Vec<Position>,
    /// Sealed, its commit under way.
    sealed: Option<(Vec<Position>, Published)>,
    rule: Rule,
    steps_left: u64,
}

/// The relay has died.
struct Dead;

impl Life<'_> {
    /// A place to die.
    fn step(&mut self) -> Result<(), Dead> {
        self.steps_left = self.steps_left.checked_sub(1).ok_or(Dead)?;
        Ok(())
    }

    fn seal(&mut self, due: Published, now: Instant) -> Result<(), Dead> {
        self.confirm()?;
        self.sealed = Some((std::mem::take(&mut self.batch), due));
        self.progress.sealed(due, now);
        if self.rule == Rule::FlushesWhatIsSealed {
            *self.slot = due.flush_lsn;
        }
        self.step()
    }

    /// The commit under way, if there is one, comes to its end.
    fn confirm(&mut self) -> Result<(), Dead> {
        let Some((mut batch, checkpoint)) = self.sealed.take() else { return Ok(()) };
        self.kafka.log.append(&mut batch);
        // The broker has it; the relay may die before it hears so.
        if self.rule == Rule::CheckpointOutsideTheTransaction {
            self.step()?;
        }
        self.kafka.checkpoint = checkpoint;
        self.step()?;
        self.progress.committed();
        self.step()?;
        assert!(self.progress.flush_lsn() >= *self.slot || self.rule != Rule::All, "it went back");
        *self.slot = self.progress.flush_lsn().max(*self.slot);
        Ok(())
    }

    fn take(&mut self, event: Event, now: Instant, dice: &mut Dice) {
        match event {
            Event::Begin { commit_lsn } => self.progress.begin(commit_lsn).unwrap(),
            Event::Change { lsn, ours } => {
                if let Verdict::Fresh(position) = self.progress.change(lsn).unwrap()
                    && ours
                {
                    self.batch.push(position);
                    self.progress.produced(position, lsn, RECORD_BYTES, now);
                }
            }
            Event::Commit { commit_lsn, end_lsn } => {
                self.progress.commit(commit_lsn, end_lsn).unwrap();
            }
            Event::Keepalive { wal_end } => self.progress.keepalive(wal_end, dice.roll(3) == 0),
        }
        if self.rule == Rule::FlushesWhatIsReceived {
            *self.slot = self.progress.received;
        }
    }

    fn live(&mut self, sent: Vec<Event>, dice: &mut Dice) -> Result<(), Dead> {
        let mut now = Instant::now();
        for event in sent {
            self.step()?;
            self.take(event, now, dice);
            now += Duration::from_millis(dice.roll(4));
            // A commit ends at any time.
            if dice.roll(3) == 0 {
                self.confirm()?;
            }
            let caught_up = dice.roll(2) == 0;
            while let Some(due) = self.progress.due(now, caught_up) {
                self.seal(due, now)?;
            }
        }
        self.progress.drain();
        while !self.progress.is_drained() {
            match self.progress.due(now, true) {
                Some(due) => self.seal(due, now)?,
                None if self.sealed.is_some() => self.confirm()?,
                None => break,
            }
        }
        assert!(self.progress.is_drained());
        Ok(())
    }
}

/// One life of the relay; returns whether it came to the end of the source.
fn live(source: &Source, kafka: &mut Kafka, slot: &mut Lsn, dice: &mut Dice, rule: Rule) -> bool {
    let mut resumed = kafka.checkpoint;
    if rule == Rule::ForgetsThePartial {
        resumed.partial = None;
    }
    let sent = source.sent_from(*slot, dice);
    let progress = Progress::new(INCARNATION, resumed, LIMITS, Instant::now());
    let steps_left = dice.roll(120);
    let mut life =
        Life { kafka, slot, progress, batch: Vec::new(), sealed: None, rule, steps_left };
    let ended = life.live(sent, dice).is_ok();
    // Whether a commit that was under way has reached the broker is anybody's guess.
    if let Some((mut batch, checkpoint)) = life.sealed.take()
        && dice.roll(2) == 0
    {
        life.kafka.log.append(&mut batch);
        life.kafka.checkpoint = checkpoint;
    }
    ended
}

/// Lives until the source is read to its end; true when each message is in Kafka once, in order.
fn explore(seed: u64, rule: Rule) -> bool {
    let mut dice = Dice(seed);
    let source = Source::made_by(&mut dice);
    let start = Lsn(900);
    let mut kafka =
        Kafka { log: Vec::new(), checkpoint: Published { flush_lsn: start, partial: None } };
    let mut slot = start;
    while !live(&source, &mut kafka, &mut slot, &mut dice, rule) {}
    let places: Vec<_> = kafka.log.iter().map(|p| (p.commit_lsn, p.ordinal.0)).collect();
    places == source.published_once()
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..10_000,
    }
}

#[test]
fn whatever_crashes_when_each_message_is_published_once_in_order() {
    for seed in seeds() {
        assert!(explore(seed, Rule::All), "SEED={seed}");
    }
}

#[test]
fn without_each_rule_the_exploration_finds_the_fault() {
    for rule in [
        Rule::FlushesWhatIsReceived,
        Rule::FlushesWhatIsSealed,
        Rule::ForgetsThePartial,
        Rule::CheckpointOutsideTheTransaction,
    ] {
        let found = (0..10_000).any(|seed| {
            // A broken rule may also show as a stream that the relay refuses.
            std::panic::catch_unwind(|| explore(seed, rule)).map_or(true, |right| !right)
        });
        assert!(found);
    }
}

fn at(flush_lsn: u64) -> Progress {
    let published = Published { flush_lsn: Lsn(flush_lsn), partial: None };
    Progress::new(INCARNATION, published, LIMITS, Instant::now())
}

#[test]
fn an_idle_source_is_checkpointed_by_size_by_age_and_when_asked() {
    let now = Instant::now();
    for (wal_end, asked, later, due) in [
        (900, false, 0, false),
        (901, false, 0, false),
        (901, true, 0, true),
        (901, false, 81, true),
        (1_899, false, 0, false),
        (1_900, false, 0, true),
        (900, true, 81, false),
    ] {
        let mut progress = at(900);

        progress.keepalive(Lsn(wal_end), asked);

        let found = progress.due(now + Duration::from_millis(later), true);
        assert_eq!(found.is_some(), due, "{wal_end} {asked} {later}");
    }
}

#[test]
fn a_stream_that_breaks_its_order_is_refused() {
    let mut progress = at(900);
    assert_eq!(progress.change(Lsn(1)).unwrap_err().kind(), Kind::Malformed);
    assert_eq!(progress.commit(Lsn(1), Lsn(2)).unwrap_err().kind(), Kind::Malformed);
    progress.begin(Lsn(950)).unwrap();
    assert_eq!(progress.begin(Lsn(960)).unwrap_err().kind(), Kind::Malformed);
    progress.commit(Lsn(950), Lsn(970)).unwrap();
    assert_eq!(progress.begin(Lsn(955)).unwrap_err().kind(), Kind::Malformed);
}

#[test]
fn a_source_that_is_not_the_checkpoints_is_refused_inside_a_split_transaction() {
    let mut first = at(900);
    first.begin(Lsn(1_000)).unwrap();
    let Verdict::Fresh(position) = first.change(Lsn(910)).unwrap() else { panic!("fresh") };
    first.produced(position, Lsn(910), 250, Instant::now());
    let split = first.due(Instant::now(), false).expect("more than split_bytes");
    let resume = || Progress::new(INCARNATION, split, LIMITS, Instant::now());

    let mut same = resume();
    same.begin(Lsn(1_000)).unwrap();
    assert_eq!(same.change(Lsn(910)).unwrap(), Verdict::Published);

    let mut moved = resume();
    moved.begin(Lsn(1_000)).unwrap();
    assert_eq!(moved.change(Lsn(911)).unwrap_err().kind(), Kind::Gap);

    assert_eq!(resume().begin(Lsn(1_100)).unwrap_err().kind(), Kind::Gap);

    let counts_otherwise = resume().counting(Counting::Rows).begin(Lsn(1_000)).unwrap_err();
    assert_eq!(counts_otherwise.kind(), Kind::Config);
    assert!(counts_otherwise.to_string().contains("relay.messages on"), "{counts_otherwise}");

    let mut shorter = resume();
    shorter.begin(Lsn(1_000)).unwrap();
    assert_eq!(shorter.commit(Lsn(1_000), Lsn(1_020)).unwrap_err().kind(), Kind::Gap);
}

#[test]
fn a_relay_that_keeps_up_seals_when_the_commit_before_is_done_and_one_behind_fills_its_batch() {
    let now = Instant::now();
    let mut progress = at(900);
    let mut number = 0;
    let mut transaction = |progress: &mut Progress| {
        number += 1;
        let at = 1_000 + number * 100;
        progress.begin(Lsn(at)).unwrap();
        let Verdict::Fresh(position) = progress.change(Lsn(at - 50)).unwrap() else { panic!() };
        progress.produced(position, Lsn(at - 50), 1, now);
        progress.commit(Lsn(at), Lsn(at + 20)).unwrap();
    };

    transaction(&mut progress);
    assert_eq!(progress.due(now, true), None, "it lingers");
    assert_eq!(progress.deadline(true), Some(now + LIMITS.linger));
    assert_eq!(progress.due(now + LIMITS.linger, false), None, "there is more to take in");
    let due = progress.due(now + LIMITS.linger, true).expect("it is caught up");
    progress.sealed(due, now);

    transaction(&mut progress);
    assert_eq!(progress.due(now + LIMITS.linger, true), None, "a commit is under way");
    assert_eq!(progress.deadline(true), Some(now + LIMITS.behind_age));
    assert!(progress.due(now + LIMITS.behind_age, false).is_some(), "it is too old");
    for _ in 0..3 {
        transaction(&mut progress);
    }
    assert!(progress.due(now, false).is_some(), "it is full");
    progress.committed();
    assert_eq!(progress.flush_lsn(), due.flush_lsn);
}
