//! Decides at the start of a session where to go on, or why not to.
//!
//! Slot, checkpoint and server must belong together. Every way in which one of them can have
//! changed under the others is refused with the gap, because going on would lose or repeat
//! messages without a word.

use crate::checkpoint::{Checkpoint, Intent, Published, Source, Stored};
use crate::error::{Error, Kind};
use crate::lsn::Lsn;

/// What the server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) system_identifier: String,
    pub(crate) timeline: u32,
    pub(crate) database: String,
    /// End of the flushed log.
    pub(crate) flushed: Lsn,
}

/// What the server says of the slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) plugin: String,
    pub(crate) database: String,
    pub(crate) two_phase: bool,
    /// `None` where the slot is not yet usable.
    pub(crate) confirmed_flush: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub(crate) wal_status: String,
}

impl Slot {
    /// Whether the server still has the log that the slot begins with.
    pub(crate) fn is_readable(&self) -> bool {
        self.confirmed_flush.is_some() && self.wal_status != "lost"
    }

    /// Refuses a slot that this relay could never read rightly, whatever it has published.
    pub(crate) fn check(&self, server: &Server) -> Result<(), Error> {
        let refused = |why: String, hint: &'static str| {
            Err(Error::new(Kind::Server, format!("slot {:?} {why}", self.name)).hint(hint))
        };
        if self.plugin != "pgoutput" {
            let why = format!("uses the output plugin {:?}, not pgoutput", self.plugin);
            return refused(
                why,
                "choose another slot by --slot: this one belongs to another program",
            );
        }
        if self.database != server.database {
            let why = format!("is one of database {:?}, not {:?}", self.database, server.database);
            return refused(
                why,
                "choose another slot by --slot, or another database by DATABASE_URL",
            );
        }
        if self.two_phase {
            let hint = "a two-phase slot sends a transaction before it commits: drop it and let the relay create one";
            return refused("has two_phase on".to_owned(), hint);
        }
        Ok(())
    }
}

/// Where a session begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) source: Source,
    pub(crate) progress: Published,
    /// Nothing was published from this slot yet: its first checkpoint is written at once.
    pub(crate) first: bool,
}

/// Decides what to do when the slot does not exist: the intent to record before it is created.
pub(crate) fn create(
    server: &Server,
    slot: &str,
    stored: &Stored,
    incarnation: crate::position::Incarnation,
) -> Result<Intent, Error> {
    is_ours(server, slot, stored)?;
    if let Some(checkpoint) = &stored.checkpoint {
        let published = checkpoint.progress.flush_lsn;
        return Err(gap(format!(
            "slot {slot:?} does not exist, but messages up to {published} were published from it; \
             what committed between {published} and {} is out of reach of a new slot",
            server.flushed
        )));
    }
    Ok(Intent {
        source: Source {
            system_identifier: server.system_identifier.clone(),
            timeline: server.timeline,
            database: server.database.clone(),
            slot: slot.to_owned(),
            incarnation,
        },
    })
}

/// Decides where to go on from an existing slot that this relay holds.
///
/// `switched` answers at which LSN the server's history left a timeline, `None` when that
/// timeline is no ancestor of the server's.
pub(crate) fn resume(
    server: &Server,
    slot: &Slot,
    stored: &Stored,
    switched: impl Fn(u32) -> Option<Lsn>,
) -> Result<Start, Error> {
    let Some(confirmed) = slot.confirmed_flush.filter(|_| slot.is_readable()) else {
        let published = stored.checkpoint.as_ref().map(|checkpoint| checkpoint.progress.flush_lsn);
        let since = published.map_or_else(|| "its creation".to_owned(), |lsn| lsn.to_string());
        return Err(gap(format!(
            "slot {:?} is lost: the server has removed log that it needed; what committed between \
             {since} and {} is out of reach",
            slot.name, server.flushed
        )));
    };
    match (&stored.checkpoint, &stored.intent) {
        (Some(checkpoint), intent) => {
            belongs(&checkpoint.source, server, &slot.name)?;
            finished(checkpoint, intent.as_ref())?;
            reaches(checkpoint, confirmed, server, switched)?;
            let source = Source { timeline: server.timeline, ..checkpoint.source.clone() };
            Ok(Start { source, progress: checkpoint.progress, first: false })
        }
        (None, Some(intent)) => {
            belongs(&intent.source, server, &slot.name)?;
            let source = Source { timeline: server.timeline, ..intent.source.clone() };
            let progress = Published { flush_lsn: confirmed, partial: None };
            Ok(Start { source, progress, first: true })
        }
        (None, None) => Err(gap(format!(
            "slot {:?} exists (flushed to {confirmed}), but this relay has no checkpoint: it was \
             made or read by something else, the checkpoint topic was lost, or the relay had \
             another id",
            slot.name
        ))
        .hint(NO_CHECKPOINT)),
    }
}

/// Refuses what another relay has saved under this relay's id: an id that was copied. To be asked
/// before anybody is fenced, for that one may lead.
pub(crate) fn is_ours(server: &Server, slot: &str, stored: &Stored) -> Result<(), Error> {
    let checkpoint = stored.checkpoint.as_ref().map(|checkpoint| &checkpoint.source);
    let intent = stored.intent.as_ref().map(|intent| &intent.source);
    checkpoint.or(intent).map_or(Ok(()), |source| belongs(source, server, slot))
}

/// Refuses a relay that takes other messages for its own than those that were published: what is
/// in the log of the former would be passed over. `None` where no messages of the log are published.
pub(crate) fn same_prefix(stored: &Stored, prefix: Option<&str>) -> Result<(), Error> {
    let Some(checkpoint) = &stored.checkpoint else { return Ok(()) };
    match (&checkpoint.reads.prefix, prefix) {
        (Some(before), Some(now)) if before != now => {
            let published = checkpoint.progress.flush_lsn;
            Err(Error::new(
                Kind::Gap,
                format!(
                    "messages with the prefix {before:?} are published up to {published}, but this \
                     relay is to publish those with {now:?}: what has the former prefix and \
                     committed since would be passed over"
                ),
            )
            .hint(format!(
                "let no service write the former prefix any more, run the relay with --prefix \
                 {before} until cdc-relay status shows no lag, stop it, then cdc-relay adopt \
                 --accept-gap with the new one"
            )))
        }
        _ => Ok(()),
    }
}

/// An adoption writes its intent before it makes a slot, and the checkpoint after.
fn finished(checkpoint: &Checkpoint, intent: Option<&Intent>) -> Result<(), Error> {
    match intent {
        Some(intent) if intent.source.incarnation > checkpoint.source.incarnation => {
            Err(gap(format!(
                "a new incarnation was begun and not finished; messages are published up to {}",
                checkpoint.progress.flush_lsn
            )))
        }
        _ => Ok(()),
    }
}

/// Fails unless what is saved is of this slot of this database.
pub(crate) fn belongs(source: &Source, server: &Server, slot: &str) -> Result<(), Error> {
    let Source { system_identifier, database, slot: of_slot, .. } = source;
    if *system_identifier == server.system_identifier
        && *database == server.database
        && of_slot == slot
    {
        return Ok(());
    }
    let text = format!(
        "the checkpoint is of slot {of_slot:?} of database {database:?} in cluster \
         {system_identifier}, but this is slot {slot:?} of database {:?} in cluster {}",
        server.database, server.system_identifier
    );
    Err(gap(text).hint(
        "if the relay of that slot is to go on, give this one an id of its own by --relay-id; if \
         this one takes its place, as after the database was renamed, moved or restored, stop that \
         one for good: cdc-relay adopt --accept-gap goes on from here, and after pg_upgrade with \
         nothing missing cdc-relay adopt --upgraded",
    ))
}

fn reaches(
    checkpoint: &Checkpoint,
    confirmed: Lsn,
    server: &Server,
    switched: impl Fn(u32) -> Option<Lsn>,
) -> Result<(), Error> {
    let published = checkpoint.progress.flush_lsn;
    // Only we flush the slot, and only to a committed checkpoint; beyond it something was skipped.
    if confirmed > published {
        return Err(gap(format!(
            "the slot was flushed to {confirmed}, but messages are published only up to \
             {published}: what committed in between was skipped"
        )));
    }
    if published > server.flushed {
        return Err(gap(format!(
            "messages are published up to {published}, but the server's log ends at {}: it was \
             restored or lost its end",
            server.flushed
        )));
    }
    let timeline = checkpoint.source.timeline;
    if timeline != server.timeline {
        match switched(timeline) {
            Some(left) if published <= left => {}
            Some(left) => {
                return Err(gap(format!(
                    "messages are published up to {published} of timeline {timeline}, but the \
                     server left that timeline at {left}: what it wrote in between never \
                     existed here"
                )));
            }
            None => {
                return Err(gap(format!(
                    "the checkpoint is of timeline {timeline}, which is no ancestor of the \
                     server's timeline {}",
                    server.timeline
                )));
            }
        }
    }
    Ok(())
}

const NO_CHECKPOINT: &str = "nothing was published; the default relay id holds the cluster's number, \
     the database's name and the slot's: if one of them is another one than before, give the former \
     id by --relay-id (its topic is tailrace.checkpoint.ID); else, when you know what is missing, \
     cdc-relay adopt --accept-gap goes on from here";

fn gap(text: String) -> Error {
    Error::new(Kind::Gap, text).hint(
        "nothing was published; when you know what is missing, cdc-relay adopt --accept-gap goes \
         on from here, and after pg_upgrade with nothing missing cdc-relay adopt --upgraded",
    )
}

/// When a timeline was left, from the text of a timeline history file
/// (<https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES>).
pub(crate) fn left_at(history: &str, timeline: u32) -> Option<Lsn> {
    history.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let parent: u32 = words.next()?.parse().ok()?;
        (parent == timeline).then(|| words.next()?.parse().ok()).flatten()
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Server, Slot, Start, create, is_ours, left_at, resume, same_prefix};
    use crate::checkpoint::{Checkpoint, Intent, Published, Reads, Source, Stored};
    use crate::error::Kind;
    use crate::lsn::Lsn;
    use crate::position::Incarnation;

    pub(crate) fn server() -> Server {
        Server {
            system_identifier: "74".to_owned(),
            timeline: 1,
            database: "shop".to_owned(),
            flushed: Lsn(1_000),
        }
    }

    pub(crate) fn slot(confirmed: u64) -> Slot {
        Slot {
            name: "tailrace".to_owned(),
            plugin: "pgoutput".to_owned(),
            database: "shop".to_owned(),
            two_phase: false,
            confirmed_flush: Some(Lsn(confirmed)),
            wal_status: "reserved".to_owned(),
        }
    }

    pub(crate) fn source() -> Source {
        Source {
            system_identifier: "74".to_owned(),
            timeline: 1,
            database: "shop".to_owned(),
            slot: "tailrace".to_owned(),
            incarnation: Incarnation(5),
        }
    }

    fn published(flush_lsn: u64) -> Stored {
        let progress = Published { flush_lsn: Lsn(flush_lsn), partial: None };
        let checkpoint = Checkpoint { source: source(), progress, reads: Reads::default() };
        Stored { checkpoint: Some(checkpoint), intent: Some(Intent { source: source() }) }
    }

    #[test]
    fn goes_on_from_the_checkpoint_at_or_above_the_slot() {
        for confirmed in [1, 499, 500] {
            let start = resume(&server(), &slot(confirmed), &published(500), |_| None).unwrap();

            let progress = Published { flush_lsn: Lsn(500), partial: None };
            assert_eq!(start, Start { source: source(), progress, first: false });
        }
    }

    #[test]
    fn a_slot_made_by_an_intent_begins_where_it_was_made() {
        let stored = Stored { checkpoint: None, intent: Some(Intent { source: source() }) };

        let start = resume(&server(), &slot(300), &stored, |_| None).unwrap();

        assert!(start.first);
        assert_eq!(start.progress.flush_lsn, Lsn(300));
    }

    #[test]
    fn whatever_does_not_belong_together_is_refused_with_the_gap() {
        let refused = |server: &Server, slot: &Slot, stored: &Stored| {
            let error = resume(server, slot, stored, |_| Some(Lsn(400))).unwrap_err();
            assert_eq!(error.kind(), Kind::Gap, "{error}");
            assert!(error.mend().is_some());
            error.to_string()
        };
        let stored = published(500);

        let mut begun = published(500);
        begun.intent.as_mut().unwrap().source.incarnation = Incarnation(6);
        refused(&server(), &slot(1), &begun);
        let skipped = refused(&server(), &slot(501), &stored);
        assert!(skipped.contains("0/1F5") && skipped.contains("0/1F4"), "{skipped}");
        refused(&server(), &slot(1), &Stored::default());
        refused(&server(), &Slot { wal_status: "lost".to_owned(), ..slot(1) }, &stored);
        refused(&server(), &Slot { confirmed_flush: None, ..slot(1) }, &stored);
        refused(&server(), &Slot { name: "other".to_owned(), ..slot(1) }, &stored);
        refused(&Server { system_identifier: "75".to_owned(), ..server() }, &slot(1), &stored);
        refused(&Server { database: "other".to_owned(), ..server() }, &slot(1), &stored);
        refused(&Server { flushed: Lsn(499), ..server() }, &slot(1), &stored);
        // Timeline 1 was left at 400, messages of it are published up to 500.
        refused(&Server { timeline: 2, ..server() }, &slot(1), &stored);
    }

    #[test]
    fn a_failover_goes_on_when_nothing_published_was_lost() {
        let server = Server { timeline: 2, ..server() };
        let at_the_switch = resume(&server, &slot(1), &published(500), |_| Some(Lsn(500))).unwrap();
        assert_eq!(at_the_switch.source.timeline, 2);

        let stranger = resume(&server, &slot(1), &published(500), |_| None).unwrap_err();
        assert_eq!(stranger.kind(), Kind::Gap);
    }

    #[test]
    fn a_new_slot_is_made_only_where_nothing_was_published() {
        let intent = create(&server(), "tailrace", &Stored::default(), Incarnation(9)).unwrap();
        assert_eq!(intent.source.incarnation, Incarnation(9));

        let refused = create(&server(), "tailrace", &published(500), Incarnation(9)).unwrap_err();
        assert_eq!(refused.kind(), Kind::Gap);
    }

    #[test]
    fn an_id_that_was_copied_is_refused_with_whose_it_is() {
        let other = Server { database: "copy".to_owned(), ..server() };
        let begun = Stored { checkpoint: None, ..published(500) };
        let done = Stored { intent: None, ..published(500) };
        for stored in [&published(500), &begun, &done] {
            for (server, slot) in [(&other, "tailrace"), (&server(), "another")] {
                let refused = create(server, slot, stored, Incarnation(9)).unwrap_err();

                assert_eq!(
                    is_ours(server, slot, stored).unwrap_err().to_string(),
                    refused.to_string()
                );
                let text = refused.to_string();
                assert!(text.contains("of slot \"tailrace\" of database \"shop\""), "{text}");
                assert!(refused.mend().unwrap().contains("--relay-id"), "{refused:?}");
            }
            is_ours(&server(), "tailrace", stored).unwrap();
        }
        is_ours(&other, "another", &Stored::default()).unwrap();
    }

    #[test]
    fn another_prefix_than_was_published_is_refused_and_an_unknown_one_is_not() {
        let with = |prefix: Option<&str>| {
            let mut stored = published(500);
            let prefix = prefix.map(str::to_owned);
            stored.checkpoint.as_mut().unwrap().reads = Reads { prefix, publication: None };
            stored
        };

        let refused = same_prefix(&with(Some("a")), Some("b")).unwrap_err();

        assert_eq!(refused.kind(), Kind::Gap);
        let text = refused.to_string();
        assert!(
            text.contains("\"a\"") && text.contains("\"b\"") && text.contains("0/1F4"),
            "{text}"
        );
        for (before, now) in [(None, Some("b")), (Some("a"), Some("a")), (Some("a"), None)] {
            same_prefix(&with(before), now).unwrap();
        }
        same_prefix(&Stored::default(), Some("b")).unwrap();
    }

    #[test]
    fn a_slot_of_another_kind_is_refused() {
        for wrong in [
            Slot { plugin: "test_decoding".to_owned(), ..slot(1) },
            Slot { database: "other".to_owned(), ..slot(1) },
            Slot { two_phase: true, ..slot(1) },
        ] {
            assert_eq!(wrong.check(&server()).unwrap_err().kind(), Kind::Server);
        }
        slot(1).check(&server()).unwrap();
    }

    #[test]
    fn a_history_file_tells_where_a_timeline_was_left() {
        let history = "1\t0/3000000\tno recovery target specified\n\n2\t0/5000110\tafter LSN\n";

        assert_eq!(left_at(history, 1), Some(Lsn(0x300_0000)));
        assert_eq!(left_at(history, 2), Some(Lsn(0x500_0110)));
        assert_eq!(left_at(history, 3), None);
    }
}
