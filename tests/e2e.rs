//! The end-to-end tests: the product's own programs on a real Postgres and a real Kafka.

#[path = "e2e/accessibility.rs"]
mod accessibility;
#[path = "e2e/adopt.rs"]
mod adopt;
#[path = "e2e/bad_frames.rs"]
mod bad_frames;
#[path = "e2e/bad_settings.rs"]
mod bad_settings;
#[path = "e2e/brokers.rs"]
mod brokers;
#[path = "e2e/choreography.rs"]
mod choreography;
#[path = "e2e/commands.rs"]
mod commands;
#[path = "e2e/complaint.rs"]
mod complaint;
#[path = "e2e/consumer_zombie.rs"]
mod consumer_zombie;
#[path = "e2e/dead_letters.rs"]
mod dead_letters;
#[path = "e2e/delivery.rs"]
mod delivery;
#[path = "e2e/endpoints.rs"]
mod endpoints;
#[path = "e2e/examples.rs"]
mod examples;
#[path = "e2e/failover.rs"]
mod failover;
#[path = "e2e/fatal_call.rs"]
mod fatal_call;
#[path = "e2e/gaps.rs"]
mod gaps;
#[path = "e2e/half_made.rs"]
mod half_made;
#[path = "e2e/journal.rs"]
mod journal;
#[path = "e2e/outages.rs"]
mod outages;
#[path = "e2e/partition_count.rs"]
mod partition_count;
#[path = "e2e/pooler.rs"]
mod pooler;
#[path = "e2e/positions.rs"]
mod positions;
#[path = "e2e/proofs.rs"]
mod proofs;
#[path = "e2e/replay.rs"]
mod replay;
#[path = "e2e/rights.rs"]
mod rights;
#[path = "e2e/roles.rs"]
mod roles;
#[path = "e2e/run.rs"]
mod run;
#[path = "e2e/saga_operating.rs"]
mod saga_operating;
#[path = "e2e/sagas.rs"]
mod sagas;
#[path = "e2e/secure.rs"]
mod secure;
#[path = "e2e/shop.rs"]
mod shop;
#[path = "e2e/shop_page.rs"]
mod shop_page;
#[path = "e2e/status_page.rs"]
mod status_page;
#[path = "e2e/streaming.rs"]
mod streaming;
#[path = "e2e/tables.rs"]
mod tables;
#[path = "e2e/takeover.rs"]
mod takeover;
#[path = "e2e/versions.rs"]
mod versions;
#[path = "e2e/watchdog.rs"]
mod watchdog;
