use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgConnection;

use super::*;
use crate::bed::{Bed, installed};
use crate::builder::Saga;
use crate::correlation::{Answer, Correlation, Epoch, Operation};
use crate::definition::{OnRefused, OnTimeout};
use crate::engine::Engine;
use crate::fixture::{CapturePayment, Order, ReserveCredit, at, create_order, order, saga_id};
use crate::local::{LocalCx, local};
use crate::lock::Lock;
use crate::machine;
use crate::retry::Retry;
use crate::transition::{LockKey, Transition, Verb};

/// The numbers of one walk.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        // Knuth's multiplier for 64 bits, of which the upper ones are random enough.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % bound
    }

    fn of<T>(&mut self, all: &[T]) -> usize {
        usize::try_from(self.below(all.len() as u64)).unwrap()
    }
}

/// Two accounts are locked.
fn transfer() -> Saga<Order> {
    const ACCOUNT: Lock = Lock::named("account").ttl(Duration::from_secs(100));
    Saga::define("transfer", 1)
        .lock_order(&["account"])
        .lock(ACCOUNT.wait(Duration::from_secs(50), OnTimeout::Park), |order: &Order| {
            [order.customer.clone(), "bob".to_owned()]
        })
        .step("reserve-credit", ReserveCredit::of)
        .on_refused(|_, _| OnRefused::Anew)
        .compensate()
        .pivot("capture-payment", CapturePayment::of)
        .build()
        .unwrap()
}

/// Its local steps fail now and then.
fn own() -> Saga<Order> {
    async fn does(_: LocalCx<'_>, _: Order) -> Result<Result<(), String>, sqlx::Error> {
        Ok(Ok(()))
    }
    async fn undoes(_: LocalCx<'_>, _: Order) -> Result<(), sqlx::Error> {
        Ok(())
    }
    Saga::define("own", 1)
        .step("reserve", local(does).undo(undoes))
        .retry(Retry::every(Duration::from_secs(1)).attempts(2))
        .retry_compensation(Retry::every(Duration::from_secs(1)).attempts(2))
        .compensate()
        .pivot("approve", local(does))
        .retry(Retry::every(Duration::from_secs(1)).attempts(2))
        .build()
        .unwrap()
}

/// Anything that a saga can be told, sensible or not.
fn anything(dice: &mut Dice, saga: &Instance, timers: &[Timer]) -> Input {
    let step = saga.steps[dice.of(&saga.steps)].clone();
    let verb = |dice: &mut Dice| match dice.below(6) {
        5 => Verb::Unlock { step: step.name.clone() },
        0 => Verb::Retry { step: None },
        1 => Verb::Retry { step: Some(step.name.clone()) },
        2 => Verb::Skip { step: step.name.clone() },
        3 => Verb::Compensate,
        _ => Verb::Abort,
    };
    match dice.below(20) {
        0 => Input::Cancel,
        1 => Input::Operator { by: "ada".into(), verb: verb(dice) },
        2 | 3 if !timers.is_empty() => Input::Tick(timers[dice.of(timers)].tick.clone()),
        4 => Input::Start,
        5..=12 if step.lock().is_some() || step.name() == "account" => {
            let keys = ["ada", "bob"];
            Input::Held { step: step.name.clone(), key: keys[dice.of(&keys)].to_owned() }
        }
        _ => {
            let answers =
                [Answer::Done, Answer::Done, Answer::Done, Answer::Refused, Answer::Blocked];
            let answer = answers[dice.of(&answers)];
            let operation = step.operation().unwrap_or(Operation::Action);
            let correlation = Correlation {
                saga: saga.id(),
                definition: "create-order/4".into(),
                step: step.name.clone(),
                operation,
                epoch: Epoch::new(
                    step.epoch.get() - u32::from(dice.below(9) == 0 && step.epoch.get() > 1),
                ),
            };
            let payloads =
                [json!({ "hold": 7 }), json!({ "missing_cents": 3 }), json!({}), Value::Null];
            let payload = payloads[dice.of(&payloads)].clone();
            if dice.below(3) == 0 {
                let (attempt, error) = (step.attempts(), "no".to_owned());
                return Input::Failed { correlation, attempt, error };
            }
            Input::Reply { correlation, answer, payload }
        }
    }
}

#[test]
fn whatever_a_saga_is_told_its_journal_tells_it_again() {
    for seed in 0..4_000 {
        let saga = match seed {
            0..2_000 => create_order(),
            2_000..3_000 => transfer(),
            _ => own(),
        };
        let definition = saga.definition();
        let mut dice = Dice(seed);
        let mut now = at(0);
        let mut instance = saga.instance(saga_id(), &order(), now).unwrap();
        let (mut journal, mut timers) = (Vec::new(), Vec::new());
        let mut input = Input::Start;
        for _ in 0..30 {
            let told = format!("{input:?}");
            let turn = machine::step(definition, &instance, input, now).unwrap();
            let Transition { instance: after, journal: entries, timers: wished, .. } = turn;
            if !entries.is_empty() {
                // As it is read from the journal.
                let entries =
                    serde_json::from_str(&serde_json::to_string(&entries).unwrap()).unwrap();
                journal.push(Noted { revision: after.revision, entries });
            } else {
                assert_eq!(after.revision, instance.revision, "{told} is not in the journal");
            }
            instance = after;
            timers.extend(wished);
            now += Duration::from_secs(dice.below(40));
            input = anything(&mut dice, &instance, &timers);
        }

        let again = retell(definition, &instance, &journal);

        let again = again.unwrap_or_else(|fault| panic!("SEED={seed}: {fault}"));
        assert_eq!(differences(&again, &instance), Vec::<String>::new(), "SEED={seed}");
    }
}

async fn place(name: &str) -> (Bed, SagaId) {
    place_of(name, &create_order()).await
}

async fn place_of(name: &str, saga: &Saga<Order>) -> (Bed, SagaId) {
    let bed = installed(name).await;
    let sagas = Engine::new().saga(saga).prepare().unwrap().sagas();
    let id = SagaId::from_uuid(Uuid::now_v7());
    let mut tx = bed.begin().await;
    sagas.start(&mut tx, saga, id, &order()).await.unwrap();
    tx.commit().await.unwrap();
    (bed, id)
}

async fn faults(conn: &mut PgConnection, of: &Saga<Order>, id: SagaId) -> Vec<String> {
    let found = saga(conn, of.definition(), id).await.unwrap();
    assert_eq!(found.sagas, 1);
    found.faults.get(&id).cloned().unwrap_or_default()
}

#[tokio::test]
async fn what_is_wrong_with_the_store_is_found_and_named() {
    let (bed, id) = place("verify_faults").await;
    let check = async |damage: &'static str, expected: &[&str]| {
        let mut tx = bed.begin().await;
        sqlx::raw_sql(damage).execute(&mut *tx).await.unwrap();
        let faults = faults(&mut tx, &create_order(), id).await;
        tx.rollback().await.unwrap();
        let is_named = |text: &&str| faults.iter().any(|fault| fault.contains(text));
        assert!(expected.iter().all(is_named), "{damage}: {faults:?}");
        assert_eq!(faults.len(), expected.len(), "{damage}: {faults:?}");
    };

    check("SELECT 1", &[]).await;
    check(
        "DELETE FROM tailrace.saga_timer",
        &["step reserve-credit is under way without its timer", "its deadline is without a timer"],
    )
    .await;
    check(
        "UPDATE tailrace.saga_timer SET due_at = due_at + interval '1 h' WHERE tick ->> 'tick' = 'step'",
        &["step reserve-credit is under way without its timer"],
    )
    .await;
    check(
        "UPDATE tailrace.saga_timer SET due_at = now() + interval '59 s' WHERE tick ->> 'tick' = 'step'",
        &[],
    )
    .await;
    check(
        "UPDATE tailrace.saga_instance SET status = 'completed', revision = 7",
        &["the status completed, and the saga running", "the revision 7, and the saga 1"],
    )
    .await;
    check(
        "UPDATE tailrace.saga_instance SET instance = replace(instance::text, '\"acting\"', '\"done\"')::json",
        &["step reserve-credit is Done"],
    )
    .await;
    check("DELETE FROM tailrace.saga_journal", &["the revision is", "step reserve-credit is"])
        .await;
    check(
        "UPDATE tailrace.saga_journal SET entries = replace(entries::text, 'reserve-credit', 'send-mail')::json",
        &["nothing that it could have been told explains revision 1"],
    )
    .await;
    check("UPDATE tailrace.saga_instance SET instance = '7'", &["its row can not be read"]).await;
}

#[tokio::test]
async fn all_sagas_of_a_definition_are_looked_at_page_by_page() {
    let (bed, first) = place("verify_pages").await;
    let mut conn = bed.pool.acquire().await.unwrap();
    sqlx::raw_sql(
        "INSERT INTO tailrace.saga_instance (id, definition, version, hash, status, revision, instance)
         SELECT gen_random_uuid(), definition, version, hash, status, revision, instance
         FROM tailrace.saga_instance, generate_series(1, 4)",
    )
    .execute(&mut *conn)
    .await
    .unwrap();

    let definition = create_order();
    let mut found = page(&mut conn, definition.definition(), None, 2).await.unwrap();
    let mut pages = 1;
    while found.next.is_some() {
        found.merge(page(&mut conn, definition.definition(), found.next, 2).await.unwrap());
        pages += 1;
    }

    assert_eq!((found.sagas, pages), (5, 3));
    // The copies have another id in their row than in themselves, and no journal.
    assert_eq!(found.faults.len(), 4);
    assert!(!found.faults.contains_key(&first));
}

#[tokio::test]
async fn a_lock_that_is_not_where_its_saga_takes_it_to_be_is_found() {
    let (bed, id) = place_of("verify_locks", &transfer()).await;
    let check = async |damage: &'static str, expected: &[&str]| {
        let mut tx = bed.begin().await;
        sqlx::raw_sql(damage).execute(&mut *tx).await.unwrap();
        let faults = faults(&mut tx, &transfer(), id).await;
        tx.rollback().await.unwrap();
        assert_eq!(faults, expected, "{damage}");
    };

    // It has both accounts.
    check("SELECT 1", &[]).await;
    check(
        "UPDATE tailrace.saga_lock SET held_at = NULL WHERE key = 'ada'",
        &["it takes itself for the one who has the lock account, and is not"],
    )
    .await;
    check(
        "UPDATE tailrace.saga_lock SET key = 'eve' WHERE key = 'ada'",
        &[
            "it takes itself for the one who has the lock account, and is not",
            "it has the lock account, and does not know it",
        ],
    )
    .await;
    check(
        "DELETE FROM tailrace.saga_timer WHERE tick ->> 'tick' = 'lock'",
        &["the lock account expires without a timer"],
    )
    .await;
    let (bed, first) = place_of("verify_lines", &transfer()).await;
    let (second, mut tx) = (SagaId::from_uuid(Uuid::now_v7()), bed.begin().await);
    let sagas = Engine::new().saga(&transfer()).prepare().unwrap().sagas();
    sagas.start(&mut tx, &transfer(), second, &order()).await.unwrap();
    assert_eq!(faults(&mut tx, &transfer(), second).await, [""; 0]);
    // Its turn comes, and the word is on its way; then it is lost, and with it the place in the line.
    let delete = "DELETE FROM tailrace.saga_lock WHERE saga_id = $1";
    sqlx::query(delete).bind(first.as_uuid()).execute(&mut *tx).await.unwrap();
    crate::lock::rows::release(
        &mut tx,
        &[(first, LockKey { name: "account".into(), key: "ada".to_owned() })],
    )
    .await
    .unwrap();
    assert_eq!(faults(&mut tx, &transfer(), second).await, [""; 0]);
    sqlx::raw_sql("DELETE FROM tailrace.saga_input").execute(&mut *tx).await.unwrap();
    let unheard = "it has the lock account, and does not know it";
    assert_eq!(faults(&mut tx, &transfer(), second).await, [unheard]);
    sqlx::query(delete).bind(second.as_uuid()).execute(&mut *tx).await.unwrap();
    let nowhere = "it waits for the lock account, and does not stand in its line";
    assert_eq!(faults(&mut tx, &transfer(), second).await, [nowhere]);
}
