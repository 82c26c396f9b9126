//! The `node` program: a process of the end-to-end tests.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    tests::node::play(std::env::args_os()).await
}
