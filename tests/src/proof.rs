//! What a proof is: a name, a claim, and a body that both tests and people run.

use std::pin::Pin;

use indicatif::ProgressBar;
use tailrace_stack::Stack;

use crate::process::Node;
use crate::{
    consumer_chaos, foreign_wal, giant_transaction, kafka_crash, outbox_arrival, relay_crash,
    relay_shapes, relay_zombies, saga_chaos, saga_deploy, shop_run, soak,
};

/// How much of the same work a proof does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Seconds: what `cargo test` runs.
    Small,
    /// Minutes: what `prove` runs.
    Full,
}

/// What a body is given.
#[derive(Debug)]
pub struct Bench<'a> {
    /// The servers.
    pub stack: &'a Stack,
    /// What plays the processes under test.
    pub node: Node,
    /// How much to do.
    pub scale: Scale,
    /// Counts what is done; a test passes a hidden one.
    pub bar: ProgressBar,
}

/// What a body found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What was done and counted, in the order to show.
    pub figures: Vec<(&'static str, String)>,
    /// Why the claim does not hold; empty when it does.
    pub faults: Vec<String>,
}

impl Report {
    /// Adds a figure.
    pub fn figure(&mut self, name: &'static str, value: impl ToString) {
        self.figures.push((name, value.to_string()));
    }

    /// Whether the claim holds.
    pub fn passes(&self) -> bool {
        self.faults.is_empty()
    }
}

/// The body of a proof. It panics where it can not go on.
pub type Body = for<'a> fn(Bench<'a>) -> Pin<Box<dyn Future<Output = Report> + 'a>>;

/// A claim of the product, and what shows it.
#[derive(Debug)]
pub struct Proof {
    /// By which it is asked for.
    pub name: &'static str,
    /// What is claimed.
    pub claim: &'static str,
    /// What shows it.
    pub body: Body,
}

/// Every proof.
pub const PROOFS: &[Proof] = &[
    Proof {
        name: "consumer-chaos",
        claim: "each effect happens once and in order per key, while consumers come, go, are killed \
                and stopped, Postgres dies, keys are parked, and every record comes twice",
        body: |bench| Box::pin(consumer_chaos::prove(bench)),
    },
    Proof {
        name: "giant-transaction",
        claim: "ten million rows of one transaction are published once and in order within 96 MB, \
                received while it is in progress or after it",
        body: |bench| Box::pin(giant_transaction::prove(bench)),
    },
    Proof {
        name: "kafka-crash",
        claim: "a Kafka that is killed again and again under a relay in full swing, inside its commits too, \
                loses and doubles nothing, and the relay goes on by itself",
        body: |bench| Box::pin(kafka_crash::prove(bench)),
    },
    Proof {
        name: "outbox-arrival",
        claim: "what many connections commit at once arrives once, in commit order per key; \
                nothing else does",
        body: |bench| Box::pin(outbox_arrival::prove(bench)),
    },
    Proof {
        name: "relay-crash",
        claim: "a relay that is killed at any point loses nothing, doubles nothing and keeps the \
                order",
        body: |bench| Box::pin(relay_crash::prove(bench)),
    },
    Proof {
        name: "relay-shapes",
        claim: "that holds for transactions of every shape, in the log, the journal and a table, \
                between any two of their messages",
        body: |bench| Box::pin(relay_shapes::prove(bench)),
    },
    Proof {
        name: "relay-zombies",
        claim: "a relay that is stopped inside a transaction and wakes up after another took over \
                publishes nothing",
        body: |bench| Box::pin(relay_zombies::prove(bench)),
    },
    Proof {
        name: "foreign-wal",
        claim: "30 s after another database has written 10 GB, the slot of an idle one keeps no more \
                than 64 MB of log",
        body: |bench| Box::pin(foreign_wal::prove(bench)),
    },
    Proof {
        name: "saga-chaos",
        claim: "every saga completes or leaves nothing behind, while refusals, time-outs, killed and \
                stopped processes, and servers that die, come over engines, participants and relays",
        body: |bench| Box::pin(saga_chaos::prove(bench)),
    },
    Proof {
        name: "saga-deploy",
        claim: "running sagas stay on their version while the next one comes, is rolled back, and the \
                old one is removed too early: they wait, are migrated, and end",
        body: |bench| Box::pin(saga_deploy::prove(bench)),
    },
    Proof {
        name: "shop",
        claim: "the books of the shop are right after every trouble and after a minute without Kafka, \
                those of the lane without us are not, and no planted bug escapes them",
        body: |bench| Box::pin(shop_run::prove(bench)),
    },
    Proof {
        name: "soak",
        claim: "the relay's memory does not grow, whatever it publishes and however often it begins \
                anew",
        body: |bench| Box::pin(soak::prove(bench)),
    },
];
