//! A call outside of Postgres that kills the process that makes it, each time.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use sqlx::PgPool;
use tailrace_idempotency::inbox::{self, By, Entry, Filter, State};
use tailrace_idempotency::schema;
use tailrace_stack::Stack;
use tests::process::Process;
use tokio::time::{interval, timeout};

use crate::consumer_zombie::{applied, produce_as};
use crate::run::{LEAD_MAX, node, stop};

/// Calls that are made at the moment of a death are broken off too. The first time all are; from the second on each waits
/// for a time of its own, so that others come apart from the one that kills.
const ATTEMPTS_MAX: u32 = 5;
const WAIT_MS: &str = "1000";
/// It has the key of the numbers 3, 17 and 24.
const FATAL: i64 = 10;
const MESSAGES: i64 = 28;
const BEHIND: i64 = 2;
/// The shortest after which brokers miss a member that has died.
const SESSION: Duration = Duration::from_secs(2);
const ENDED_BY_ABORT: i32 = 6;

/// The one message that is set aside in this state, as soon as there is one.
async fn set_aside(pool: &PgPool, state: State) -> Entry {
    let filter = Filter::default().state(state);
    let looking = async {
        let mut tick = interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            let mut conn = pool.acquire().await.expect("a connection");
            let mut found = inbox::list(&mut conn, &filter, 10).await.expect("what is set aside");
            if let Some(entry) = found.pop() {
                assert!(found.is_empty(), "{found:?}");
                return entry;
            }
        }
    };
    timeout(LEAD_MAX, looking).await.expect("the message comes to an end")
}

/// Has a message kill its processes until that comes to an end in this state.
async fn comes_to_an_end(stack: &Stack, state: State, more: &[&str]) {
    let database = stack.postgres().fresh_database("fatal_call").await.expect("a database");
    let pool = PgPool::connect(database.url()).await.expect("a pool");
    let mut conn = pool.acquire().await.expect("a connection");
    schema::install(&mut conn).await.expect("the tables are made");
    let effect = "CREATE TABLE effect (message_id uuid, number bigint)";
    sqlx::raw_sql(effect).execute(&pool).await.expect("the table of effects is made");
    let (kafka, brokers) = (stack.kafka(), stack.kafka().brokers());
    let topic = kafka.fresh_topic("fatal_call", 1).await.expect("a topic");
    kafka.set_group_session(&topic, SESSION).await.expect("a session");
    produce_as("called.v1", brokers, &topic, 0..MESSAGES);
    let (attempts, fatal) = (ATTEMPTS_MAX.to_string(), FATAL.to_string());
    let arguments = [
        ("--database-url", database.url()),
        ("--kafka-brokers", brokers),
        ("--group", &topic),
        ("--topic", &topic),
        ("--parked-wait-ms", WAIT_MS),
        ("--attempts-max", &attempts),
        ("--abort-at", &fatal),
    ];
    let arguments = arguments.iter().flat_map(|(name, value)| [*name, *value]);
    let arguments: Vec<&str> =
        ["consumer"].into_iter().chain(arguments).chain(more.iter().copied()).collect();

    for _ in 0..ATTEMPTS_MAX {
        let mut dies = Process::start(&node(), &arguments);
        let status = dies.ends(LEAD_MAX).await;
        assert_eq!(status.signal(), Some(ENDED_BY_ABORT), "{}", dies.log());
    }
    let mut lives = Process::start(&node(), &arguments);
    let ended = set_aside(&pool, state).await;
    if state == State::Stuck {
        // All others are done, and those of its key wait behind it.
        applied(&pool, MESSAGES - 1 - BEHIND).await;
        inbox::discard(&mut conn, &ended, &By::new("anna")).await.expect("it is given up");
        set_aside(&pool, State::Dead).await;
    }
    applied(&pool, MESSAGES - 1).await;
    stop(&mut lives).await;

    assert_eq!((ended.reason.as_deref(), ended.attempts), (Some("broken_off"), ATTEMPTS_MAX));
    assert_eq!(ended.offset, FATAL);
    let doubled =
        "SELECT count(*), count(DISTINCT number), count(*) FILTER (WHERE number = $1) FROM effect";
    let effects: (i64, i64, i64) = sqlx::query_as(doubled)
        .bind(FATAL)
        .fetch_one(&pool)
        .await
        .expect("the effects are counted");
    assert_eq!(effects, (MESSAGES - 1, MESSAGES - 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_aborts_its_process_ends_after_its_attempts_and_costs_no_other_key_anything() {
    let stack = Stack::shared().await;

    tokio::join!(
        comes_to_an_end(stack, State::Stuck, &[]),
        comes_to_an_end(stack, State::Dead, &["--dead-letters"]),
    );
}
