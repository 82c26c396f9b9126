use super::{Found, Slot, judge};
use crate::Reaction;

/// A database on which nothing is wrong.
const GOOD: Found<'_> = Found {
    wal_level: "logical",
    database: "shop",
    wanted: "tailrace",
    slot: Some(Slot {
        name: "tailrace",
        is_logical: true,
        database: Some("shop"),
        plugin: Some("pgoutput"),
        is_lost: false,
    }),
};

#[test]
fn what_keeps_messages_from_the_relay_is_said_with_the_way_to_mend_it() {
    let check = |found: Found<'_>, expected: &str| {
        let error = judge(&found).expect_err(expected);

        assert!(error.to_string().starts_with(expected), "{error}");
        assert!(error.is_setup());
        assert_eq!(error.reaction(), Reaction::Stop);
    };
    let slot = GOOD.slot.unwrap();

    judge(&GOOD).unwrap();
    check(
        Found { wal_level: "replica", ..GOOD },
        "wal_level is replica, and messages need logical; run ALTER SYSTEM SET wal_level",
    );
    check(
        Found { slot: None, ..GOOD },
        "there is no replication slot \"tailrace\"; start cdc-relay on database \"shop\"",
    );
    check(
        Found {
            slot: Some(Slot { is_logical: false, database: None, plugin: None, ..slot }),
            ..GOOD
        },
        "replication slot \"tailrace\" is physical",
    );
    check(
        Found { slot: Some(Slot { database: Some("other"), ..slot }), ..GOOD },
        "replication slot \"tailrace\" is of database \"other\", and this one is \"shop\"",
    );
    check(
        Found { slot: Some(Slot { plugin: Some("wal2json"), ..slot }), ..GOOD },
        "replication slot \"tailrace\" has the plugin \"wal2json\", and the relay reads pgoutput",
    );
    check(
        Found { slot: Some(Slot { is_lost: true, ..slot }), ..GOOD },
        "replication slot \"tailrace\" is invalidated",
    );
}
