//! The settings of the HTTP endpoints, and what `/metrics` is made of.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::admin::Http;
use crate::config::{Config, HttpSettings};
use crate::error::{Error, Kind};
use crate::metrics::{BATCH_MESSAGES, MESSAGES_BUCKETS, SECONDS_BUCKETS};

/// Samples of distributions are sorted into their buckets this often, if nobody asks for them
/// before: they would pile up otherwise.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// The endpoints, if there are to be any; installs the process' recorder of metrics for them.
pub(super) fn http(config: &Config) -> Result<Option<Http>, Error> {
    let HttpSettings { address, token_file, token } = config.http_settings();
    if address == "off" {
        return Ok(None);
    }
    let http = Http::at(address);
    let token = match token_file {
        None => token.clone(),
        Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
            let text = format!("the http token file {path:?} can not be read");
            Error::new(Kind::Config, text)
                .hint("check the path and its permissions")
                .caused_by(error)
        })?),
    };
    let http = match token {
        None => http,
        Some(token) => http.token(token.trim()),
    };
    let handle = install()?;
    Ok(Some(http.metrics(move || handle.render())))
}

fn install() -> Result<PrometheusHandle, Error> {
    let handle = recorder().map_err(|error| {
        Error::new(Kind::Config, "metrics can not be recorded").caused_by(error)
    })?;
    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut every = tokio::time::interval(UPKEEP_EVERY);
        loop {
            every.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

fn recorder() -> Result<PrometheusHandle, BuildError> {
    let seconds = Matcher::Suffix("_seconds".to_owned());
    let messages = Matcher::Full(BATCH_MESSAGES.to_owned());
    PrometheusBuilder::new()
        .set_buckets_for_metric(seconds, &SECONDS_BUCKETS)?
        .set_buckets_for_metric(messages, &MESSAGES_BUCKETS)?
        .install_recorder()
}
