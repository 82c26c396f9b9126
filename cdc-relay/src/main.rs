//! The sidecar: `cdc-relay run`.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    tailrace_cdc_relay::cli::run(std::env::args_os()).await
}
