//! The whole loop in one program: committed orders travel from a Postgres transaction through the
//! write-ahead log into Kafka and on to an effect that is applied once.
//!
//! Two accidents happen on the way: the relay is killed by SIGKILL inside an open Kafka
//! transaction, and a second producer puts every record into the topic again. At the end the books
//! are compared; the exit code is 1 unless they agree.
//!
//! Needs Rust, and Java 17 with Maven for a Postgres and a Kafka of its own (or servers of yours, see README.md).
//! Run it by
//!
//! ```sh
//! cargo run --release -p example-01-first-light
//! ```

mod accident;
mod books;
mod orders;
mod print;
mod relay_process;
mod repeat;
mod shipping;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tailrace_stack::{Needs, Stack};
use tokio::signal::unix::{SignalKind, signal};

use crate::books::Books;
use crate::orders::Plan;
use crate::print::Bars;
use crate::relay_process::RelayProcess;

/// Anything that ends the example early; its text is all a person needs.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Partitions of the topic of orders.
const PARTITIONS: i32 = 4;

/// A broker answers a single question within this time, or the example fails.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The example gives up on a stage that takes longer.
const STAGE_MAX: Duration = Duration::from_secs(180);

/// Orders from a Postgres transaction to an effect applied once, with a crash and duplicates on
/// the way
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    /// Orders to place, 500 or more: with fewer there is hardly a moment for the accident
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(500..=10_000_000))]
    orders: u32,
    /// Decides which transactions are rolled back first
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Subcommand)]
enum Role {
    /// What the example starts itself again as, so that it can kill it
    #[command(hide = true)]
    Relay {
        #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
        database_url: String,
        #[arg(long, env = "KAFKA_BROKERS")]
        kafka_brokers: String,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    print::log_to_stderr();
    let ended = match cli.role {
        Some(Role::Relay { database_url, kafka_brokers }) => {
            relay_process::be_the_relay(database_url, kafka_brokers).await
        }
        None => tokio::select! {
            ended = first_light(Plan { orders: cli.orders, seed: cli.seed }) => ended,
            () = interrupted() => Err("interrupted".into()),
        },
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            print::failure(failure.as_ref());
            ExitCode::FAILURE
        }
    }
}

/// Runs the whole story; true when the books agree.
async fn first_light(plan: Plan) -> Result<bool, Failure> {
    print::story(plan.orders);
    let stack = Stack::start(Needs::BOTH).await?;
    let began = Instant::now();
    let database = stack.postgres().fresh_database("first_light").await?;
    let topic = stack.kafka().fresh_topic("orders", PARTITIONS).await?;
    let brokers = stack.kafka().brokers().to_owned();
    let pool = PgPoolOptions::new().max_connections(24).connect(database.url()).await?;
    prepare(&pool).await?;

    let mut relay = RelayProcess::start(database.url(), &brokers)?;
    // A message written before the slot exists would vanish: a service checks before it writes.
    within("the relay's slot", relay_process::ready(&pool)).await?;

    let bars = Bars::new(u64::from(plan.orders));
    let reader = books::Reader::start(&brokers, &topic, &bars)?;
    let shipping = shipping::start(&brokers, &topic, &pool, &bars);

    let writing = tokio::spawn(orders::place(pool.clone(), topic.clone(), plan, bars.clone()));
    let killed = within(
        "the moment to kill the relay",
        accident::kill_inside_a_transaction(&mut relay, &brokers, &topic, &bars),
    )
    .await?;
    relay = RelayProcess::start(database.url(), &brokers)?;
    let rolled_back = within("the writers", async { writing.await? }).await?;

    let committed = books::committed(&pool).await?;
    bars.stage("all orders are written, and the relay was killed once meanwhile");
    within("the relay", reader.reach(committed)).await?;
    relay.stop().await?;
    let published = within("the independent reader", reader.read_to_the_end()).await?;
    bars.stage("all records are published; now each of them comes again");
    let repeated = within("the second producer", repeat::all(&brokers, &topic, published)).await?;
    let report = within("the consumer", shipping.finish(committed + repeated)).await?;
    bars.finish();

    let books = Books::close(&pool, rolled_back, published, repeated, &report).await?;
    pool.close().await;
    print::books(&books, killed, began.elapsed());
    Ok(books.agree())
}

async fn prepare(pool: &PgPool) -> Result<(), Failure> {
    let mut connection = pool.acquire().await?;
    sqlx::raw_sql(include_str!("schema.sql")).execute(&mut *connection).await?;
    tailrace_idempotency::schema::install(&mut connection).await?;
    Ok(())
}

/// Ends a stage that hangs with an error that names it.
async fn within<T>(
    stage: &str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let timeout = tokio::time::timeout(STAGE_MAX, work).await;
    timeout.map_err(|_| Failure::from(format!("{stage} took longer than {STAGE_MAX:?}")))?
}

/// Resolves at Ctrl-C and at SIGTERM.
async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
