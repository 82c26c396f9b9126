//! Operating without an engine, on a real Postgres.

use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::bed::{Bed, installed};
use crate::builder::Saga;
use crate::correlation::SagaId;
use crate::definition::{Definition, OnTimeout};
use crate::fixture::{
    AllocateStock, CapturePayment, Confirmed, CreditReserved, Order, ReserveCredit, SECOND, at,
    create_order, order,
};
use crate::instance::{Instance, Status};
use crate::lock::Lock;
use crate::mapping_file::MappingFile;
use crate::store::{self, Changed};
use crate::testing::Scenario;
use crate::transition::Verb;

pub(super) fn id(number: u128) -> SagaId {
    SagaId::from_uuid(Uuid::from_u128(number))
}

/// The saga of the fixture, under another id.
pub(super) fn under(instance: &Instance, number: u128) -> Instance {
    Instance { id: id(number), ..instance.clone() }
}

pub(super) fn running() -> Instance {
    Scenario::given(&create_order(), &order()).instance().clone()
}

pub(super) fn parked() -> Instance {
    let given = Scenario::given(&create_order(), &order());
    // Mail is the last step, and waits for a person when there is no answer.
    let sent = given
        .when_done("reserve-credit", &CreditReserved { hold: 3 })
        .when_done("allocate-stock", &())
        .when_done("quote-shipping", &())
        .when_done("capture-payment", &())
        .when_time_passes(std::time::Duration::from_secs(61));
    assert_eq!(sent.instance().status(), Status::Parked);
    sent.instance().clone()
}

pub(super) async fn stored(name: &str, sagas: Vec<Instance>) -> Bed {
    let bed = installed(name).await;
    let mut conn = bed.pool.acquire().await.unwrap();
    register(&mut conn, &[create_order().definition().structure()]).await.unwrap();
    let begun = Some(store::Cause::new());
    let changed: Vec<Changed> =
        sagas.into_iter().map(|instance| Changed { instance, begun: begun.clone() }).collect();
    store::write(&mut conn, &changed, &[], &[]).await.unwrap();
    bed
}

async fn ids(bed: &Bed, filter: &Filter) -> Vec<SagaId> {
    let mut conn = bed.pool.acquire().await.unwrap();
    let page = list(&mut conn, filter, &Paging::default()).await.unwrap();
    assert_eq!(page.next, None);
    page.sagas.iter().map(|saga| saga.id).collect()
}

#[tokio::test]
async fn sagas_are_listed_by_state_definition_step_and_age() {
    let bed = stored(
        "operate_list",
        vec![under(&running(), 1), under(&parked(), 2), under(&running(), 3)],
    )
    .await;
    bed.execute(
        "UPDATE tailrace.saga_instance SET status = 'completed' WHERE id = '00000000-0000-0000-0000-000000000003'",
    )
    .await;
    let check = async |filter: Filter, expected: &[u128]| {
        let expected: Vec<SagaId> = expected.iter().map(|number| id(*number)).collect();
        assert_eq!(ids(&bed, &filter).await, expected, "{filter}");
    };
    let all = Filter::default;

    check(all(), &[1, 2]).await;
    check(all().any_state(), &[1, 2, 3]).await;
    check(all().state(Status::Parked), &[2]).await;
    check(all().state(Status::Completed), &[3]).await;
    check(all().state(Status::Aborted), &[]).await;
    check(all().definition("create-order").version(4), &[1, 2]).await;
    check(all().version(5), &[]).await;
    check(all().step("send-mail"), &[2]).await;
    check(all().step("reserve-credit"), &[1]).await;
    check(all().step("reserve"), &[]).await;
    check(all().older_than(std::time::Duration::from_secs(3600)), &[]).await;
    check(all().newer_than(std::time::Duration::from_secs(3600)), &[1, 2]).await;
    assert_eq!(
        all()
            .state(Status::Parked)
            .step("a")
            .older_than(std::time::Duration::from_secs(5400))
            .to_string(),
        "state=parked step=a older-than=1h30m"
    );
}

#[tokio::test]
async fn pages_follow_each_other_both_ways_and_tell_where_the_next_one_begins() {
    let sagas = (1..=7).map(|number| under(&running(), number)).collect();
    let bed = stored("operate_pages", sagas).await;
    let mut conn = bed.pool.acquire().await.unwrap();

    for newest_first in [false, true] {
        let mut paging = Paging { newest_first, max: 3, ..Paging::default() };
        let mut seen = Vec::new();
        loop {
            let page = list(&mut conn, &Filter::default(), &paging).await.unwrap();
            assert!(page.sagas.len() <= 3);
            seen.extend(page.sagas.iter().map(|saga| saga.id));
            paging.after = page.next;
            if page.next.is_none() {
                break;
            }
        }

        let mut expected: Vec<SagaId> = (1..=7).map(id).collect();
        if newest_first {
            expected.reverse();
        }
        assert_eq!(seen, expected);
    }
}

#[tokio::test]
async fn a_wish_is_told_once_however_often_it_is_made_and_each_is_audited() {
    let bed = stored("operate_wish", vec![under(&running(), 1), under(&parked(), 2)]).await;
    let mut conn = bed.pool.acquire().await.unwrap();
    let by = By::new("anna").note("mail is back");
    let change = Change::verb(Verb::Retry { step: None }, by, "state=parked");
    let sagas = [id(1), id(2), id(9)];

    let planned = change.plan(&mut conn, &sagas).await.unwrap();
    let untouched = bed.count("SELECT count(*) FROM tailrace.saga_input").await;
    let made = change.make(&mut conn, &sagas).await.unwrap();
    let again = change.make(&mut conn, &sagas).await.unwrap();

    let texts = |outcomes: &[Outcome]| -> Vec<Result<String, String>> {
        outcomes.iter().map(|outcome| outcome.planned.clone()).collect()
    };
    let refused = |text: &str| Err(text.to_owned());
    assert_eq!(
        texts(&planned),
        [
            refused("none of its steps waits for a person"),
            Ok("asks again: send-mail".to_owned()),
            refused("there is no such saga"),
        ]
    );
    assert_eq!((untouched, texts(&made)), (0, texts(&planned)));
    assert_eq!(
        texts(&again)[1],
        refused("it has been told already, and no engine has taken it yet")
    );
    let shown = show(&mut conn, id(2)).await.unwrap().unwrap();
    assert_eq!(shown.inputs.len(), 1);
    assert_eq!(shown.inputs[0].what, "retry, says anna");
    let [audited] = &shown.audit[..] else { panic!("{:?}", shown.audit) };
    assert_eq!((audited.action.as_str(), audited.note.as_deref()), ("retry", Some("mail is back")));
    assert_eq!(audited.query, "state=parked");
    assert!(!shown.has_engine);
}

#[tokio::test]
async fn what_an_engine_would_do_is_told_for_every_verb() {
    let (running, parked) = (running(), parked());
    let bed = stored("operate_verbs", vec![under(&running, 1), under(&parked, 2)]).await;
    let mut conn = bed.pool.acquire().await.unwrap();
    let mut check = async |verb: Verb, expected: [Result<&str, &str>; 2]| {
        let change = Change::verb(verb, By::new("anna"), "by id");
        let told = change.plan(&mut conn, &[id(1), id(2)]).await.unwrap();
        let told: Vec<_> = told.into_iter().map(|outcome| outcome.planned).collect();
        assert_eq!(told, expected.map(|it| it.map(str::to_owned).map_err(str::to_owned)));
    };

    let step = |name: &str| Some(name.into());
    check(
        Verb::Retry { step: step("reserve-credit") },
        [Ok("asks again: reserve-credit"), Err("step reserve-credit is done")],
    )
    .await;
    check(
        Verb::Skip { step: "send-mail".into() },
        [
            Err("step send-mail is pending, and only one that waits for a person is passed over"),
            Ok("goes on without send-mail"),
        ],
    )
    .await;
    check(
        Verb::Compensate,
        [Ok("is undone"), Err("its pivot capture-payment was asked for: it is too late")],
    )
    .await;
    check(
        Verb::Abort,
        [
            Ok("ends as it is: reserve-credit may be done"),
            Ok(
                "ends as it is: reserve-credit, allocate-stock, quote-shipping, capture-payment stay done; send-mail may be done",
            ),
        ],
    )
    .await;
    check(Verb::Skip { step: "nothing".into() }, [Err("it has no step nothing"); 2]).await;
}

/// A lock and a wait stay out of it, as does a local step that has failed.
#[test]
fn whoever_aborts_is_told_of_every_effect_that_stays() {
    let saga = Saga::<Order>::define("locked", 1)
        .lock_order(&["account"])
        .lock(Lock::named("account"), |order: &Order| [order.customer.clone()])
        .wait::<Confirmed>("confirmed", SECOND, OnTimeout::Park, |_, _| {})
        .step("reserve", ReserveCredit::of)
        .compensate()
        .step("allocate", AllocateStock::of)
        .compensate()
        .pivot("pay", CapturePayment::of)
        .build()
        .unwrap();
    let check = |given: &Scenario<Order>, expected: &str| {
        let structure = saga.definition().structure();
        let told = change::planned(given.instance(), Some(&structure), &Verb::Abort).unwrap();
        assert_eq!(told, format!("ends as it is: {expected}"));
    };
    let confirmed = Confirmed { by: "bob".to_owned() };

    let locked = Scenario::given(&saga, &order()).when_held("account");
    check(&locked, "no step is done");
    let acting = locked.when_signal(&confirmed);
    check(&acting, "reserve may be done");
    let second = acting.when_done("reserve", &CreditReserved { hold: 3 });
    check(&second, "reserve stay done; allocate may be done");
    let undoing = second.when_cancelled();
    check(&undoing, "reserve stay done; allocate not undone");
    let stuck = undoing.when_undone("allocate").when_time_passes(30 * 24 * 3600 * SECOND);
    check(&stuck, "reserve not undone");
}

#[tokio::test]
async fn a_saga_that_is_named_twice_is_told_once() {
    let bed = stored("operate_twice", vec![under(&running(), 1)]).await;
    let mut conn = bed.pool.acquire().await.unwrap();
    let change = Change::verb(Verb::Compensate, By::new("anna"), "by id");
    let twice = [id(1), id(2), id(1)];

    let planned = change.plan(&mut conn, &twice).await.unwrap();
    let made = change.make(&mut conn, &twice).await.unwrap();

    for outcomes in [planned, made] {
        let of = |outcome: &Outcome| (outcome.saga, outcome.planned.is_ok());
        assert_eq!(outcomes.iter().map(of).collect::<Vec<_>>(), [(id(1), true), (id(2), false)]);
    }
}

#[tokio::test]
async fn a_migration_is_told_from_structures_alone() {
    let bed = stored("operate_migrate", vec![under(&running(), 1)]).await;
    let mut conn = bed.pool.acquire().await.unwrap();
    let next = |replies: &str| -> Definition {
        crate::builder::Saga::<Order>::define("create-order", 5)
            .replies(replies)
            .step("reserve-credit", crate::fixture::ReserveCredit::of)
            .compensate()
            .build()
            .unwrap()
            .definition()
            .clone()
    };
    let file: MappingFile = serde_json::from_value(
        json!({ "from": "create-order/4", "to": "create-order/5", "data": [{ "set": "/vip", "to": true }] }),
    )
    .unwrap();
    let mut told = async |replies: &str| {
        let to = next(replies).structure();
        let change = Change::migrate(to, file.clone(), By::new("anna"), "by id");
        change.plan(&mut conn, &[id(1)]).await.unwrap().remove(0).planned
    };

    assert_eq!(
        told("create-order.replies").await,
        Ok("goes on as create-order/5, once an engine has it".to_owned())
    );
    assert_eq!(
        told("elsewhere").await,
        Err("its replies come to create-order.replies, not elsewhere".to_owned())
    );
    let _ = at(0);
}

#[tokio::test]
async fn who_looks_at_sagas_reads_none_that_are_over() {
    let sagas = (1..=20).map(|number| under(&running(), number)).collect();
    let bed = stored("operate_full", sagas).await;
    bed.execute(
        "INSERT INTO tailrace.saga_instance (id, definition, version, hash, status, revision, instance)
         SELECT gen_random_uuid(), definition, version, hash, 'completed', revision, instance
         FROM tailrace.saga_instance, generate_series(1, 1000);
         ANALYZE tailrace.saga_instance",
    )
    .await;
    let mut tx = bed.begin().await;
    // What a look reads of the table, in rows.
    let mut read = async |look: &str| {
        match look {
            "live" => drop(list(&mut tx, &Filter::default(), &Paging::default()).await.unwrap()),
            "parked" => {
                let parked = Filter::default().state(Status::Parked).step("send-mail");
                drop(list(&mut tx, &parked, &Paging::default()).await.unwrap());
            }
            "newest" => {
                let paging = Paging { newest_first: true, max: 50, ..Paging::default() };
                drop(list(&mut tx, &Filter::default().any_state(), &paging).await.unwrap());
            }
            "one" => drop(show(&mut tx, id(7)).await.unwrap()),
            "nobody's" => {
                let rare = Filter::default().any_state().definition("refund");
                drop(list(&mut tx, &rare, &Paging::default()).await.unwrap());
            }
            "metrics" => crate::engine::look(&mut tx, &["create-order"]).await.unwrap(),
            other => panic!("{other}"),
        }
        let rows: i64 = sqlx::query_scalar(
            "SELECT (seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_xact_user_tables
             WHERE schemaname = 'tailrace' AND relname = 'saga_instance'",
        )
        .fetch_one(&mut *tx)
        .await
        .unwrap();
        rows
    };

    let mut before = 0;
    for (look, rows_max) in [
        ("live", 100),
        ("parked", 10),
        ("one", 10),
        ("metrics", 100),
        ("newest", i64::from(LOOK_MAX) + 100),
        ("nobody's", 2 * i64::from(LOOK_MAX) + 100),
    ] {
        let rows = read(look).await;
        assert!(rows - before <= rows_max, "{look} reads {} rows", rows - before);
        before = rows;
    }
}
