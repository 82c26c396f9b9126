//! The sidecar: `cdc-relay run`.

/// The C library's allocator gives each thread an arena and keeps what they held: in a process that is
/// meant to stay small for months that grows, and under load it is the slower one.
#[cfg(all(feature = "jemalloc", target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() {
    tailrace_cdc_relay::cli::run(std::env::args_os()).await
}
