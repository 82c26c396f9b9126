//! The settings of the HTTP endpoints, and what `/metrics` is made of.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::admin::Http;
use crate::error::{Error, Kind};
use crate::metrics::{BATCH_MESSAGES, MESSAGES_BUCKETS, SECONDS_BUCKETS};

/// Samples of distributions are sorted into their buckets this often, if nobody asks for them
/// before: they would pile up otherwise.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Where the sidecar answers over HTTP.
#[derive(Args)]
pub(super) struct HttpArgs {
    /// Where the status page, health and metrics are served, as ADDRESS:PORT, or off
    #[arg(
        long = "http",
        env = "CDC_RELAY__HTTP__ADDRESS",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:9640"
    )]
    http_address: String,
    /// A file with the token that POST /pause and /resume have to bring
    #[arg(long, env = "CDC_RELAY__HTTP__TOKEN_FILE", value_name = "FILE")]
    http_token_file: Option<PathBuf>,
    /// The token itself, which is for the environment: other users can see arguments
    #[arg(
        long,
        env = "CDC_RELAY_HTTP_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        conflicts_with = "http_token_file"
    )]
    http_token: Option<String>,
}

impl HttpArgs {
    /// The endpoints, if there are to be any; installs the process' recorder of metrics for them.
    pub(super) fn http(self) -> Result<Option<Http>, Error> {
        if self.http_address == "off" {
            return Ok(None);
        }
        let http = Http::at(self.http_address);
        let token = match self.http_token_file {
            None => self.http_token,
            Some(path) => Some(std::fs::read_to_string(&path).map_err(|error| {
                let text = format!("the http token file {:?} can not be read", path.display());
                Error::new(Kind::Config, text)
                    .hint("check the path and its permissions")
                    .caused_by(error)
            })?),
        };
        let http = match token {
            None => http,
            Some(token) => http.token(token.trim()),
        };
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
        Ok(Some(http.metrics(move || handle.render())))
    }
}

fn recorder() -> Result<PrometheusHandle, BuildError> {
    let seconds = Matcher::Suffix("_seconds".to_owned());
    let messages = Matcher::Full(BATCH_MESSAGES.to_owned());
    PrometheusBuilder::new()
        .set_buckets_for_metric(seconds, &SECONDS_BUCKETS)?
        .set_buckets_for_metric(messages, &MESSAGES_BUCKETS)?
        .install_recorder()
}
