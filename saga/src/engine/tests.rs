use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use super::apply::{Begun, Told, apply};
use super::intake::{Part, Parted};
use super::*;
use crate::barrier;
use crate::bed::{Bed, installed};
use crate::correlation::{Answer, Correlation, Epoch, Instruction, Operation, SagaId};
use crate::definition::{Forward, OnTimeout};
use crate::fixture::{Order, ReserveCredit, order};
use crate::instance::{Instance, Status};
use crate::local::{LocalCx, local};
use crate::store::{self, Cause, Look, Reason};
use crate::transition::{Input, Verb};
use crate::verify;

mod failures;
mod keys;
mod locks;
mod lost;
mod nobodys;
mod rights;
mod seen;

/// A reply with this makes the saga's code panic.
const PANICS: i64 = 13;

async fn approve(cx: LocalCx<'_>, order: Order) -> Result<Result<(), String>, sqlx::Error> {
    sqlx::query("INSERT INTO approved (saga) VALUES ($1)")
        .bind(cx.saga.as_uuid())
        .execute(&mut *cx.conn)
        .await?;
    if order.hold == Some(-2) {
        sqlx::query("SELECT 1 / 0").execute(&mut *cx.conn).await?;
    }
    if order.hold == Some(-1) {
        return Ok(Err("no".to_owned()));
    }
    Ok(Ok(()))
}

fn definition(version: u32) -> Saga<Order> {
    Saga::define("create-order", version)
        .step("reserve-credit", ReserveCredit::of)
        .timeout(Duration::from_secs(20), OnTimeout::Retry)
        .on_reply(|order, reply| {
            assert!(reply.hold != PANICS, "this reply is too much");
            order.hold = Some(reply.hold);
        })
        .compensate()
        .pivot("approve", local(approve))
        .timeout(Duration::from_secs(20), Forward::Retry)
        .build()
        .unwrap()
}

struct Shop {
    bed: Bed,
    core: Arc<Core>,
}

async fn shop(name: &str) -> Shop {
    let bed = installed(name).await;
    bed.execute("CREATE TABLE approved (saga uuid)").await;
    Shop { bed, core: core(&[1]) }
}

fn core(versions: &[u32]) -> Arc<Core> {
    core_of(versions.iter().map(|version| definition(*version).definition().clone()).collect())
}

fn core_of(definitions: Vec<Definition>) -> Arc<Core> {
    Arc::new(Core {
        registry: Registry::new(definitions),
        outbox: Outbox::new(Store::Wal),
        source: "/orders".to_owned(),
        prefix: String::new(),
        unknown: Unknown::Park(Duration::from_secs(60)),
        counters: Counters::default(),
    })
}

fn sagas(shop: &Shop) -> Sagas {
    Sagas::new(Arc::clone(&shop.core))
}

fn new_id() -> SagaId {
    SagaId::from_uuid(Uuid::now_v7())
}

fn reply(saga: SagaId, answer: Answer, payload: Value) -> Told {
    let correlation = Correlation {
        saga,
        definition: "create-order/1".into(),
        step: "reserve-credit".into(),
        operation: Operation::Action,
        epoch: Epoch::FIRST,
    };
    let input = Input::Reply { correlation, answer, payload };
    Told { saga, input, cause: Cause::new(), ticket: None }
}

fn reserved(saga: SagaId, hold: i64) -> Told {
    reply(saga, Answer::Done, json!({ "hold": hold }))
}

/// Everything that waits and can be told.
async fn inputs(core: &Core, conn: &mut PgConnection) -> usize {
    let ready = time::inputs(core, conn, Look::Ready, time::TAKE_MAX).await.unwrap();
    ready + time::inputs(core, conn, Look::Parked, time::TAKE_MAX).await.unwrap()
}

impl Shop {
    async fn started(&self, count: usize) -> Vec<SagaId> {
        let mut tx = self.bed.begin().await;
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(new_id());
            let started =
                sagas(self).start(&mut tx, &definition(1), ids[ids.len() - 1], &order()).await;
            assert_eq!(started.unwrap(), Started::Now);
        }
        tx.commit().await.unwrap();
        ids
    }

    /// Tells a saga that is not of the usual definition.
    async fn tell_only(&self, told: Told) {
        let mut tx = self.bed.begin().await;
        apply(&self.core, &mut tx, Vec::new(), vec![told], SystemTime::now()).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// Tells sagas in a transaction, and says what could not be told.
    async fn tell(&self, told: Vec<Told>) -> Vec<(SagaId, Reason)> {
        let mut tx = self.bed.begin().await;
        let applied =
            apply(&self.core, &mut tx, Vec::new(), told, SystemTime::now()).await.unwrap();
        store::defer(&mut tx, &applied.deferred, 60.0).await.unwrap();
        tx.commit().await.unwrap();
        self.verify().await;
        applied.deferred.iter().map(|deferred| (deferred.saga, deferred.reason)).collect()
    }

    /// All sagas are what their journals say.
    async fn verify(&self) {
        let mut conn = self.conn().await;
        for definition in self.core.registry.all() {
            let found = verify::page(&mut conn, definition, None, verify::PAGE_MAX).await.unwrap();
            assert_eq!(found.faults, BTreeMap::new());
        }
    }

    async fn find(&self, saga: SagaId) -> Instance {
        let mut conn = self.bed.pool.acquire().await.unwrap();
        sagas(self).find(&mut conn, saga).await.unwrap().unwrap()
    }

    async fn status(&self, saga: SagaId) -> Status {
        self.find(saga).await.status()
    }

    async fn conn(&self) -> sqlx::pool::PoolConnection<sqlx::Postgres> {
        self.bed.pool.acquire().await.unwrap()
    }

    /// Everything that is due so far ahead, and everything that waits.
    async fn keep_time(&self, ahead: Duration) -> (usize, usize) {
        let mut conn = self.conn().await;
        let due = SystemTime::now() + ahead;
        let timers = time::timers(&self.core, &mut conn, due, time::TAKE_MAX).await.unwrap();
        let inputs = inputs(&self.core, &mut conn).await;
        self.verify().await;
        (timers, inputs)
    }
}

#[tokio::test]
async fn many_sagas_are_told_in_one_transaction_and_go_on_with_their_local_steps() {
    let shop = shop("engine_many").await;
    let ids = shop.started(50).await;

    let deferred = shop.tell(ids.iter().map(|id| reserved(*id, 7)).collect()).await;

    assert_eq!(deferred, []);
    for id in ids {
        assert_eq!(shop.status(id).await, Status::Completed);
    }
    assert_eq!(shop.bed.count("SELECT count(*) FROM approved").await, 50);
    let journal = "SELECT count(DISTINCT saga_id) FROM tailrace.saga_journal";
    assert_eq!(shop.bed.count(journal).await, 50);
}

#[test]
fn an_engine_whose_messages_can_have_no_such_source_is_not_made() {
    for source in ["", "a b\n"] {
        let refused = Engine::new().saga(&definition(1)).source(source).prepare().unwrap_err();

        assert_eq!(refused.kind(), Kind::Definition);
        assert!(refused.to_string().contains(&format!("the source {source:?}")), "{refused}");
    }
}

#[tokio::test]
async fn the_same_wish_twice_is_the_same_saga() {
    let shop = shop("engine_twice").await;
    let ids = shop.started(1).await;
    let mut conn = shop.conn().await;

    let (saga, sagas) = (definition(1), sagas(&shop));
    async fn pays(_: LocalCx<'_>, _: i64) -> Result<Result<(), String>, sqlx::Error> {
        Ok(Ok(()))
    }
    let of = |name: &str| Saga::<Order>::define(name, 1).pivot("approve", local(approve)).build();
    let refund = of("refund").unwrap();
    let of_another = Saga::<i64>::define("create-order", 2).pivot("pay", local(pays));
    let of_another = of_another.build().unwrap();
    let again = sagas.start(&mut conn, &saga, ids[0], &order()).await.unwrap();
    let nobodys = sagas.start(&mut conn, &refund, new_id(), &order()).await.unwrap_err();
    let too_new = sagas.start(&mut conn, &of_another, new_id(), &7).await.unwrap_err();

    assert_eq!(again, Started::Before);
    assert_eq!((nobodys.kind(), too_new.kind()), (Kind::Definition, Kind::Definition));
    assert!(too_new.to_string().contains("new sagas follow create-order/1"), "{too_new}");
}

#[tokio::test]
async fn a_local_step_is_told_what_has_caused_it_and_how_the_saga_stands() {
    async fn tells(cx: LocalCx<'_>, _: Order) -> Result<Result<(), String>, sqlx::Error> {
        let cause: BTreeMap<String, String> = cx.cause().into_iter().collect();
        let done = cx.instance.steps().iter().filter(|step| step.status().as_str() == "done");
        sqlx::query("INSERT INTO told VALUES ($1, $2, $3, $4)")
            .bind(cause.get("traceparent"))
            .bind(cause.get(tailrace_outbox::header::CAUSATION_ID))
            .bind(format!("{} {}", cx.of.operation.as_str(), cx.of.step))
            .bind(i64::try_from(done.count()).unwrap())
            .execute(cx.conn)
            .await?;
        Ok(Ok(()))
    }
    let saga = Saga::<Order>::define("told", 1)
        .step("reserve-credit", ReserveCredit::of)
        .compensate()
        .pivot("tell", local(tells))
        .build()
        .unwrap();
    let bed = installed("engine_local_cause").await;
    bed.execute("CREATE TABLE told (trace text, message text, step text, done bigint)").await;
    let shop = Shop { bed, core: core_of(vec![saga.definition().clone()]) };
    let id = new_id();
    let mut conn = shop.conn().await;
    let trace = vec![("traceparent".to_owned(), "00-of-the-request-01".to_owned())];
    sagas(&shop).start_caused_by(&mut conn, &saga, id, &order(), trace).await.unwrap();
    let cause = [(tailrace_outbox::header::CAUSATION_ID.to_owned(), "the reply".to_owned())];
    let told = Told { cause: cause.into_iter().collect(), ..reserved(id, 7) };

    shop.tell_only(told).await;

    let row: (Option<String>, Option<String>, String, i64) =
        sqlx::query_as("SELECT * FROM told").fetch_one(&shop.bed.pool).await.unwrap();
    let (trace, message) = (row.0.as_deref(), row.1.as_deref());
    assert_eq!((trace, message), (Some("00-of-the-request-01"), Some("the reply")));
    assert_eq!((row.2.as_str(), row.3), ("action tell", 1));
}

#[tokio::test]
async fn timers_of_sagas_that_are_over_are_swept_and_no_other_ones() {
    let shop = shop("engine_sweep").await;
    let ids = shop.started(3).await;
    let (over, others) = (ids[0], [ids[1], ids[2]]);
    let days = "INSERT INTO tailrace.saga_timer (due_at, saga_id, tick)
        SELECT now() + interval '1 day' + row_number() OVER (ORDER BY id) * interval '1 second', id, '{}'
        FROM tailrace.saga_instance";
    shop.bed.execute("DELETE FROM tailrace.saga_timer").await;
    shop.bed.execute(days).await;
    sqlx::query("UPDATE tailrace.saga_instance SET status = 'completed' WHERE id = $1")
        .bind(over.as_uuid())
        .execute(&shop.bed.pool)
        .await
        .unwrap();
    let mut conn = shop.conn().await;

    // Of a definition that no engine has any more, so that nobody has taken them.
    let long_due = "INSERT INTO tailrace.saga_timer (due_at, saga_id, tick)
        SELECT now() - interval '1 hour' + row_number() OVER (ORDER BY id) * interval '1 second', id, '{}'
        FROM tailrace.saga_instance";
    shop.bed.execute(long_due).await;

    let mut sweep = sweep::Sweep::default();
    for _ in 0..5 {
        sweep.portion(&mut conn, 2).await.unwrap();
    }

    let left: Vec<Uuid> =
        sqlx::query_scalar("SELECT saga_id FROM tailrace.saga_timer ORDER BY due_at")
            .fetch_all(&shop.bed.pool)
            .await
            .unwrap();
    let mut others = others.map(|saga| *saga.as_uuid());
    others.sort();
    assert_eq!(left, [others, others].concat());
}

#[tokio::test]
async fn a_saga_whose_code_panics_waits_and_holds_up_no_other() {
    let shop = shop("engine_panics").await;
    let ids = shop.started(3).await;

    let told = vec![reserved(ids[0], 7), reserved(ids[1], PANICS), reserved(ids[2], 7)];
    let deferred = shop.tell(told).await;
    let waits = "SELECT count(*) FROM tailrace.saga_input
        WHERE reason = 'failed' AND not_before >= inserted_at + interval '1 s'";
    let waiting = shop.bed.count(waits).await;
    // However slow this test is.
    shop.bed.execute("UPDATE tailrace.saga_input SET not_before = now() + interval '1 h'").await;
    let retried = shop.keep_time(Duration::ZERO).await;

    assert_eq!(deferred, [(ids[1], Reason::Failed)]);
    assert_eq!(shop.status(ids[0]).await, Status::Completed);
    assert_eq!(shop.status(ids[1]).await, Status::Running);
    assert_eq!(shop.status(ids[2]).await, Status::Completed);
    // It is tried again later, not at once.
    assert_eq!((waiting, retried), (1, (0, 0)));
}

/// As a newer release would have written it, before it was rolled back.
#[tokio::test]
async fn what_can_not_be_read_of_one_saga_holds_up_no_other_and_is_not_lost() {
    let shop = shop("engine_unreadable").await;
    let ids = shop.started(4).await;
    let [of_timer, of_row, of_input, good] = ids[..] else { panic!("{ids:?}") };
    let spoil = [
        format!(
            "UPDATE tailrace.saga_timer SET tick = '{{\"at\": \"dawn\"}}' WHERE saga_id = '{of_timer}'"
        ),
        format!("UPDATE tailrace.saga_instance SET instance = '{{}}' WHERE id = '{of_row}'"),
        format!(
            "INSERT INTO tailrace.saga_input (saga_id, input) VALUES ('{of_input}', '\"sing\"')"
        ),
    ];
    for statement in spoil {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&shop.bed.pool).await.unwrap();
    }
    let mut conn = shop.conn().await;
    sagas(&shop).cancel(&mut conn, good).await.unwrap();

    let due = SystemTime::now() + Duration::from_secs(30);
    let timers = time::timers(&shop.core, &mut conn, due, time::TAKE_MAX).await.unwrap();
    let again = time::timers(&shop.core, &mut conn, due, time::TAKE_MAX).await.unwrap();
    let inputs = inputs(&shop.core, &mut conn).await;

    assert_eq!((timers, again, inputs), (4, 0, 3));
    let attempts = async |saga| shop.find(saga).await.step("reserve-credit").unwrap().attempts();
    assert_eq!((attempts(of_input).await, attempts(of_timer).await), (2, 1));
    assert_eq!(shop.status(good).await, Status::Compensating);
    let kept = "SELECT count(*) FROM tailrace.saga_timer WHERE tick::text LIKE '%dawn%' AND due_at > now() + interval '1 min'";
    assert_eq!(shop.bed.count(kept).await, 1);
    // Its tick waits with the others until somebody can read the saga.
    let waits = "SELECT count(*) FROM tailrace.saga_input WHERE reason = 'foreign' AND not_before > inserted_at";
    assert_eq!(shop.bed.count(waits).await, 2);
}

#[tokio::test]
async fn a_saga_that_is_asked_for_again_and_again_keeps_no_release_from_going() {
    let shop = shop("engine_upgrade").await;
    let ids = shop.started(2).await;
    shop.keep_time(Duration::from_secs(60)).await;
    let file = serde_json::from_value(json!({ "from": "create-order/1", "to": "create-order/2" }));
    let new = core(&[2]);
    let mut conn = shop.conn().await;
    let structures = [1, 2].map(|version| definition(version).definition().structure());
    crate::operate::register(&mut conn, &structures).await.unwrap();
    let by = || crate::operate::By::new("anna");
    let [_, to] = structures;

    // Nobody waits for the retries to end: the one goes on in the new release, the other one is ended by it.
    let moves = crate::operate::Change::migrate(to, file.unwrap(), by(), "by id");
    moves.make(&mut conn, &ids).await.unwrap();
    let moved = moves::take(&new, &mut conn, SystemTime::now()).await.unwrap();
    let ends = crate::operate::Change::verb(Verb::Abort, by(), "by id");
    ends.make(&mut conn, &ids[1..]).await.unwrap();
    inputs(&new, &mut conn).await;
    let due = SystemTime::now() + Duration::from_secs(600);
    time::timers(&new, &mut conn, due, time::TAKE_MAX).await.unwrap();

    assert_eq!(moved, 2);
    let goes_on = shop.find(ids[0]).await;
    assert_eq!(goes_on.definition().version, 2);
    assert_eq!(goes_on.step("reserve-credit").unwrap().attempts(), 3);
    assert_eq!(shop.status(ids[1]).await, Status::Aborted);
    let left = "SELECT count(*) FROM tailrace.saga_instance WHERE version = 1";
    assert_eq!(shop.bed.count(left).await, 0);
}

#[tokio::test]
async fn a_local_step_that_is_refused_leaves_nothing_and_one_that_fails_is_tried_again() {
    let shop = shop("engine_local").await;
    let ids = shop.started(2).await;

    let deferred = shop.tell(vec![reserved(ids[0], -1), reserved(ids[1], -2)]).await;

    assert_eq!(deferred, []);
    assert_eq!(shop.status(ids[0]).await, Status::Compensating);
    assert_eq!(shop.status(ids[1]).await, Status::Running);
    assert_eq!(shop.bed.count("SELECT count(*) FROM approved").await, 0);
    let (timers, _) = shop.keep_time(Duration::from_secs(600)).await;
    assert!(timers >= 2, "{timers}");
    let attempts = shop.find(ids[1]).await.step("approve").unwrap().attempts();
    assert_eq!(attempts, 2);
}

#[tokio::test]
async fn an_answer_that_comes_before_its_saga_waits_for_it() {
    let shop = shop("engine_unknown").await;
    let id = new_id();

    let deferred = shop.tell(vec![reserved(id, 7)]).await;
    let too_early = shop.keep_time(Duration::ZERO).await;
    let mut conn = shop.conn().await;
    sagas(&shop).start(&mut conn, &definition(1), id, &order()).await.unwrap();
    let then = shop.keep_time(Duration::ZERO).await;

    assert_eq!(deferred, [(id, Reason::Unknown)]);
    assert_eq!((too_early, then), ((0, 0), (0, 1)));
    assert_eq!(shop.status(id).await, Status::Completed);
    assert_eq!(shop.bed.count("SELECT count(*) FROM tailrace.saga_input").await, 0);
}

#[tokio::test]
async fn what_waits_for_an_unknown_saga_in_vain_is_dropped_in_the_end() {
    let shop = shop("engine_expired").await;
    shop.tell(vec![reserved(new_id(), 7), reserved(new_id(), 7)]).await;
    shop.bed.execute("UPDATE tailrace.saga_input SET expires_at = now() WHERE id = 1").await;

    let dropped = store::expire(&mut *shop.conn().await, 100).await.unwrap();

    assert_eq!(dropped, 1);
    assert_eq!(shop.bed.count("SELECT count(*) FROM tailrace.saga_input").await, 1);
}

#[tokio::test]
async fn a_timer_asks_again_once_and_one_that_is_stale_changes_nothing() {
    let shop = shop("engine_timer").await;
    let ids = shop.started(2).await;
    shop.tell(vec![reserved(ids[0], 7)]).await;

    let nothing_is_due = shop.keep_time(Duration::ZERO).await;
    let due = shop.keep_time(Duration::from_secs(30)).await;

    assert_eq!(nothing_is_due, (0, 0));
    // Two of the first saga, which is over, and the one of the second.
    assert_eq!(due, (3, 0));
    assert_eq!(shop.status(ids[0]).await, Status::Completed);
    assert_eq!(shop.find(ids[1]).await.step("reserve-credit").unwrap().attempts(), 2);
    assert_eq!(shop.core.counters.report().timers, 3);
}

#[tokio::test]
async fn a_saga_that_somebody_works_at_keeps_no_other_from_its_timers() {
    let shop = shop("engine_skips").await;
    let ids = shop.started(2).await;

    let mut elsewhere = shop.bed.begin().await;
    store::lock(&mut elsewhere, &ids[..1]).await.unwrap();
    let passed_over = shop.keep_time(Duration::from_secs(30)).await;
    elsewhere.rollback().await.unwrap();
    let then = shop.keep_time(Duration::from_secs(30)).await;

    assert_eq!((passed_over, then), ((1, 0), (1, 0)));
    for id in ids {
        assert_eq!(shop.find(id).await.step("reserve-credit").unwrap().attempts(), 2);
    }
}

#[tokio::test]
async fn what_people_want_is_told_to_the_saga_and_written_down() {
    let shop = shop("engine_operator").await;
    let ids = shop.started(2).await;
    let mut conn = shop.conn().await;
    let retry = Verb::Retry { step: Some("reserve-credit".into()) };

    sagas(&shop).operate(&mut conn, ids[0], "ada", retry).await.unwrap();
    sagas(&shop).cancel(&mut conn, ids[1]).await.unwrap();
    let told = shop.keep_time(Duration::ZERO).await;

    assert_eq!(told, (0, 2));
    let epoch = shop.find(ids[0]).await.step("reserve-credit").unwrap().epoch();
    assert_eq!(epoch, Epoch::new(2));
    assert_eq!(shop.status(ids[1]).await, Status::Compensating);
    let by_name = "SELECT count(*) FROM tailrace.saga_journal WHERE entries::text LIKE '%ada%'";
    assert_eq!(shop.bed.count(by_name).await, 1);
}

#[tokio::test]
async fn sagas_of_a_version_that_nobody_runs_are_listed_and_what_comes_for_them_waits() {
    let mut shop = shop("engine_versions").await;
    let ids = shop.started(2).await;
    let old = std::mem::replace(&mut shop.core, core(&[2]));

    let deferred = shop.tell(vec![reserved(ids[0], 7)]).await;
    let nothing = shop.keep_time(Duration::from_secs(30)).await;
    let mine = shop.core.registry.identities();
    let listed = registry::quarantined(&mut *shop.conn().await, SILENCE_MAX, &mine).await.unwrap();
    shop.core = old;
    let told = shop.keep_time(Duration::ZERO).await;

    assert_eq!(deferred, [(ids[0], Reason::Foreign)]);
    assert_eq!(nothing, (0, 0));
    assert_eq!(listed.iter().map(|it| it.sagas).collect::<Vec<_>>(), [2]);
    assert_eq!(listed[0].definition.to_string(), "create-order/1");
    assert_eq!(told, (0, 1));
    assert_eq!(shop.status(ids[0]).await, Status::Completed);
}

#[tokio::test]
async fn a_living_engine_keeps_new_sagas_on_the_version_that_it_knows() {
    let shop = shop("engine_registry").await;
    let mut conn = shop.conn().await;
    let (old, new) = (core(&[1]), core(&[1, 2]));
    let current = |core: &Core| core.registry.current("create-order").unwrap().identity().version;

    old.registry.beat(&mut conn, SILENCE_MAX).await.unwrap();
    new.registry.beat(&mut conn, SILENCE_MAX).await.unwrap();
    let while_both_live = current(&new);
    old.registry.leave(&mut conn).await.unwrap();
    new.registry.beat(&mut conn, SILENCE_MAX).await.unwrap();

    assert_eq!((while_both_live, current(&new)), (1, 2));
}

#[tokio::test]
async fn a_running_saga_is_rewritten_on_its_page_without_its_indexes() {
    let shop = shop("engine_hot").await;
    let ids = shop.started(20).await;
    let mut tx = shop.bed.begin().await;
    let retry = || Input::Operator {
        by: "ada".into(),
        verb: Verb::Retry { step: Some("reserve-credit".into()) },
    };
    let told = |id: &SagaId| Told { saga: *id, input: retry(), cause: Cause::new(), ticket: None };

    apply(&shop.core, &mut tx, Vec::new(), ids.iter().map(told).collect(), SystemTime::now())
        .await
        .unwrap();

    let (updated, hot): (i64, i64) = sqlx::query_as(
        "SELECT pg_stat_get_xact_tuples_updated('tailrace.saga_instance'::regclass),
                pg_stat_get_xact_tuples_hot_updated('tailrace.saga_instance'::regclass)",
    )
    .fetch_one(&mut *tx)
    .await
    .unwrap();
    assert_eq!((updated, hot), (20, 20));
}

#[tokio::test]
async fn a_saga_that_begins_twice_under_one_id_fails_the_second_transaction_alone() {
    let shop = shop("engine_collision").await;
    let (id, saga) = (new_id(), definition(1));
    let begun = |now| Begun {
        instance: saga.instance(id, &order(), now).unwrap(),
        definition: saga.definition().clone(),
        cause: Cause::new(),
    };
    let begin = async |conn: &mut PgConnection| {
        let now = SystemTime::now();
        apply(&shop.core, conn, vec![begun(now)], Vec::new(), now).await
    };

    let mut first = shop.bed.begin().await;
    begin(&mut first).await.unwrap();
    first.commit().await.unwrap();
    let mut second = shop.bed.begin().await;
    let error = begin(&mut second).await.unwrap_err();

    assert!(error.to_string().contains("cannot be stored"), "{error}");
    assert_eq!(shop.bed.count("SELECT count(*) FROM tailrace.saga_instance").await, 1);
}

/// What a saga that this service does not know asks for, as one of its steps.
fn part(of: SagaId, operation: Operation, epoch: u32) -> Part<'static> {
    let correlation = Correlation {
        saga: of,
        definition: "trip/1".into(),
        step: "order".into(),
        operation,
        epoch: Epoch::new(epoch),
    };
    let reply_to = "trip.replies".into();
    let instruction = Instruction { correlation, reply_to, deadline: None };
    let data = serde_json::to_value(order()).unwrap();
    Part { instruction, topic: "create-order.replies", data, cause: Cause::new() }
}

impl Shop {
    /// Takes what another saga asks for; answers with how many begin and how many are told.
    async fn take_parts(&self, parts: Vec<Part<'static>>) -> (usize, usize) {
        let mut tx = self.bed.begin().await;
        let mut asked = Parted::default();
        let now = SystemTime::now();
        for part in parts {
            asked.take(&self.core, &mut tx, part, now).await.unwrap().unwrap();
        }
        let counts = (asked.begun.len(), asked.told.len());
        apply(&self.core, &mut tx, asked.begun, asked.told, now).await.unwrap();
        tx.commit().await.unwrap();
        counts
    }
}

#[tokio::test]
async fn a_saga_that_is_a_step_of_another_one_begins_once_and_is_undone_with_it() {
    let shop = shop("engine_part").await;
    let parent = new_id();

    let first = shop.take_parts(vec![part(parent, Operation::Action, 1)]).await;
    let again = shop.take_parts(vec![part(parent, Operation::Action, 1)]).await;
    let undone = shop.take_parts(vec![part(parent, Operation::Compensation, 2)]).await;

    assert_eq!((first, again, undone), ((1, 0), (0, 1), (0, 1)));
    let saga = crate::definition::part_id(parent, "order");
    assert_eq!(shop.status(saga).await, Status::Compensating);
}

#[tokio::test]
async fn a_part_that_a_newer_release_has_written_is_told_to_whoever_can_read_it() {
    let shop = shop("engine_part_newer").await;
    let parent = new_id();
    shop.take_parts(vec![part(parent, Operation::Action, 1)]).await;
    shop.bed.execute("UPDATE tailrace.saga_instance SET instance = '{}'").await;
    let mut conn = shop.conn().await;

    let mut asked = Parted::default();
    let undone = part(parent, Operation::Compensation, 2);
    asked.take(&shop.core, &mut conn, undone, SystemTime::now()).await.unwrap().unwrap();
    let told = std::mem::take(&mut asked.told);
    let applied = apply(&shop.core, &mut conn, Vec::new(), told, SystemTime::now()).await.unwrap();

    assert!(asked.begun.is_empty());
    let reasons: Vec<Reason> = applied.deferred.iter().map(|deferred| deferred.reason).collect();
    assert_eq!(reasons, [Reason::Foreign]);
}

#[tokio::test]
async fn a_part_that_is_undone_before_it_came_never_begins() {
    let shop = shop("engine_part_late").await;
    let parent = new_id();

    let undone = shop.take_parts(vec![part(parent, Operation::Compensation, 2)]).await;
    let late = shop.take_parts(vec![part(parent, Operation::Action, 1)]).await;

    assert_eq!((undone, late), ((0, 0), (0, 0)));
    assert_eq!(shop.bed.count("SELECT count(*) FROM tailrace.saga_instance").await, 0);
}

#[tokio::test]
async fn a_part_of_which_may_be_forgotten_that_it_was_undone_never_begins() {
    let shop = shop("engine_part_forgotten").await;
    let long_ago = uuid::Timestamp::from_unix(uuid::NoContext, 1_700_000_000, 0);
    let parent = SagaId::from_uuid(Uuid::new_v7(long_ago));
    shop.take_parts(vec![part(parent, Operation::Compensation, 2)]).await;
    let mut conn = shop.conn().await;
    let forgotten = barrier::rows::forget(&mut conn, SystemTime::now(), 100).await.unwrap();

    let mut asked = Parted::default();
    let late = part(parent, Operation::Action, 1);
    let took = asked.take(&shop.core, &mut conn, late, SystemTime::now()).await.unwrap();

    assert_eq!(forgotten, 1);
    assert!(took.unwrap_err().contains("older than barrier rows are kept"));
    assert!(asked.begun.is_empty() && asked.told.is_empty(), "{asked:?}");
}

#[tokio::test]
async fn a_saga_goes_on_under_another_definition_when_a_person_wants_that() {
    let shop = shop("engine_moves").await;
    let ids = shop.started(3).await;
    let file: crate::mapping_file::MappingFile = serde_json::from_value(json!({
        "from": "create-order/1", "to": "create-order/2", "data": [{ "set": "/cents", "to": 5 }],
    }))
    .unwrap();
    // The engine that has both is gone, and this one has the new definition alone.
    let new = core(&[2]);
    let mut conn = shop.conn().await;
    let structures = [1, 2].map(|version| definition(version).definition().structure());
    crate::operate::register(&mut conn, &structures).await.unwrap();
    let by = crate::operate::By::new("anna");
    let [_, to] = structures;
    let change = crate::operate::Change::migrate(to, file, by, "by id");

    let planned = change.make(&mut conn, &ids[..2]).await.unwrap();
    // One of them is over by then.
    shop.tell(vec![reserved(ids[1], 7)]).await;
    let settled = moves::take(&new, &mut conn, SystemTime::now()).await.unwrap();
    let again = moves::take(&new, &mut conn, SystemTime::now()).await.unwrap();

    assert!(planned.iter().all(|outcome| outcome.planned.is_ok()), "{planned:?}");
    assert_eq!((settled, again), (2, 0));
    let moved = shop.find(ids[0]).await;
    assert_eq!(moved.definition().version, 2);
    assert_eq!(moved.data()["cents"], 5);
    assert_eq!(shop.find(ids[2]).await.definition().version, 1);
    let refused = "SELECT count(*) FROM tailrace.saga_migration WHERE refused = 'it is over'";
    assert_eq!(shop.bed.count(refused).await, 1);
    let timers = "SELECT count(*) FROM tailrace.saga_timer";
    assert_eq!(shop.bed.count(timers).await, 5);
    let told = vec![reserved(ids[0], 7)];
    let mut tx = shop.bed.begin().await;
    apply(&new, &mut tx, Vec::new(), told, SystemTime::now()).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(shop.status(ids[0]).await, Status::Completed);
}

#[tokio::test]
async fn what_waits_for_a_person_and_what_is_to_be_undone_is_measured_by_definition_and_step() {
    use metrics_exporter_prometheus::PrometheusBuilder;
    let shop = shop("engine_metrics").await;
    let ids = shop.started(3).await;
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let by = |verb| Input::Operator { by: "anna".into(), verb };
    let told = |saga, input| Told { saga, input, cause: Cause::new(), ticket: None };

    let mut tx = shop.bed.begin().await;
    let inputs = vec![reserved(ids[0], 7), told(ids[1], by(Verb::Compensate))];
    let applied = apply(&shop.core, &mut tx, Vec::new(), inputs, SystemTime::now()).await.unwrap();
    tx.commit().await.unwrap();
    shop.bed
        .execute("UPDATE tailrace.saga_instance SET turned_at = turned_at - interval '1 h'")
        .await;
    let mut conn = shop.conn().await;
    // No await is within the guard: the recorder is that of the thread.
    let looked = metrics::waiting(&mut conn, &["create-order", "refund"]).await.unwrap();
    ::metrics::with_local_recorder(&recorder, || {
        metrics::tell(&applied);
        metrics::tell_waiting(looked);
    });

    let told = handle.render();
    let of =
        |name: &str| -> Vec<&str> { told.lines().filter(|line| line.starts_with(name)).collect() };
    let steps = of("tailrace_saga_step_seconds_count").join("\n");
    for step in ["reserve-credit", "approve"] {
        assert!(steps.contains(&format!("step=\"{step}\",outcome=\"done\"")), "{told}");
    }
    let [refund, order] = &of("tailrace_saga_uncompensated_seconds{")[..] else { panic!("{told}") };
    let (refund, order) = if refund.contains("refund") { (refund, order) } else { (order, refund) };
    assert!(refund.ends_with(" 0"), "{told}");
    let seconds: f64 = order.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((3600.0..7200.0).contains(&seconds), "{told}");
    assert_eq!(of("tailrace_saga_parked{").len(), 2);
}
