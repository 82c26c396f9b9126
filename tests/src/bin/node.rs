//! The `node` program: a process of the end-to-end tests.

use std::process::ExitCode;

// As the sidecar has it: what is run here is its processes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    tests::node::play(std::env::args_os()).await
}
