//! What a person sees.
#![expect(clippy::print_stderr, reason = "errors and stages are for the person who runs it")]

use std::error::Error;
use std::io::{IsTerminal, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing_subscriber::EnvFilter;

use crate::accident::Killed;
use crate::books::Books;

/// Progress of the four stages that run at the same time.
#[derive(Clone)]
pub(crate) struct Bars {
    written: ProgressBar,
    published: ProgressBar,
    applied: ProgressBar,
    suppressed: ProgressBar,
    orders: u64,
    orders_written: Arc<AtomicU64>,
}

impl Bars {
    pub(crate) fn new(orders: u64) -> Self {
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template(
            "{msg:>22} [{bar:40}] {human_pos:>9}/{human_len} {elapsed}",
        )
        .expect("the template is right")
        .progress_chars("=> ");
        let bar = |what: &'static str| {
            all.add(ProgressBar::new(orders).with_style(style.clone()).with_message(what))
        };
        Bars {
            written: bar("orders committed"),
            published: bar("records published"),
            applied: bar("effects applied"),
            suppressed: bar("duplicates suppressed"),
            orders,
            orders_written: Arc::default(),
        }
    }

    /// One line per stage where there is no terminal to draw bars on.
    pub(crate) fn stage(&self, what: &str) {
        if !std::io::stderr().is_terminal() {
            eprintln!("{what}");
        }
    }

    pub(crate) fn orders(&self) -> u64 {
        self.orders
    }

    pub(crate) fn orders_written(&self) -> u64 {
        self.orders_written.load(Ordering::Relaxed)
    }

    pub(crate) fn records_published(&self) -> u64 {
        self.published.position()
    }

    pub(crate) fn written(&self) {
        self.orders_written.fetch_add(1, Ordering::Relaxed);
        self.written.inc(1);
    }

    pub(crate) fn published(&self, records: u64) {
        self.published.set_position(records);
    }

    pub(crate) fn applied(&self, effects: u64) {
        self.applied.set_position(effects);
    }

    pub(crate) fn suppressed(&self, duplicates: u64) {
        self.suppressed.set_position(duplicates);
    }

    pub(crate) fn finish(&self) {
        for bar in [&self.written, &self.published, &self.applied, &self.suppressed] {
            bar.finish();
        }
    }
}

/// Log lines of the toolkit: warnings, unless RUST_LOG says otherwise.
pub(crate) fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,rdkafka=off,librdkafka=off"));
    let colours = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours);
    builder.with_writer(std::io::stderr).init();
}

/// What is about to happen.
pub(crate) fn story(orders: u32) {
    say(&format!(
        "First light: {orders} business transactions write an order and its message together; some are \
         rolled\nback first. The relay tails the write-ahead log into Kafka. It is killed by SIGKILL \
         inside an\nopen Kafka transaction and started again. A second producer repeats every record. \
         The consumer\nships each order once.\n"
    ));
}

/// The books, and the verdict on them.
pub(crate) fn books(books: &Books, killed: Killed, took: Duration) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header(["", "", "counted by"]);
    for (what, count, by) in [
        ("committed", books.committed, "Postgres"),
        ("rolled back", books.rolled_back, "the writers"),
        ("published", books.published, "an independent read_committed reader of Kafka"),
        ("repeated", books.repeated, "the second producer"),
        ("delivered", books.delivered, "the consumer"),
        ("applied", books.applied, "Postgres"),
        ("duplicates suppressed", books.suppressed, "the consumer"),
        ("order violations", books.violations, "Postgres"),
    ] {
        table.add_row([what, &count.to_string(), by]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    say(&format!("\n{table}"));
    say(&format!(
        "\nThe relay was killed after {} orders, with {} records in a Kafka transaction that it \
         had not committed.\nAll of it took {:.1} s.",
        killed.orders,
        killed.open_records,
        took.as_secs_f64()
    ));
    say(if books.agree() {
        "The books agree: each committed order was published once and applied once, in order."
    } else {
        "THE BOOKS DO NOT AGREE."
    });
}

/// The one error that ends the example, with what is behind it.
pub(crate) fn failure(failure: &(dyn Error + Send + Sync + 'static)) {
    let mut text = format!("error: {failure}");
    let mut source = failure.source();
    while let Some(cause) = source {
        text.push_str(&format!("\n  cause: {cause}"));
        source = cause.source();
    }
    let relay = failure.downcast_ref::<tailrace_cdc_relay::Error>();
    if let Some(mend) = relay.and_then(tailrace_cdc_relay::Error::mend) {
        text.push_str(&format!("\n  mend: {mend}"));
    }
    eprintln!("{text}");
}

/// Writes to standard output; a reader that has gone away is no reason to fail.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
