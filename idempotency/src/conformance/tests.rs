//! The suite lets a good handler pass and finds the faults that are planted here.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use serde::{Deserialize, Serialize};

use super::*;
use crate::call::{Answer, Call, CallCx, Prepared};
use crate::fixture::{Bed, bare};
use crate::handler::{Cx, Outcome};

#[derive(Serialize, Deserialize)]
struct Deposit {
    account: String,
    cents: i64,
}

const TABLES: &str = "CREATE TABLE booking (account text, cents bigint, id bigserial);
                      CREATE TABLE total (cents bigint); INSERT INTO total VALUES (0);
                      CREATE TABLE place (account text, place bigint);";
const EFFECTS: &str = "SELECT account, array_agg(cents ORDER BY id) AS cents,
                           (SELECT cents FROM total) AS total,
                           (SELECT array_agg(place ORDER BY place) FROM place WHERE place.account = booking.account) AS places
                       FROM booking GROUP BY account ORDER BY account;";
const RESET: &str = "TRUNCATE booking, place; UPDATE total SET cents = 0";

async fn book<S>(cx: Cx<'_, S>, deposit: Deposit) -> Result<Outcome, BoxError> {
    sqlx::query("INSERT INTO booking (account, cents) VALUES ($1, $2)")
        .bind(deposit.account)
        .bind(deposit.cents)
        .execute(cx.conn)
        .await?;
    Ok(Outcome::Done)
}

async fn suite(name: &str) -> (Bed, Suite) {
    let bed = bare(name).await;
    bed.execute(TABLES).await;
    let deposits = (0..40).map(|number| {
        let account = format!("account-{}", number % 5);
        let payload = format!(r#"{{"account":"{account}","cents":{number}}}"#);
        Sample::new("deposit.v1", account, payload)
    });
    let suite = Suite::new(bed.brokers(), bed.database.url());
    let suite = suite.samples(deposits).effects(EFFECTS).reset(RESET);
    (bed, suite)
}

/// It is the effects that differ. With which accident depends on chance: a busy server has a batch repeated by itself.
#[track_caller]
fn told_apart(found: &Finding) {
    assert!(found.to_string().contains("where without it there is"), "{found}");
    assert_ne!(found.accident(), "nothing happens");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_keeps_to_its_transaction_and_one_that_calls_by_key_conform() {
    type Charged = Arc<Mutex<BTreeMap<String, i64>>>;
    async fn prepare(_: Cx<'_, Charged>, deposit: Deposit) -> Result<Prepared<Deposit>, BoxError> {
        Ok(Prepared::Call(deposit))
    }
    async fn call(cx: CallCx<'_, Charged>, deposit: Deposit) -> Result<Answer<i64>, BoxError> {
        cx.state.lock().unwrap().insert(cx.key.to_string(), deposit.cents);
        Ok(Answer::Done(deposit.cents))
    }
    async fn record(cx: Cx<'_, Charged>, deposit: Deposit, cents: i64) -> Result<(), BoxError> {
        book(cx, Deposit { cents, ..deposit }).await.map(drop)
    }
    let (_bed, suite) = suite("conformance_good").await;
    let charge = |number: i64| {
        let payload = format!(r#"{{"account":"account-1","cents":{number}}}"#);
        Sample::new("charge.v1", "account-1", payload)
    };
    let charged = Charged::default();
    let (read, reset) = (Arc::clone(&charged), Arc::clone(&charged));
    let suite = suite.samples((100..105).map(charge)).outside(
        move || format!("{:?}", read.lock().unwrap().values().collect::<Vec<_>>()),
        move || reset.lock().unwrap().clear(),
    );

    let checked = suite.check(move |process| {
        Consumer::new(process.config().state(Arc::clone(&charged)))
            .topic(process.topic())
            .on("deposit.v1", book)
            .on_call("charge.v1", Call::new(prepare, call, record))
    });

    checked.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_effect_outside_of_the_transaction_is_found() {
    type Mails = Arc<Mutex<Vec<String>>>;
    async fn mail(cx: Cx<'_, Mails>, deposit: Deposit) -> Result<Outcome, BoxError> {
        cx.state.lock().unwrap().push(deposit.account.clone());
        book(cx, deposit).await
    }
    let (_bed, suite) = suite("conformance_outside").await;
    let mails = Mails::default();
    let (read, reset) = (Arc::clone(&mails), Arc::clone(&mails));
    let suite = suite.outside(
        move || read.lock().unwrap().len().to_string(),
        move || reset.lock().unwrap().clear(),
    );

    let found = suite.check(move |process| {
        let config = process.config().state(Arc::clone(&mails));
        Consumer::new(config).topic(process.topic()).on("deposit.v1", mail)
    });

    let found = found.await.unwrap_err();
    told_apart(&found);
    assert!(found.to_string().contains("and outside: "), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_on_another_connection_is_found() {
    async fn elsewhere(cx: Cx<'_, PgPool>, deposit: Deposit) -> Result<Outcome, BoxError> {
        sqlx::query("UPDATE total SET cents = cents + $1")
            .bind(deposit.cents)
            .execute(cx.state)
            .await?;
        book(cx, deposit).await
    }
    let (bed, suite) = suite("conformance_elsewhere").await;
    let pool = bed.pool.clone();

    let found = suite.check(move |process| {
        let config = process.config().state(pool.clone());
        Consumer::new(config).topic(process.topic()).on("deposit.v1", elsewhere)
    });

    let found = found.await.unwrap_err();
    told_apart(&found);
}

async fn total<S>(cx: Cx<'_, S>, deposit: Deposit, cents: i64) -> Result<Outcome, BoxError> {
    sqlx::query("UPDATE total SET cents = greatest(cents, $1)")
        .bind(cents)
        .execute(&mut *cx.conn)
        .await?;
    book(cx, deposit).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_in_the_memory_of_a_process_is_found() {
    async fn count(cx: Cx<'_, AtomicI64>, deposit: Deposit) -> Result<Outcome, BoxError> {
        let cents = cx.state.fetch_add(deposit.cents, Ordering::Relaxed) + deposit.cents;
        total(cx, deposit, cents).await
    }
    let (_bed, suite) = suite("conformance_memory").await;

    let found = suite.check(|process| {
        let config = process.config().state(AtomicI64::new(0));
        Consumer::new(config).topic(process.topic()).on("deposit.v1", count)
    });

    let found = found.await.unwrap_err();
    told_apart(&found);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_in_a_static_is_found() {
    static COUNTED: AtomicI64 = AtomicI64::new(0);
    async fn count(cx: Cx<'_>, deposit: Deposit) -> Result<Outcome, BoxError> {
        let cents = COUNTED.fetch_add(deposit.cents, Ordering::Relaxed) + deposit.cents;
        total(cx, deposit, cents).await
    }
    let (_bed, suite) = suite("conformance_static").await;

    let found = suite.check(|process| {
        Consumer::new(process.config()).topic(process.topic()).on("deposit.v1", count)
    });

    told_apart(&found.await.unwrap_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_effect_that_depends_on_the_order_across_keys_is_found() {
    async fn place(cx: Cx<'_>, deposit: Deposit) -> Result<Outcome, BoxError> {
        sqlx::query("INSERT INTO place SELECT $1, count(*) FROM place")
            .bind(&deposit.account)
            .execute(&mut *cx.conn)
            .await?;
        book(cx, deposit).await
    }
    let (_bed, suite) = suite("conformance_order").await;

    let found = suite.check(|process| {
        Consumer::new(process.config()).topic(process.topic()).on("deposit.v1", place)
    });

    told_apart(&found.await.unwrap_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suite_that_cannot_tell_and_a_handler_that_fails_are_told() {
    async fn fails(_: Cx<'_>, _: Deposit) -> Result<Outcome, BoxError> {
        Err("planted".into())
    }
    let (bed, suite) = suite("conformance_bad").await;
    let consumer = |process: &Member| {
        Consumer::new(process.config()).topic(process.topic()).on("deposit.v1", fails)
    };

    let empty = Suite::new(bed.brokers(), bed.database.url()).check(consumer).await.unwrap_err();
    let failing = suite.deadline(Duration::from_secs(3)).check(consumer).await.unwrap_err();

    for missing in ["10 samples", "reads the effects", "reset the effects"] {
        assert!(empty.to_string().contains(missing), "{empty}");
    }
    assert_eq!(failing.accident(), "nothing happens");
    assert!(failing.to_string().contains("planted"), "{failing}");
}
