//! The rights at the heads of the migrations: with them each role can do its work, and without any one of them it can not.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, Connection as _};
use tailrace_idempotency::BoxError;
use tailrace_outbox::Message;

use super::*;
use crate::barrier::{Barrier, Ended, Past, rows};
use crate::operate::{By, Change, Filter, Paging};
use crate::story;
use crate::structure::Structure;
use crate::transition::LockKey;

/// A right on a table, or on the schema.
type Right = (String, String);

/// What the heads of the migrations grant to this role.
fn granted(to: &str, migrations: &[i32]) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for migration in crate::schema::MIGRATIONS {
        if !migrations.contains(&migration.version) {
            continue;
        }
        let comments = migration.sql.lines().filter_map(|line| line.strip_prefix("--"));
        let head = comments.collect::<Vec<_>>().join(" ");
        for grant in head.split("GRANT ").skip(1).filter_map(|text| text.split_once(';')) {
            let Some((what, whom)) = grant.0.split_once(" TO ") else { continue };
            let (privileges, objects) = what.split_once(" ON ").expect("a grant is on something");
            if whom.trim() != to {
                continue;
            }
            for privilege in privileges.split(',') {
                for object in objects.split(',') {
                    rights.insert((privilege.trim().to_owned(), object.trim().to_owned()));
                }
            }
        }
    }
    rights
}

/// What a role does, in a transaction that is open; what is not there yet is put there before by the owner.
trait Work {
    async fn prepare(&self, conn: &mut PgConnection);
    async fn run(&self, conn: &mut PgConnection) -> Result<(), BoxError>;
}

/// Runs the work with these rights but one, as a role that has nothing else. All of it is rolled back.
async fn attempt(
    bed: &Bed,
    work: &impl Work,
    rights: &BTreeSet<Right>,
    without: Option<&Right>,
) -> Result<(), BoxError> {
    let mut conn = bed.pool.acquire().await?;
    let mut tx = conn.begin().await?;
    work.prepare(&mut tx).await;
    let role = format!("saga_rights_{}", Uuid::now_v7().simple());
    let mut script = format!("CREATE ROLE {role} NOSUPERUSER;");
    for (privilege, object) in rights.iter().filter(|right| Some(*right) != without) {
        script += &format!("GRANT {privilege} ON {object} TO {role};");
    }
    // Rows of the service's own.
    script += &format!("GRANT INSERT ON approved TO {role}; SET LOCAL ROLE {role}");
    sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut *tx).await?;
    let worked = work.run(&mut tx).await;
    tx.rollback().await?;
    worked
}

fn is_for_want_of_a_right(error: &BoxError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&**error);
    while let Some(error) = cause {
        if let Some(sqlx::Error::Database(error)) = error.downcast_ref() {
            return error.code().as_deref() == Some("42501");
        }
        cause = error.source();
    }
    // A role that may not look at the tables takes them for missing.
    error.to_string().contains("are missing in this database")
}

/// `needed` is that part of `rights` that this work is to need.
async fn check(
    shop: &Shop,
    work: &impl Work,
    rights: &BTreeSet<Right>,
    needed: impl Fn(&Right) -> bool,
) {
    if let Err(error) = attempt(&shop.bed, work, rights, None).await {
        panic!("{rights:?} are not enough: {error} {:?}", error.source());
    }
    let (mut tried, mut spare) = (0, Vec::new());
    for right in rights.iter().filter(|right| needed(right)) {
        match attempt(&shop.bed, work, rights, Some(right)).await {
            Ok(()) => spare.push(right),
            Err(error) => {
                assert!(is_for_want_of_a_right(&error), "{right:?}: {error} {:?}", error.source());
            }
        }
        tried += 1;
    }
    assert!(tried > 0 && spare.is_empty(), "these are not needed: {spare:?}");
}

fn structures() -> [Structure; 2] {
    [1, 2].map(|version| definition(version).definition().structure())
}

fn mapping() -> crate::mapping_file::MappingFile {
    serde_json::from_value(json!({ "from": "create-order/1", "to": "create-order/2" })).unwrap()
}

/// An engine that has both versions, and a saga that a person wants moved.
struct Driving {
    core: Arc<Core>,
    moved: SagaId,
}

impl Work for Driving {
    async fn prepare(&self, conn: &mut PgConnection) {
        let [_, to] = structures();
        let change = Change::migrate(to, mapping(), By::new("anna"), "by id");
        crate::operate::register(conn, &structures()).await.unwrap();
        change.make(conn, &[self.moved]).await.unwrap();
    }

    async fn run(&self, conn: &mut PgConnection) -> Result<(), BoxError> {
        let core = &*self.core;
        let (now, later) = (SystemTime::now(), SystemTime::now() + Duration::from_secs(3600));
        crate::schema::check(conn).await?;
        crate::operate::register(conn, &structures()).await?;
        core.registry.beat(conn, SILENCE_MAX).await?;
        registry::quarantined(conn, SILENCE_MAX, &core.registry.identities()).await?;
        metrics::look(conn, &core.registry.names()).await?;
        moves::take(core, conn, now).await?;
        let sagas = Sagas::new(Arc::clone(&self.core));
        let id = new_id();
        sagas.start(conn, &definition(2), id, &order()).await?;
        sagas.operate(conn, id, "anna", Verb::Retry { step: None }).await?;
        time::inputs(core, conn, store::Look::Ready, time::TAKE_MAX).await?;
        store::put_off_nobodys_timers(conn, SILENCE_MAX, 10).await?;
        time::timers(core, conn, later, time::TAKE_MAX).await?;
        apply(core, conn, Vec::new(), vec![reserved(id, 7)], now).await?;
        store::expire(conn, 10).await?;
        stand_in_line(conn).await?;
        let mut asked = Parted::default();
        asked.take(core, conn, part(new_id(), Operation::Compensation, 1), now).await?.unwrap();
        core.registry.leave(conn).await?;
        Ok(())
    }
}

/// All that an engine does with locks, also where it meets another one.
async fn stand_in_line(conn: &mut PgConnection) -> Result<(), BoxError> {
    let (saga, lock) = (new_id(), LockKey { name: "account".into(), key: "ada".to_owned() });
    lock::rows::take(conn, saga, &lock, SILENCE_MAX).await?;
    lock::rows::lines(conn).await?;
    lock::rows::look_again(conn, std::slice::from_ref(&lock)).await?;
    lock::rows::look(conn, 10).await?;
    lock::rows::release(conn, &[(saga, lock)]).await?;
    registry::lock_orders(conn, SILENCE_MAX).await?;
    Ok(())
}

struct CarryingOut;

impl Work for CarryingOut {
    async fn prepare(&self, _: &mut PgConnection) {}

    async fn run(&self, conn: &mut PgConnection) -> Result<(), BoxError> {
        crate::schema::check(conn).await?;
        let correlation = Correlation {
            saga: new_id(),
            definition: "create-order/1".into(),
            step: "reserve-credit".into(),
            operation: Operation::Action,
            epoch: Epoch::FIRST,
        };
        rows::lock(conn, &correlation, None).await?;
        let reply = Message::builder("replies", "reply.v1").source("/a").json(&7).build()?;
        let past = Past { epoch: Epoch::FIRST, ended: Ended::Done };
        let barrier = Barrier { action: Some(past), ..Barrier::default() };
        let outbox = Outbox::new(Store::Wal);
        rows::remember(conn, &outbox, &correlation, barrier, Some(b"{}"), &reply).await?;
        crate::participant::forget(conn, SystemTime::now(), 10).await?;
        Ok(())
    }
}

/// A person who looks, and who wants something unless it is none of his business.
struct Operating {
    saga: SagaId,
    changes: bool,
}

impl Work for Operating {
    async fn prepare(&self, conn: &mut PgConnection) {
        crate::operate::register(conn, &structures()).await.unwrap();
    }

    async fn run(&self, conn: &mut PgConnection) -> Result<(), BoxError> {
        crate::schema::check(conn).await?;
        crate::operate::list(conn, &Filter::default(), &Paging::default()).await?;
        crate::operate::show(conn, self.saga).await?;
        crate::operate::journal(conn, self.saga).await?;
        story::timeline(conn, self.saga).await?;
        let by = || By::new("anna");
        let retry = Verb::Retry { step: Some("reserve-credit".into()) };
        let [_, to] = structures();
        let changes =
            [Change::verb(retry, by(), "by id"), Change::migrate(to, mapping(), by(), "by id")];
        for change in changes {
            let told = match self.changes {
                true => change.make(conn, &[self.saga]).await?,
                false => change.plan(conn, &[self.saga]).await?,
            };
            assert!(told.iter().all(|outcome| outcome.planned.is_ok()), "{told:?}");
        }
        Ok(())
    }
}

struct Observing;

impl Work for Observing {
    async fn prepare(&self, _: &mut PgConnection) {}

    async fn run(&self, conn: &mut PgConnection) -> Result<(), BoxError> {
        crate::schema::check(conn).await?;
        story::keep(conn, &[]).await?;
        story::timeline(conn, new_id()).await?;
        story::forget(conn, SystemTime::now(), 10).await?;
        Ok(())
    }
}

const ENGINE: [i32; 4] = [1, 2, 5, 6];

#[tokio::test]
async fn each_right_that_the_migrations_name_is_needed_and_together_they_are_enough() {
    let shop = shop("saga_rights").await;
    let saga = shop.started(1).await[0];
    let of_schema =
        |(_, object): &Right| object == "SCHEMA tailrace" || object == "tailrace.saga_version";
    let of_barrier = |right: &Right| right.1.starts_with("tailrace.saga_barrier");

    // Of the barrier an engine needs a part, for sagas that are steps of others.
    let driving = Driving { core: core(&[1, 2]), moved: saga };
    check(&shop, &driving, &granted("service", &ENGINE), |right| !of_barrier(right)).await;

    check(&shop, &CarryingOut, &granted("service", &[1]), |_| true).await;

    let mut observer = granted("service", &[4]);
    observer.extend(granted("service", &[1]).into_iter().filter(of_schema));
    check(&shop, &Observing, &observer, |_| true).await;

    let operator = granted("operator", &[6]);
    check(&shop, &Operating { saga, changes: true }, &operator, |_| true).await;
    let looks = |(privilege, _): &Right| privilege == "SELECT" || privilege == "USAGE";
    let onlooker = operator.into_iter().filter(looks).collect();
    let needed = |right: &Right| right.1 != "tailrace.saga_audit" || right.0 == "SELECT";
    check(&shop, &Operating { saga, changes: false }, &onlooker, needed).await;
}
