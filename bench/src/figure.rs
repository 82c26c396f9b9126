//! A measured figure, for people and for programs.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "figures are what it is for")]

use std::error::Error;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// What one variant reached, beside what it is measured against.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) scenario: &'static str,
    pub(crate) variant: String,
    pub(crate) metric: &'static str,
    pub(crate) unit: &'static str,
    /// Median over the rounds.
    pub(crate) value: f64,
    pub(crate) reference: &'static str,
    pub(crate) reference_value: f64,
    /// Median over the rounds of value by reference, both of the same round.
    pub(crate) ratio: f64,
    /// Rounds.
    pub(crate) runs: usize,
    /// The lowest and the highest ratio of a round, but for the tenth at each end.
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Figure {
    pub(crate) fn print_json(&self) {
        let line = serde_json::to_string(self).expect("numbers and strings are valid JSON");
        println!("{line}");
    }
}

/// Prints the figures as a table.
pub(crate) fn print_table(figures: &[Figure]) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header([
        "variant",
        "metric",
        "value",
        "reference",
        "ratio",
        "10 % to 90 %",
        "rounds",
    ]);
    for figure in figures {
        table.add_row([
            figure.variant.clone(),
            figure.metric.to_owned(),
            format!("{} {}", readable(figure.value), figure.unit),
            format!("{} ({})", readable(figure.reference_value), figure.reference),
            format!("{:.3}", figure.ratio),
            format!("{:.3} to {:.3}", figure.min, figure.max),
            figure.runs.to_string(),
        ]);
    }
    for column in [2, 3, 4, 5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{table}");
}

/// Three digits at least, and no more behind the point than they need.
fn readable(value: f64) -> String {
    match value.abs() {
        small if small < 10.0 => format!("{value:.2}"),
        middle if middle < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// What a reader of the figures has to know besides; to standard error, so that the figures alone
/// can be piped.
pub(crate) fn tell(line: &str) {
    eprintln!("{line}");
}

/// The one error that ends a measurement.
pub(crate) fn complain(failure: &(dyn Error + Send + Sync + 'static)) {
    eprintln!("error: {failure}");
}

/// The value below which this share of the values lies; 0 when there are none.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * share).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}
