//! Whether transactions in progress can be kept where they are to be.

use super::Report;
use crate::config::Config;

pub(super) fn check(report: &mut Report, config: &Config) {
    let Some(bounds) = config.streamed() else { return };
    match config.check_spool() {
        Ok(()) => {
            let directory = bounds.directory.display();
            let spool_max = bounds.spool_max;
            report.ok(
                "spool",
                format!(
                    "{directory} can be written; up to {spool_max} bytes are used, if it has them"
                ),
            );
        }
        Err(error) => report.error("spool", &error),
    }
}
