//! What a message costs the business transaction that writes it.
//!
//! All variants and the plain transaction take turns in slices of some milliseconds, in an
//! order that changes every round; each round gives one ratio per variant. The plain transaction
//! runs twice: the ratio of its second turn says how far the figures can be trusted.

use std::error::Error;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use sqlx::{Connection, PgConnection};
use tailrace_outbox::journal::Retention;
use tailrace_outbox::{Message, Outbox, Store};
use tailrace_stack::{Needs, Stack};
use uuid::Uuid;

use crate::figure::{Figure, quantile};

type Failure = Box<dyn Error + Send + Sync>;

/// Rows that transactions update; far more than connections, so that none waits for another.
const ACCOUNTS: u64 = 100_000;

static LOG: Outbox = Outbox::new(Store::Wal);
static JOURNAL: Outbox = Outbox::new(Store::Journal);

const SCHEMA: &str = "
create table account (id int primary key, balance bigint not null default 0);
insert into account (id) select generate_series(1, 100000);
create table orders (
    id uuid primary key, account int not null, total bigint not null,
    placed_at timestamptz not null default now());
create table debezium_outbox (
    id uuid primary key, aggregatetype varchar(255) not null, aggregateid varchar(255) not null,
    type varchar(255) not null, payload jsonb);
";

/// What and how much is measured.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Rounds in which every variant has one turn
    #[arg(long, default_value_t = 600)]
    runs: usize,
    /// Length of a turn, in milliseconds
    #[arg(long, default_value_t = 15)]
    slice_ms: u64,
    /// Connections that write at the same time; may be repeated
    #[arg(long, default_values_t = [1, 8])]
    clients: Vec<usize>,
    /// Variants to measure; all when not given
    #[arg(long)]
    variant: Vec<String>,
}

/// How the message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// No message: what the others are measured against.
    Plain,
    /// No message again: the noise of the measurement.
    Control,
    /// No message but a statement that does nothing: what a round trip alone costs here, which no
    /// write in a statement of its own can be below.
    RoundTrip,
    /// A frame, inside the business statement.
    Merged,
    /// A frame, in a statement of its own.
    Separate,
    /// A row of the journal, inside the business statement.
    Journal,
    /// A row of the journal, in a statement of its own.
    JournalSeparate,
    DebeziumInsert,
    DebeziumInsertDelete,
}

impl Variant {
    const ALL: [Variant; 9] = [
        Variant::Plain,
        Variant::Control,
        Variant::RoundTrip,
        Variant::Merged,
        Variant::Separate,
        Variant::Journal,
        Variant::JournalSeparate,
        Variant::DebeziumInsert,
        Variant::DebeziumInsertDelete,
    ];

    fn name(self) -> &'static str {
        match self {
            Variant::Plain => "plain",
            Variant::Control => "control",
            Variant::RoundTrip => "round-trip",
            Variant::Merged => "merged",
            Variant::Separate => "separate",
            Variant::Journal => "journal",
            Variant::JournalSeparate => "journal-separate",
            Variant::DebeziumInsert => "debezium-insert",
            Variant::DebeziumInsertDelete => "debezium-insert-delete",
        }
    }
}

#[derive(Serialize)]
struct OrderPlaced<'a> {
    order: Uuid,
    account: i32,
    total: i64,
    note: &'a str,
}

/// Measures all cells: clients by `synchronous_commit`.
pub(crate) async fn measure(options: Options) -> Result<Vec<Figure>, Failure> {
    let variants = options.variants()?;
    let stack = Stack::start(Needs::POSTGRES).await?;
    let database = stack.postgres().fresh_database("outbox_cost").await?;
    let mut setup = PgConnection::connect(database.url()).await?;
    sqlx::raw_sql(SCHEMA).execute(&mut setup).await?;
    tailrace_outbox::schema::install(&mut setup).await?;
    tailrace_outbox::journal::maintain(&mut setup, &Retention::default()).await?;
    let rounds = options.runs * options.clients.len() * 2;
    let bar = ProgressBar::new(u64::try_from(rounds)?).with_message("rounds");
    let mut figures = Vec::new();
    for clients in &options.clients {
        for synchronous_commit in ["on", "off"] {
            let mut cell = Cell::open(database.url(), *clients, synchronous_commit).await?;
            let mut rounds = Vec::new();
            for round in 0..options.runs {
                rounds.push(cell.round(&variants, round, &options).await?);
                bar.inc(1);
            }
            figures.extend(cell.figures(&variants, &rounds));
        }
    }
    bar.finish_and_clear();
    Ok(figures)
}

impl Options {
    fn variants(&self) -> Result<Vec<Variant>, Failure> {
        for name in &self.variant {
            if !Variant::ALL.iter().any(|variant| variant.name() == name) {
                let names: Vec<_> = Variant::ALL.iter().map(|variant| variant.name()).collect();
                return Err(format!("no variant {name:?}; there are {}", names.join(", ")).into());
            }
        }
        let wanted = |variant: &Variant| {
            *variant == Variant::Plain
                || self.variant.is_empty()
                || self.variant.iter().any(|name| name == variant.name())
        };
        Ok(Variant::ALL.into_iter().filter(wanted).collect())
    }
}

/// One number of clients under one `synchronous_commit`.
struct Cell {
    connections: Vec<PgConnection>,
    synchronous_commit: &'static str,
}

impl Cell {
    async fn open(
        url: &str,
        clients: usize,
        synchronous_commit: &'static str,
    ) -> Result<Self, Failure> {
        let mut connections = Vec::new();
        for _ in 0..clients {
            let mut connection = PgConnection::connect(url).await?;
            let set = match synchronous_commit {
                "on" => "set synchronous_commit = on",
                _ => "set synchronous_commit = off",
            };
            sqlx::raw_sql(set).execute(&mut connection).await?;
            connections.push(connection);
        }
        Ok(Cell { connections, synchronous_commit })
    }

    /// Transactions per second of each variant, in the order of `variants`.
    async fn round(
        &mut self,
        variants: &[Variant],
        round: usize,
        options: &Options,
    ) -> Result<Vec<f64>, Failure> {
        let mut rates = vec![0.0; variants.len()];
        let slice = Duration::from_millis(options.slice_ms);
        for turn in shuffled(variants.len(), round) {
            let (Some(variant), Some(rate)) = (variants.get(turn), rates.get_mut(turn)) else {
                continue;
            };
            *rate = self.slice(*variant, slice).await?;
        }
        Ok(rates)
    }

    /// All clients write for the length of a slice.
    async fn slice(&mut self, variant: Variant, slice: Duration) -> Result<f64, Failure> {
        let began = Instant::now();
        let mut clients = tokio::task::JoinSet::new();
        for mut connection in self.connections.drain(..) {
            clients.spawn(async move {
                let mut done = 0_u32;
                while began.elapsed() < slice {
                    transaction(&mut connection, variant).await?;
                    done += 1;
                }
                Ok::<_, Failure>((connection, done))
            });
        }
        let mut done = 0;
        while let Some(client) = clients.join_next().await {
            let (connection, count) = client??;
            self.connections.push(connection);
            done += count;
        }
        Ok(f64::from(done) / began.elapsed().as_secs_f64())
    }

    fn figures(&self, variants: &[Variant], rounds: &[Vec<f64>]) -> Vec<Figure> {
        let of = |at: usize| -> Vec<f64> {
            rounds.iter().filter_map(|round| round.get(at).copied()).collect()
        };
        let plain = of(0);
        let figure = |(at, variant): (usize, &Variant)| {
            let rates = of(at);
            let ratios: Vec<f64> =
                rates.iter().zip(&plain).map(|(rate, plain)| rate / plain).collect();
            Figure {
                scenario: "outbox-cost",
                variant: format!(
                    "{}/{}/sync-{}",
                    variant.name(),
                    self.connections.len(),
                    self.synchronous_commit
                ),
                metric: "transactions_per_second",
                unit: "tx/s",
                value: quantile(&rates, 0.5),
                reference: "plain",
                reference_value: quantile(&plain, 0.5),
                ratio: quantile(&ratios, 0.5),
                runs: rounds.len(),
                min: quantile(&ratios, 0.1),
                max: quantile(&ratios, 0.9),
            }
        };
        variants.iter().enumerate().skip(1).map(figure).collect()
    }
}

/// The numbers below `length` in an order that depends on the round alone.
fn shuffled(length: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..length).collect();
    let mut state = (round as u64).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for at in (1..length).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(at, (state % (at as u64 + 1)) as usize);
    }
    order
}

/// The business transaction: an update and an insert, and the message in one of the ways.
async fn transaction(connection: &mut PgConnection, variant: Variant) -> Result<(), Failure> {
    let order = Uuid::now_v7();
    let account = i32::try_from(order.as_u128() as u64 % ACCOUNTS + 1)?;
    let message = match variant {
        Variant::Plain | Variant::Control | Variant::RoundTrip => None,
        _ => Some(message(order, account)?),
    };
    let mut tx = connection.begin().await?;
    sqlx::query("update account set balance = balance - $2 where id = $1")
        .bind(account)
        .bind(100_i64)
        .execute(&mut *tx)
        .await?;
    match (variant, &message) {
        (Variant::Merged | Variant::Journal, Some(message)) => {
            let outbox = if variant == Variant::Merged { &LOG } else { &JOURNAL };
            let merged = outbox.merge(INSERT).bind(order).bind(account).bind(100_i64);
            merged.message(message).execute(&mut tx).await?;
        }
        _ => insert(&mut tx, order, account).await?,
    }
    match (variant, &message) {
        (Variant::RoundTrip, _) => {
            sqlx::query("select 1").execute(&mut *tx).await?;
        }
        (Variant::Separate, Some(message)) => LOG.write(&mut tx, message).await?,
        (Variant::JournalSeparate, Some(message)) => JOURNAL.write(&mut tx, message).await?,
        (Variant::DebeziumInsert | Variant::DebeziumInsertDelete, Some(message)) => {
            debezium(&mut tx, message, variant == Variant::DebeziumInsertDelete).await?;
        }
        _ => {}
    }
    tx.commit().await?;
    Ok(())
}

const INSERT: &str = "insert into orders (id, account, total) values ($1, $2, $3)";

async fn insert(tx: &mut PgConnection, order: Uuid, account: i32) -> Result<(), Failure> {
    sqlx::query(INSERT).bind(order).bind(account).bind(100_i64).execute(tx).await?;
    Ok(())
}

/// A message of about 200 bytes.
fn message(order: Uuid, account: i32) -> Result<Message, Failure> {
    let note = "leave it with the neighbour at number twelve if nobody is at home this morning";
    let payload = OrderPlaced { order, account, total: 100, note };
    let message = Message::builder("orders", "order.placed.v1").source("/orders");
    Ok(message.key(order.to_string()).json(&payload).build()?)
}

/// Debezium's table, with the id that it recommends, and its advice to delete at once.
async fn debezium(tx: &mut PgConnection, message: &Message, delete: bool) -> Result<(), Failure> {
    let id = Uuid::new_v4();
    sqlx::query(
        "insert into debezium_outbox (id, aggregatetype, aggregateid, type, payload) \
         values ($1, $2, $3, $4, $5::text::jsonb)",
    )
    .bind(id)
    .bind(message.topic())
    .bind(message.key().map(|key| String::from_utf8_lossy(key).into_owned()))
    .bind(message.r#type())
    .bind(message.payload().map(|payload| String::from_utf8_lossy(payload).into_owned()))
    .execute(&mut *tx)
    .await?;
    if delete {
        sqlx::query("delete from debezium_outbox where id = $1").bind(id).execute(tx).await?;
    }
    Ok(())
}
