//! `cdc-relay adopt`: the gap in words.

use std::fmt::Write as _;

use clap::Args;

use crate::adopt::{self, Adoption, Consent, Span, Terms};
use crate::config::Config;
use crate::config::measure::show_size;
use crate::error::Error;
use crate::sink::Kafka;

/// On which terms to adopt.
#[derive(Args)]
pub(super) struct Way {
    #[command(flatten)]
    given: Given,
    /// The checkpoint is another slot's or database's, whose relay is stopped for good: go on in
    /// its place
    #[arg(long)]
    take_over: bool,
}

/// Which consent is given: one has to be.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Given {
    /// Whatever is missing is known and accepted: the slot was dropped, made anew or advanced, the
    /// checkpoint was lost, the database was restored or moved, a failover lost commits
    #[arg(long)]
    accept_gap: bool,
    /// The cluster was upgraded by pg_upgrade while no service wrote, after the relay had caught
    /// up and was stopped: nothing is missing
    #[arg(long)]
    upgraded: bool,
}

impl Way {
    pub(super) fn terms(&self) -> Terms {
        let consent = match self.given.upgraded {
            true => Consent::Upgraded,
            false => Consent::AcceptGap,
        };
        Terms { consent, take_over: self.take_over }
    }
}

/// Adopts, and answers with what that came to.
pub(super) async fn adopt(config: &Config, terms: Terms) -> Result<String, Error> {
    let adoption = adopt::adopt(config, &Kafka::of(config), terms).await?;
    Ok(match adoption {
        Some(adoption) => describe(&adoption),
        None => "nothing to adopt: a relay can go on, or begin, as it is\n".to_owned(),
    })
}

fn describe(adoption: &Adoption) -> String {
    let Adoption { source, progress, reason, before, gap, former_prefix } = adoption;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // A string takes any text.
        let _ = writeln!(text, "{name:10} {value}");
    };
    line("adopted", format!("slot {} as incarnation {}", source.slot, source.incarnation.0));
    line("refused", format!("before because {reason}"));
    line(
        "published",
        match before {
            None => "nobody knows up to where".to_owned(),
            Some(before) => format!(
                "up to {} of cluster {}, timeline {}, incarnation {}",
                before.progress.flush_lsn,
                before.source.system_identifier,
                before.source.timeline,
                before.source.incarnation.0
            ),
        },
    );
    line(
        "lost",
        match gap.lost {
            Span::Nothing => "nothing".to_owned(),
            lost => format!("what committed {}", span(lost)),
        },
    );
    if let Some(prefix) = former_prefix {
        let after = progress.flush_lsn;
        line("unread", format!("messages with the prefix {prefix:?} that committed after {after}"));
    }
    if gap.twice != Span::Nothing {
        line("twice", format!("perhaps what committed {}, with the ids it had", span(gap.twice)));
    }
    if gap.phantom != Span::Nothing {
        let phantom = span(gap.phantom);
        line("phantom", format!("published, but not in this database: what committed {phantom}"));
    }
    line("goes on", format!("after {}", progress.flush_lsn));
    text
}

fn span(span: Span) -> String {
    match span {
        Span::Nothing => "nowhere".to_owned(),
        Span::Between(from, to) => {
            format!("after {from} up to {to} ({} of log)", show_size(to.0 - from.0))
        }
        Span::UpTo(to) => format!("up to {to}, as far as it was not published before"),
        Span::From(from) => format!("after {from}"),
    }
}
