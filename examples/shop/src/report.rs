//! What the shop says on standard output.
#![expect(clippy::print_stdout, reason = "what it prints is what it shows")]

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{Table, presets};

use crate::books::{Books, ControlBooks, Ended};
use crate::order::Style;

/// What became of a run.
pub(crate) struct Outcome {
    pub(crate) orders: u64,
    pub(crate) all_ended: bool,
    /// Of those that have not, some, with what is known of why.
    pub(crate) unended: Vec<String>,
    /// Dead letters that were tried again.
    pub(crate) retried: u64,
    pub(crate) books: Books,
    pub(crate) control: ControlBooks,
    pub(crate) duplicates: u64,
    pub(crate) dead_letters: u64,
    pub(crate) copies: u64,
    pub(crate) restarts: u64,
    pub(crate) took: Duration,
}

impl Outcome {
    /// Whether every order has ended, and the books add up.
    pub(crate) fn is_right(&self) -> bool {
        self.all_ended
            && self.books.ended == self.orders
            && self.books.wrong + self.books.settling == 0
    }
}

pub(crate) fn line(text: &str) {
    println!("{text}");
}

pub(crate) fn print(outcome: &Outcome) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["", "choreography", "orchestration"]);
    let of = |tell: &dyn Fn(&[&Ended]) -> String| {
        Style::ALL.map(|style| tell(&outcome.books.of(style).collect::<Vec<_>>()))
    };
    let mut row = |name: &str, cells: [String; 2]| {
        let [choreography, orchestration] = cells;
        table.add_row([name.to_owned(), choreography, orchestration]);
    };
    row("completed", of(&|orders| orders.iter().filter(|it| it.completed).count().to_string()));
    let mut reasons: BTreeMap<&str, ()> = BTreeMap::new();
    for order in outcome.books.orders.iter().filter(|order| !order.completed) {
        reasons.insert(order.reason.as_deref().unwrap_or("it took too long"), ());
    }
    for reason in reasons.keys() {
        let is = |order: &&&Ended| {
            !order.completed && order.reason.as_deref().unwrap_or("it took too long") == *reason
        };
        row(&format!("rejected: {reason}"), of(&|all| all.iter().filter(is).count().to_string()));
    }
    row("compensations", of(&|all| all.iter().map(|it| it.undone).sum::<u64>().to_string()));
    for (name, completed) in [("completed", true), ("rejected", false)] {
        for percent in [50, 99] {
            let is = |order: &&&Ended| order.completed == completed;
            let times = |all: &[&Ended]| {
                percentile(all.iter().filter(is).map(|order| order.took_ms), percent)
            };
            row(&format!("order to {name}, p{percent}"), of(&times));
        }
    }
    println!("{table}");
    let Outcome { orders, books, control, duplicates, dead_letters, copies, restarts, .. } =
        outcome;
    println!(
        "orders ended            {} of {orders} in {:.1} s",
        books.ended,
        outcome.took.as_secs_f64()
    );
    println!("records written twice   {copies}");
    println!("duplicates suppressed   {duplicates}");
    println!("processes restarted     {restarts}");
    println!("dead letters            {dead_letters}, {} tried again", outcome.retried);
    println!(
        "control lane            {} of {} orders paid for, {} lost, {} paid twice: its books are {}",
        control.completed,
        control.orders,
        control.lost,
        control.doubled,
        colour(control.wrong() == 0)
    );
    if books.ended < *orders {
        println!("  fault: {} orders have not ended", orders - books.ended);
    }
    for order in &outcome.unended {
        println!("  fault: {order}");
    }
    for fault in &books.faults {
        println!("  fault: {fault}");
    }
    println!(
        "the books               {} ({} faults)",
        colour(outcome.is_right()),
        books.wrong + books.settling
    );
}

fn colour(is_right: bool) -> &'static str {
    if is_right { "GREEN" } else { "RED" }
}

fn percentile(times: impl Iterator<Item = f64>, percent: usize) -> String {
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(at).map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms"))
}
