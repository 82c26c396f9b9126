//! Which of our packages may depend on which: the table of `ARCHITECTURE.md`.

/// A dependency of one of our packages on another.
pub(crate) struct Edge {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) for_tests_only: bool,
}

/// What stands in front of a package's name, and what it may use of ours.
struct Allowed {
    package: &'static str,
    may_use: &'static [&'static str],
}

const STACK: &str = "tailrace-stack";

/// Everything a program that only uses the product may import.
const ALL: &[&str] =
    &["tailrace-outbox", "tailrace-cdc-relay", "tailrace-idempotency", "tailrace-saga", STACK];

/// The libraries first, then what uses them and is used by nobody. Two roots, three edges: there
/// is no package for what two of them share.
const TABLE: &[Allowed] = &[
    Allowed { package: "tailrace-outbox", may_use: &[] },
    Allowed { package: "tailrace-idempotency", may_use: &[] },
    Allowed { package: "tailrace-cdc-relay", may_use: &["tailrace-outbox"] },
    Allowed { package: "tailrace-saga", may_use: &["tailrace-outbox", "tailrace-idempotency"] },
    Allowed { package: STACK, may_use: &[] },
    Allowed { package: "tailrace-cli", may_use: ALL },
    Allowed { package: "tailrace-bench", may_use: ALL },
    Allowed { package: "tests", may_use: ALL },
    Allowed { package: "shop", may_use: ALL },
];

/// Every package whose name begins so is an example.
const EXAMPLE: &str = "example-";

/// The packages that the table does not know, and the edges that it does not allow.
///
/// Any package but the stack may use the stack in its tests.
pub(crate) fn faults(packages: &[&str], edges: &[Edge]) -> Vec<String> {
    let unknown = packages.iter().filter(|package| may_use(package).is_none()).map(|package| {
        format!(
            "package {package} is not in the table of packages: give it a row in \
             ARCHITECTURE.md and in tests/tidy/edges.rs, or put its code into one that is there"
        )
    });
    let forbidden = edges
        .iter()
        .filter(|edge| {
            let in_its_tests = edge.for_tests_only && edge.to == STACK && edge.from != STACK;
            let allowed = may_use(&edge.from).unwrap_or(ALL).contains(&edge.to.as_str());
            !allowed && !in_its_tests
        })
        .map(|edge| {
            format!(
                "{} may not depend on {}: remove it from {}'s Cargo.toml, or decide the new edge \
                 in ARCHITECTURE.md and tests/tidy/edges.rs first",
                edge.from, edge.to, edge.from
            )
        });
    unknown.chain(forbidden).collect()
}

fn may_use(package: &str) -> Option<&'static [&'static str]> {
    if package.starts_with(EXAMPLE) {
        return Some(ALL);
    }
    TABLE.iter().find(|row| row.package == package).map(|row| row.may_use)
}

#[test]
fn a_planted_edge_is_found() {
    let check = |from: &str, to: &str, for_tests_only: bool, is_fault: bool| {
        let edge = Edge { from: from.to_owned(), to: to.to_owned(), for_tests_only };
        let found = faults(&[], &[edge]);
        assert_eq!(!found.is_empty(), is_fault, "{from} to {to}: {found:?}");
    };

    check("tailrace-cdc-relay", "tailrace-outbox", false, false);
    check("tailrace-saga", "tailrace-idempotency", false, false);
    check("tailrace-idempotency", STACK, true, false);
    check("example-01-first-light", "tailrace-cdc-relay", false, false);
    check("tests", STACK, false, false);
    check("tailrace-outbox", "tailrace-idempotency", false, true);
    check("tailrace-outbox", "tailrace-idempotency", true, true);
    check("tailrace-cdc-relay", "tailrace-idempotency", false, true);
    check("tailrace-idempotency", "tailrace-outbox", false, true);
    check("tailrace-outbox", STACK, false, true);
    check(STACK, "tailrace-outbox", true, true);
    check("tests", "example-01-first-light", false, true);
    check("tailrace-outbox", "tests", true, true);
}

#[test]
fn a_planted_package_is_found() {
    assert_eq!(faults(&["tailrace-outbox", "example-02-x", "shop"], &[]), [""; 0]);

    let found = faults(&["tailrace-common"], &[]);

    assert!(found[0].starts_with("package tailrace-common is not in the table"), "{found:?}");
}
