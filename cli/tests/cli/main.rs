//! The real `tailrace` on a real Postgres.

mod command;
mod outbox;
mod settings;
