use std::time::Duration;

use super::{Adoption, Consent, Gap, Here, Span, Terms, decide, may_take};
use crate::checkpoint::{Checkpoint, Intent, Partial, Published, Reads, Stored};
use crate::error::Kind;
use crate::lsn::Lsn;
use crate::position::{Incarnation, Ordinal};
use crate::progress::Counting;
use crate::resume::tests::{server, slot, source};
use crate::resume::{Server, Slot};

const NOW: u32 = 1_700_000_000;

fn published(flush_lsn: u64, partial: Option<u64>) -> Stored {
    let source = source();
    let partial = partial.map(|commit_lsn| Partial {
        commit_lsn: Lsn(commit_lsn),
        ordinal: Ordinal(3),
        change_lsn: Lsn(commit_lsn - 1),
        counting: Counting::All,
    });
    let progress = Published { flush_lsn: Lsn(flush_lsn), partial };
    let checkpoint = Checkpoint { source: source.clone(), progress, reads: Reads::default() };
    Stored { checkpoint: Some(checkpoint), intent: Some(Intent { source }) }
}

/// Adopts with the gap accepted; timeline 1 was left at 400.
fn accept(server: &Server, slot: &Slot, stored: &Stored) -> Adoption {
    let left = |timeline| (timeline == 1).then_some(Lsn(400));
    decide(server, slot, stored, left, Consent::AcceptGap, None, NOW).unwrap().unwrap()
}

fn between(from: u64, to: u64) -> Span {
    Span::Between(Lsn(from), Lsn(to))
}

/// What happened, the server, what the slot has confirmed, what was published, where an adoption
/// goes on, and the gap.
type Case = (&'static str, Server, u64, Stored, u64, Gap);

fn cases() -> [Case; 7] {
    let later = Server { timeline: 2, ..server() };
    let stranger = Server { timeline: 3, ..server() };
    let unrelated = Stored {
        checkpoint: published(500, None).checkpoint.map(|mut checkpoint| {
            checkpoint.source.timeline = 2;
            checkpoint
        }),
        intent: None,
    };
    [
        (
            "advanced",
            server(),
            700,
            published(500, None),
            700,
            Gap { lost: between(500, 700), ..Gap::default() },
        ),
        (
            "no checkpoint",
            server(),
            700,
            Stored::default(),
            700,
            Gap { lost: Span::UpTo(Lsn(700)), twice: Span::From(Lsn(700)), ..Gap::default() },
        ),
        (
            "restored, its end gone",
            Server { flushed: Lsn(450), ..server() },
            300,
            published(500, None),
            300,
            Gap { twice: Span::From(Lsn(300)), phantom: between(450, 500), ..Gap::default() },
        ),
        (
            "another timeline, the slot behind the switch",
            later.clone(),
            300,
            published(500, None),
            400,
            Gap { phantom: between(400, 500), ..Gap::default() },
        ),
        (
            "another timeline, the slot made after the switch",
            later,
            600,
            published(500, None),
            600,
            Gap { lost: between(400, 600), phantom: between(400, 500), ..Gap::default() },
        ),
        (
            "a timeline of other ancestors",
            stranger,
            300,
            unrelated,
            300,
            Gap { twice: Span::From(Lsn(300)), ..Gap::default() },
        ),
        (
            "another cluster",
            Server { system_identifier: "75".to_owned(), ..server() },
            300,
            published(500, None),
            300,
            Gap { lost: Span::UpTo(Lsn(300)), ..Gap::default() },
        ),
    ]
}

#[test]
fn each_gap_is_told_to_the_byte_and_goes_on_where_nothing_more_is_lost() {
    for (what, server, confirmed, stored, begin, gap) in cases() {
        let adoption = accept(&server, &slot(confirmed), &stored);

        assert_eq!(adoption.progress.flush_lsn, Lsn(begin), "{what}");
        assert_eq!(adoption.gap, gap, "{what}");
        assert_eq!(adoption.source.incarnation, Incarnation(NOW), "{what}");
        assert_eq!(adoption.source.timeline, server.timeline, "{what}");
    }
}

#[test]
fn a_database_under_another_name_has_lost_nothing() {
    let renamed = Server { database: "renamed".to_owned(), ..server() };
    let with = |confirmed| Slot { database: "renamed".to_owned(), ..slot(confirmed) };

    let adoption = accept(&renamed, &with(300), &published(500, None));
    assert_eq!((adoption.progress.flush_lsn, adoption.gap), (Lsn(500), Gap::default()));

    // A slot that was made anew in another database begins above what is published.
    let other = accept(&renamed, &with(700), &published(500, None));
    assert_eq!(other.gap, Gap { lost: Span::UpTo(Lsn(700)), ..Gap::default() });
}

#[test]
fn an_incarnation_is_above_the_one_before_whatever_the_clock_says() {
    let mut stored = published(500, None);
    stored.intent.as_mut().unwrap().source.incarnation = Incarnation(NOW + 9);

    let adoption = accept(&server(), &slot(700), &stored);

    assert_eq!(adoption.source.incarnation, Incarnation(NOW + 10));
}

#[test]
fn what_is_published_of_a_split_transaction_is_kept_while_its_rest_is_to_come() {
    let kept = accept(&server(), &slot(700), &published(500, Some(800)));
    assert_eq!(kept.progress.partial.unwrap().commit_lsn, Lsn(800));

    let gone = accept(&server(), &slot(700), &published(500, Some(600)));
    assert_eq!(gone.progress.partial, None);
}

#[test]
fn nothing_is_adopted_where_a_relay_could_go_on() {
    let decided = |slot: &Slot, stored: &Stored| {
        decide(&server(), slot, stored, |_| None, Consent::AcceptGap, None, NOW).unwrap()
    };

    assert_eq!(decided(&slot(400), &published(500, None)), None);
    let intent = published(500, None).intent;
    assert_eq!(decided(&slot(400), &Stored { checkpoint: None, intent }), None);
}

#[test]
fn an_upgrade_is_believed_only_as_far_as_it_can_be_one() {
    let other = Server { system_identifier: "75".to_owned(), ..server() };
    let upgrade = |server: &Server, slot: &Slot, stored: &Stored| {
        decide(server, slot, stored, |_| None, Consent::Upgraded, None, NOW)
    };

    let adoption = upgrade(&other, &slot(700), &published(500, None)).unwrap().unwrap();
    assert_eq!((adoption.progress.flush_lsn, adoption.gap), (Lsn(700), Gap::default()));
    assert_eq!(adoption.source.system_identifier, "75");

    for (what, server, stored) in [
        ("not another cluster", server(), published(500, None)),
        ("no checkpoint", other.clone(), Stored::default()),
        ("half a transaction", other.clone(), published(500, Some(600))),
        (
            "a log that is behind",
            Server { flushed: Lsn(499), ..other.clone() },
            published(500, None),
        ),
    ] {
        let refused = upgrade(&server, &slot(700), &stored).unwrap_err();
        assert_eq!(refused.kind(), Kind::Gap, "{what}");
        assert!(refused.mend().is_some(), "{what}");
    }
}

#[test]
fn another_prefix_is_adopted_where_it_was_left_and_says_what_is_not_read() {
    let mut stored = published(500, None);
    let prefix = Some("before".to_owned());
    stored.checkpoint.as_mut().unwrap().reads = Reads { prefix, publication: None };
    let decided = |prefix| {
        decide(&server(), &slot(400), &stored, |_| None, Consent::AcceptGap, prefix, NOW).unwrap()
    };

    let adoption = decided(Some("now")).unwrap();

    assert_eq!((adoption.progress.flush_lsn, adoption.gap), (Lsn(500), Gap::default()));
    assert_eq!(adoption.former_prefix.as_deref(), Some("before"));
    assert_eq!(decided(Some("before")), None);
}

#[test]
fn a_relay_of_another_slot_is_ended_only_if_a_person_says_so() {
    let stored = published(500, None);
    let copy = Server { database: "copy".to_owned(), ..server() };
    let elsewhere = Server { system_identifier: "75".to_owned(), ..server() };
    let given = |consent, take_over| Terms { consent, take_over };
    let accepts = given(Consent::AcceptGap, false);
    let (young, old) = (Some(Duration::from_secs(3)), Some(Duration::from_secs(300)));
    let taken = |server: &Server, name: &str, confirmed: Option<u64>, age, terms| {
        let found = confirmed.map(|confirmed| Slot { name: name.to_owned(), ..slot(confirmed) });
        let here = Here { server, slot: name, found: found.as_ref() };
        may_take(&here, &stored, age, terms)
    };

    for (server, name, confirmed, age) in [
        (&copy, "another", None, old),
        (&copy, "another", Some(400), old),
        // The same name in another database: dropped there and made here.
        (&copy, "tailrace", None, old),
        (&copy, "tailrace", Some(700), old),
        (&server(), "another", None, old),
        (&elsewhere, "tailrace", Some(400), young),
    ] {
        let refused = taken(server, name, confirmed, age, accepts).unwrap_err();
        assert_eq!(refused.kind(), Kind::Gap);
        assert!(refused.mend().unwrap().contains("--take-over"), "{refused:?}");
        taken(server, name, confirmed, age, given(Consent::AcceptGap, true)).unwrap();
    }

    // One that was initialised and has not led yet is ended no sooner.
    let begun = Stored { checkpoint: None, ..published(500, None) };
    let here = Here { server: &copy, slot: "another", found: None };
    may_take(&here, &begun, None, accepts).unwrap_err();

    taken(&server(), "tailrace", None, young, accepts).unwrap();
    taken(&copy, "tailrace", Some(400), young, accepts).unwrap();
    taken(&elsewhere, "tailrace", Some(400), old, accepts).unwrap();
    taken(&elsewhere, "tailrace", None, young, given(Consent::Upgraded, false)).unwrap();
}
