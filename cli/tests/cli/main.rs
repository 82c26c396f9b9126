//! The real `tailrace` on a real Postgres.

mod command;
mod inbox;
mod outbox;
mod saga;
mod settings;
