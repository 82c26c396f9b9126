//! `cdc-relay replay`.

use std::future::Future;
use std::io::Write as _;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::config::Config;
use crate::error::{Error, Kind};
use crate::replay::Replay;

/// What is published again, and where to.
#[derive(Args)]
pub(super) struct ReplayArgs {
    /// The first message, by its id, or a time such as 2026-11-21T10:00:00Z
    #[arg(long, value_name = "TIME|ID", required_unless_present = "resume")]
    from: Option<String>,
    /// The last message, by its id, or a time that none reaches [default: now]
    #[arg(long, value_name = "TIME|ID")]
    to: Option<String>,
    /// Only messages that were written for this topic; may be repeated
    #[arg(long, value_name = "TOPIC")]
    where_topic: Vec<String>,
    /// Publish to this topic [default: each message to its own]
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Go on with the replay that was ended before it was complete
    #[arg(long, conflicts_with_all = ["from", "to", "where_topic", "topic", "dry_run"])]
    resume: bool,
    /// Count the messages by topic, and publish nothing
    #[arg(long)]
    dry_run: bool,
}

/// Publishes again, or counts.
pub(super) async fn replay(
    config: &Config,
    arguments: ReplayArgs,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let dry_run = arguments.dry_run;
    let replay = arguments.replay();
    if dry_run {
        let plan = replay.plan(config).await?;
        if plan.is_empty() {
            say("no message is in this range\n");
        }
        for planned in plan {
            let (messages, bytes) = (planned.messages, planned.bytes);
            say(&format!("{}: {messages} messages, {bytes} bytes\n", planned.topic));
        }
        return Ok(());
    }
    // It hides itself where standard error is no terminal.
    let bar = ProgressBar::no_length();
    let template = "{bar:40} {pos}/{len} messages {per_sec} {eta}";
    bar.set_style(ProgressStyle::with_template(template).expect("the template is one"));
    let done = replay
        .run(config, stop, |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })
        .await;
    bar.finish_and_clear();
    let done = done?;
    let last = done.last.map_or_else(String::new, |id| format!(", the last is {id}"));
    let how = if done.is_complete { "" } else { "; stopped: --resume goes on behind it" };
    tracing::info!("published {} messages again{last}{how}", done.messages);
    match done.left_out {
        0 => Ok(()),
        left_out => Err(left(left_out)),
    }
}

/// What is told at the end of messages that were left out.
fn left(left_out: u64) -> Error {
    let text = format!("{left_out} messages can not be published again, and were left out");
    Error::new(Kind::Rejected, text).hint(
        "the warnings above name each; they are in the journal: when what keeps one back is mended, \
         publish it by --from ID --to ID, or to another topic by --topic",
    )
}

impl ReplayArgs {
    fn replay(self) -> Replay {
        if self.resume {
            return Replay::resume();
        }
        let mut replay = Replay::from(self.from.unwrap_or_default());
        if let Some(to) = self.to {
            replay = replay.to(to);
        }
        if let Some(topic) = self.topic {
            replay = replay.into_topic(topic);
        }
        self.where_topic.into_iter().fold(replay, Replay::of_topic)
    }
}

fn say(text: &str) {
    // Nobody may be left to read it.
    let _ = std::io::stdout().write_all(text.as_bytes());
}
