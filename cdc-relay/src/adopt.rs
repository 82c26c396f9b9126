//! Takes up a slot that does not belong to what was published, once a person has accepted the gap.
//!
//! What [`resume`](crate::resume) refuses, an adoption goes past: it begins a new incarnation at
//! the slot, and says exactly what is missing and what comes twice. Nothing runs beside it: it
//! holds the slot, then fences whoever published, then writes the checkpoint. A crash at any point
//! leaves a state that `run` refuses and another adoption finishes.

use std::time::Duration;

use crate::checkpoint::{
    CHECKPOINT_KEY, Checkpoint, INTENT_KEY, Intent, Published, Reads, Source, Stored, written_ms,
};
use crate::config::Config;
use crate::error::{Error, Kind};
use crate::lsn::Lsn;
use crate::position::Incarnation;
use crate::publisher::unix_ms;
use crate::replication::{Client, Large, quote_identifier};
use crate::resume::{self, Server, Slot};
use crate::sink::{Connect, Sink};
use crate::{setup, source};

/// SQLSTATE of what another connection holds.
const OBJECT_IN_USE: &str = "55006";

/// A leader writes a checkpoint more often than this: of every probe, and of idle log.
const MOVES_WITHIN: Duration = Duration::from_secs(30);

/// What a person has said of the gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Consent {
    /// Whatever is missing is known and accepted.
    AcceptGap,
    /// The cluster was upgraded by pg_upgrade, with no writer between.
    Upgraded,
}

/// What a person has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) consent: Consent,
    /// The relay whose checkpoint it is may be another slot's, and is to end.
    pub(crate) take_over: bool,
}

/// What an adoption has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Adoption {
    pub(crate) source: Source,
    pub(crate) progress: Published,
    /// Why a relay would have refused.
    pub(crate) reason: String,
    /// What was published before, if that is known.
    pub(crate) before: Option<Checkpoint>,
    pub(crate) gap: Gap,
    /// The prefix of messages that are in the log perhaps, and are not published from here on.
    pub(crate) former_prefix: Option<String>,
}

/// What does not arrive once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gap {
    /// Commits above the first and up to the second are in nobody's hands.
    pub(crate) lost: Span,
    /// Commits in here may be published a second time, with the ids that they had.
    pub(crate) twice: Span,
    /// Published commits in here are not in this database.
    pub(crate) phantom: Span,
}

/// A part of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Span {
    #[default]
    Nothing,
    Between(Lsn, Lsn),
    /// Nobody can say where it begins.
    UpTo(Lsn),
    /// Nobody can say where it ends.
    From(Lsn),
}

/// Takes the slot up, making a new one where there is none or where it is lost. `None` when
/// nothing stands in the way of `run`.
pub(crate) async fn adopt<C: Connect>(
    config: &Config,
    connect: &C,
    terms: Terms,
) -> Result<Option<Adoption>, Error> {
    let consent = terms.consent;
    let mut client = Client::connect(&config.endpoint()?).await?;
    let server = source::identify(&mut client).await?;
    let relay_id = config.relay_id_for(&server.system_identifier, &server.database)?;
    // Before anybody is fenced: the relay of another slot may lead.
    let found = source::slot(&mut client, config.slot_name()).await?;
    if let Some(saved) = connect.saved(&relay_id).await? {
        let (stored, _) = Stored::read_or_lost(&saved)?;
        let age = written_ms(&saved).map(|at| Duration::from_millis(unix_ms().saturating_sub(at)));
        let here = Here { server: &server, slot: config.slot_name(), found: found.as_ref() };
        may_take(&here, &stored, age, terms)?;
    }
    let reason = match prepare(config, connect, &relay_id, &server, &mut client, consent).await? {
        Slotted::AsItIs => None,
        Slotted::MadeAnew(reason) => Some(reason),
        Slotted::NotYet => return Ok(None),
    };
    let mut sink = connect.connect(&relay_id).await?;
    let started = client
        .start_replication(config.slot_name(), config.publication_name(), Large::AtCommit)
        .await;
    let stream = started.map_err(|error| match error.kind() {
        Kind::SlotBusy => error.hint("a relay leads: stop it and its standbys first"),
        _ => error,
    })?;

    // From here on the slot is ours, and with it the right to fence.
    let (stored, unreadable) = Stored::read_or_lost(&sink.take_over().await?)?;
    let mut client = Client::connect(&config.endpoint()?).await?;
    let server = source::identify(&mut client).await?;
    let slot = source::slot(&mut client, config.slot_name()).await?;
    let slot = slot.ok_or_else(|| source::missing("the slot", "disappeared while it was held"))?;
    let history = source::history(&mut client, &server).await?;
    let switched = |timeline| resume::left_at(&history, timeline);
    let prefix = config.published_prefix();
    let mut adoption = decide(&server, &slot, &stored, switched, consent, prefix, unix_seconds())?;
    if let Some(adoption) = &mut adoption {
        // What came first: an intent of our own is the last of the reasons.
        if let Some(reason) = reason.or(unreadable) {
            adoption.reason = reason.to_string();
        }
        let Adoption { source, progress, .. } = &*adoption;
        let reads = Reads { prefix: prefix.map(str::to_owned), publication: None };
        let checkpoint = Checkpoint { source: source.clone(), progress: *progress, reads };
        let intent = Intent { source: source.clone() };
        let (checkpoint, intent) = (checkpoint.encode(unix_ms()), intent.encode(unix_ms()));
        sink.seal(&[(CHECKPOINT_KEY, &checkpoint), (INTENT_KEY, &intent)]).await?;
        sink.confirmed().await?;
    } else {
        sink.abort().await?;
    }
    stream.close().await?;
    Ok(adoption)
}

/// Where an adoption is asked for.
struct Here<'a> {
    server: &'a Server,
    slot: &'a str,
    found: Option<&'a Slot>,
}

/// Refuses to end a relay that may be another one, unless a person says so: the checkpoint is of
/// another slot, or of a cluster whose relay was at work just now.
fn may_take(
    here: &Here<'_>,
    stored: &Stored,
    age: Option<Duration>,
    terms: Terms,
) -> Result<(), Error> {
    let Here { server, slot, found } = *here;
    let checkpoint = stored.checkpoint.as_ref();
    // A relay that was initialised and has not led yet is one too.
    let intent = stored.intent.as_ref().map(|intent| &intent.source);
    let source = checkpoint.map(|checkpoint| &checkpoint.source).or(intent);
    let Some(source) = source.filter(|_| !terms.take_over) else { return Ok(()) };
    let Err(differs) = resume::belongs(source, server, slot) else { return Ok(()) };
    let same_place = source.slot == slot && source.database == server.database;
    let at_work = age.is_some_and(|age| age < MOVES_WITHIN) && terms.consent == Consent::AcceptGap;
    let published = checkpoint.map(|checkpoint| checkpoint.progress.flush_lsn);
    let confirmed = found.and_then(|slot| slot.confirmed_flush);
    let renamed = published.zip(confirmed).is_some_and(|(published, confirmed)| {
        source.slot == slot && is_renamed(source, published, server, confirmed)
    });
    if renamed || (same_place && !at_work) {
        return Ok(());
    }
    let wrote =
        age.map_or_else(String::new, |age| format!("; its relay wrote it {} s ago", age.as_secs()));
    Err(Error::new(Kind::Gap, format!("{differs}{wrote}")).hint(
        "if that relay is to go on, give this one an id of its own by --relay-id; to end that one \
         for good and go on in its place, stop it and add --take-over",
    ))
}

/// Whether this is the database of the checkpoint under another name: a slot's name is its
/// cluster's alone, and one that was made anew begins above what is published.
fn is_renamed(source: &Source, published: Lsn, server: &Server, confirmed: Lsn) -> bool {
    source.system_identifier == server.system_identifier
        && source.database != server.database
        && source.timeline == server.timeline
        && confirmed <= published
        && published <= server.flushed
}

/// How it stands with the slot.
enum Slotted {
    AsItIs,
    /// It was missing or lost, and a relay refused for this.
    MadeAnew(Error),
    /// `run` would make it just so.
    NotYet,
}

/// Sees to it that there is a slot that can be read. The intent goes before a new slot, so that a
/// crash between the two and the checkpoint is known for what it is.
async fn prepare<C: Connect>(
    config: &Config,
    connect: &C,
    relay_id: &str,
    server: &Server,
    client: &mut Client,
    consent: Consent,
) -> Result<Slotted, Error> {
    let slot = source::slot(client, config.slot_name()).await?;
    if let Some(slot) = &slot {
        slot.check(server)?;
        if slot.is_readable() {
            return Ok(Slotted::AsItIs);
        }
    }
    if consent == Consent::Upgraded {
        no_writers(client).await?;
    }
    // No slot, no leader: a relay that is about to make one is fenced, and so stands by.
    let mut sink = connect.connect(relay_id).await?;
    let (stored, unreadable) = Stored::read_or_lost(&sink.take_over().await?)?;
    let refused = match &slot {
        None => resume::create(server, config.slot_name(), &stored, Incarnation(0)).err(),
        Some(slot) => resume::resume(server, slot, &stored, |_| None).err(),
    };
    let Some(reason) = unreadable.or(refused) else {
        sink.abort().await?;
        return Ok(Slotted::NotYet);
    };
    if let (Consent::Upgraded, Some(checkpoint)) = (consent, &stored.checkpoint) {
        upgraded(checkpoint, server)?;
    }
    setup::publication(config, client).await?;
    let incarnation = next(&stored, unix_seconds());
    let intent = Intent { source: new_source(server, config.slot_name(), incarnation) };
    sink.seal(&[(INTENT_KEY, &intent.encode(unix_ms()))]).await?;
    sink.confirmed().await?;
    if slot.is_some() {
        drop_slot(config.slot_name(), client).await?;
    }
    setup::slot(config, client).await?;
    Ok(Slotted::MadeAnew(reason))
}

/// Drops the slot, unless a relay holds it.
pub(crate) async fn drop_slot(name: &str, client: &mut Client) -> Result<(), Error> {
    let command = format!("DROP_REPLICATION_SLOT {}", quote_identifier(name));
    match client.query(&command).await {
        Ok(_) => Ok(()),
        Err(error) if error.sqlstate() == Some(OBJECT_IN_USE) => {
            let text = format!("slot {name:?} is in use");
            let hint = "a relay leads: stop it and its standbys first";
            Err(Error::new(Kind::SlotBusy, text).hint(hint).caused_by(error))
        }
        Err(error) => Err(error),
    }
}

/// Between an upgrade and a slot that is made only now nobody may have written.
async fn no_writers(client: &mut Client) -> Result<(), Error> {
    let rows = client
        .query(
            "SELECT pg_catalog.string_agg(pid::text, ', ') FROM pg_catalog.pg_stat_activity \
             WHERE datname = pg_catalog.current_database() AND backend_type = 'client backend' \
             AND pid <> pg_catalog.pg_backend_pid()",
        )
        .await?;
    match rows.first().and_then(|row| row.get(0)) {
        None => Ok(()),
        Some(pids) => Err(Error::new(
            Kind::Gap,
            format!("there is no slot, and other clients are connected already: {pids}"),
        )
        .hint(
            "what they have written since the upgrade is missing; keep writers away until the \
             slot is there, or accept the gap by adopt --accept-gap",
        )),
    }
}

/// Decides what the new incarnation is; `None` when the old one can go on.
fn decide(
    server: &Server,
    slot: &Slot,
    stored: &Stored,
    switched: impl Fn(u32) -> Option<Lsn>,
    consent: Consent,
    prefix: Option<&str>,
    unix_seconds: u32,
) -> Result<Option<Adoption>, Error> {
    slot.check(server)?;
    let other_prefix = resume::same_prefix(stored, prefix).err();
    let resumed = resume::resume(server, slot, stored, &switched).err();
    let Some(reason) = resumed.or_else(|| resume::same_prefix(stored, prefix).err()) else {
        return Ok(None);
    };
    let Some(begin) = slot.confirmed_flush.filter(|_| slot.is_readable()) else {
        return Err(reason);
    };
    if consent == Consent::Upgraded {
        let Some(checkpoint) = &stored.checkpoint else {
            return Err(reason.hint(
                "without a checkpoint nobody knows what is missing; after pg_upgrade the default \
                 relay id is another one: give the former by --relay-id",
            ));
        };
        upgraded(checkpoint, server)?;
    }
    let (progress, gap) = match (&stored.checkpoint, consent) {
        (Some(_), Consent::Upgraded) => {
            (Published { flush_lsn: begin, partial: None }, Gap::default())
        }
        (Some(checkpoint), Consent::AcceptGap) => measure(server, begin, checkpoint, switched),
        (None, _) => {
            let gap = Gap { lost: Span::UpTo(begin), twice: Span::From(begin), ..Gap::default() };
            (Published { flush_lsn: begin, partial: None }, gap)
        }
    };
    let source = new_source(server, &slot.name, next(stored, unix_seconds));
    let before = stored.checkpoint.clone();
    let former_prefix = other_prefix
        .and_then(|_| before.as_ref().and_then(|checkpoint| checkpoint.reads.prefix.clone()));
    let reason = reason.to_string();
    Ok(Some(Adoption { source, progress, reason, before, gap, former_prefix }))
}

/// Where to go on, and what is missing, when `begin` is the first that the slot can send.
fn measure(
    server: &Server,
    begin: Lsn,
    checkpoint: &Checkpoint,
    switched: impl Fn(u32) -> Option<Lsn>,
) -> (Published, Gap) {
    let Checkpoint { source, progress, .. } = checkpoint;
    let published = progress.flush_lsn;
    let other = source.system_identifier != server.system_identifier
        || (source.database != server.database && !is_renamed(source, published, server, begin));
    // Up to here the history that was published is this server's too.
    let shared = match source.timeline == server.timeline {
        _ if other => None,
        true if published <= server.flushed => Some(published),
        true => None,
        false => switched(source.timeline).map(|left| left.min(published)),
    };
    let Some(shared) = shared else {
        // Twice rather than lost: only the slot's beginning is certain.
        let twice = if other { Span::Nothing } else { Span::From(begin) };
        let lost = if other { Span::UpTo(begin) } else { Span::Nothing };
        let phantom = match server.flushed < published && !other {
            true => Span::Between(server.flushed, published),
            false => Span::Nothing,
        };
        return (Published { flush_lsn: begin, partial: None }, Gap { lost, twice, phantom });
    };
    let flush_lsn = begin.max(shared);
    let span = |from: Lsn, to: Lsn| match from < to {
        true => Span::Between(from, to),
        false => Span::Nothing,
    };
    let gap =
        Gap { lost: span(shared, begin), twice: Span::Nothing, phantom: span(shared, published) };
    let kept = |partial: &crate::checkpoint::Partial| {
        shared == published && partial.commit_lsn >= flush_lsn
    };
    (Published { flush_lsn, partial: progress.partial.filter(kept) }, gap)
}

/// Refuses what can not be an upgrade of the cluster that the checkpoint is of.
fn upgraded(checkpoint: &Checkpoint, server: &Server) -> Result<(), Error> {
    let refused = |text: String| {
        Err(Error::new(Kind::Gap, text)
            .hint("if you know what is missing, cdc-relay adopt --accept-gap goes on from here"))
    };
    let Checkpoint { source, progress, .. } = checkpoint;
    let published = progress.flush_lsn;
    if source.system_identifier == server.system_identifier {
        return refused(
            "this is the cluster that the checkpoint is of: it was not upgraded".into(),
        );
    }
    if source.database != server.database {
        return refused(format!(
            "the checkpoint is of database {}, but this is {}",
            source.database, server.database
        ));
    }
    if let Some(partial) = progress.partial {
        return refused(format!(
            "the transaction that commits at {} is published in part, and its rest was left \
             behind in the old cluster",
            partial.commit_lsn
        ));
    }
    // pg_upgrade lets the new cluster's log begin above the end of the old one's.
    if published > server.flushed {
        return refused(format!(
            "messages are published up to {published}, but the server's log ends at {}: it is no \
             upgrade of that cluster",
            server.flushed
        ));
    }
    Ok(())
}

fn new_source(server: &Server, slot: &str, incarnation: Incarnation) -> Source {
    Source {
        system_identifier: server.system_identifier.clone(),
        timeline: server.timeline,
        database: server.database.clone(),
        slot: slot.to_owned(),
        incarnation,
    }
}

/// Above every earlier one, also where those that were written down are lost.
fn next(stored: &Stored, unix_seconds: u32) -> Incarnation {
    let checkpoint = stored.checkpoint.as_ref().map(|checkpoint| checkpoint.source.incarnation.0);
    let intent = stored.intent.as_ref().map(|intent| intent.source.incarnation.0);
    let before = checkpoint.max(intent).unwrap_or_default();
    Incarnation(before.saturating_add(1).max(unix_seconds))
}

fn unix_seconds() -> u32 {
    u32::try_from(unix_ms() / 1_000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
