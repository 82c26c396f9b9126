//! Against a real server, and what a real server does too rarely to wait for.

mod arbitrary;
mod certificates;
mod differential;
mod hosts;
mod log_in;
mod own_server;
mod query;
mod rows;
mod server;
mod slot;
mod status;
mod stream;
mod streaming;
mod tls;
mod wire;
