//! The shop with its page: everything runs until Ctrl-C.

use crate::Failure;
use crate::report;
use crate::service;
use crate::settings::Settings;
use crate::stage::figures::Figures;
use crate::stage::{Stage, api};

/// Starts everything, says what it has started, and ends it when asked.
pub(crate) async fn run(settings: &Settings) -> Result<(), Failure> {
    let stage = tokio::select! {
        stage = Stage::start(settings, &|line| report::line(&line)) => stage?,
        () = service::asked_to_stop() => return Err("interrupted".into()),
    };
    let figures = Figures::default();
    figures.watch(&stage);
    report::line(&format!("\nthe shop is open: http://{}", stage.address("storefront")?));
    let ended = tokio::select! {
        ended = api::serve(&stage, &figures) => ended,
        () = service::asked_to_stop() => Ok(()),
    };
    report::line("closing");
    stage.stop().await;
    ended
}
