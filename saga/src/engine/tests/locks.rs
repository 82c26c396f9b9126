//! Locks on real tables: whose turn it is, and that no turn is lost.

use super::*;
use crate::fixture::{CapturePayment, SECOND};
use crate::lock::{Lock, rows};
use crate::transition::LockKey;

const ACCOUNT: Lock = Lock::named("account").ttl(Duration::from_secs(600));

fn accounts(order: &Order) -> Vec<String> {
    order.customer.split('+').map(str::to_owned).collect()
}

/// It has the lock while its credit is reserved.
fn transfer() -> Saga<Order> {
    transfer_with(60 * SECOND)
}

fn transfer_with(patience: Duration) -> Saga<Order> {
    Saga::define("transfer", 1)
        .lock_order(&["account"])
        .lock(ACCOUNT.wait(patience, OnTimeout::Compensate), accounts)
        .step("reserve-credit", ReserveCredit::of)
        .timeout(3600 * SECOND, OnTimeout::Retry)
        .compensate()
        .build()
        .unwrap()
}

async fn bank(name: &str) -> Shop {
    bank_of(name, &transfer()).await
}

async fn bank_of(name: &str, saga: &Saga<Order>) -> Shop {
    let bed = installed(name).await;
    Shop { bed, core: core_of(vec![saga.definition().clone()]) }
}

impl Shop {
    async fn transfers(&self, accounts: &[&str]) -> Vec<SagaId> {
        let mut tx = self.bed.begin().await;
        let mut ids = Vec::new();
        for account in accounts {
            let id = new_id();
            let order = Order { customer: (*account).to_owned(), ..order() };
            sagas(self).start(&mut tx, &transfer(), id, &order).await.unwrap();
            ids.push(id);
        }
        tx.commit().await.unwrap();
        ids
    }

    /// Which of these sagas are at work, in place of waiting for their locks or being over.
    async fn at_work(&self, ids: &[SagaId]) -> Vec<usize> {
        let mut found = Vec::new();
        for (at, id) in ids.iter().enumerate() {
            let instance = self.find(*id).await;
            if instance.step("reserve-credit").unwrap().operation().is_some() {
                found.push(at);
            }
        }
        found
    }

    /// Who has a lock, and who stands in line for one, as rows.
    async fn rows(&self) -> (i64, i64) {
        let held = "SELECT count(*) FROM tailrace.saga_lock WHERE held_at IS NOT NULL";
        let waits = "SELECT count(*) FROM tailrace.saga_lock WHERE held_at IS NULL";
        (self.bed.count(held).await, self.bed.count(waits).await)
    }

    async fn looks(&self) -> i64 {
        self.bed.count("SELECT count(*) FROM tailrace.saga_lock_look").await
    }

    async fn look_again(&self) -> usize {
        time::locks(&mut *self.conn().await).await.unwrap()
    }

    async fn inputs(&self) -> usize {
        inputs(&self.core, &mut *self.conn().await).await
    }
}

fn done(saga: SagaId) -> Told {
    let mut told = reserved(saga, 7);
    if let Input::Reply { correlation, .. } = &mut told.input {
        correlation.definition = "transfer/1".into();
    }
    told
}

#[tokio::test]
async fn sagas_that_want_one_lock_run_one_after_another_in_the_order_in_which_they_came() {
    let bank = bank("lock_order").await;
    let ids = bank.transfers(&["ada", "ada", "bob", "ada"]).await;

    assert_eq!(bank.at_work(&ids).await, [0, 2]);
    assert_eq!(bank.rows().await, (2, 2));
    for (at, next) in [(0, vec![1, 2]), (1, vec![2, 3]), (3, vec![2]), (2, vec![])] {
        assert_eq!(bank.tell(vec![done(ids[at])]).await, []);
        assert_eq!(bank.status(ids[at]).await, Status::Completed);
        bank.inputs().await;
        assert_eq!(bank.at_work(&ids).await, next);
    }
    assert_eq!((bank.rows().await, bank.looks().await), ((0, 0), 0));
}

#[tokio::test]
async fn a_lock_is_released_in_the_transaction_in_which_its_saga_ends_or_not_at_all() {
    let bank = bank("lock_crash").await;
    let ids = bank.transfers(&["ada", "ada"]).await;

    // The engine dies before it commits.
    let mut tx = bank.bed.begin().await;
    apply(&bank.core, &mut tx, Vec::new(), vec![done(ids[0])], SystemTime::now()).await.unwrap();
    tx.rollback().await.unwrap();
    assert_eq!((bank.rows().await, bank.inputs().await), ((1, 1), 0));
    assert_eq!(bank.at_work(&ids).await, [0]);

    bank.tell(vec![done(ids[0])]).await;
    // The next one has it already, and no engine has told him yet.
    assert_eq!((bank.rows().await, bank.at_work(&ids).await), ((1, 0), vec![]));
    assert_eq!((bank.inputs().await, bank.at_work(&ids).await), (1, vec![1]));
}

#[tokio::test]
async fn two_keys_are_held_both_or_waited_for_in_one_order() {
    let bank = bank("lock_two").await;
    let ids = bank.transfers(&["bob", "ada+bob", "bob+ada"]).await;

    assert_eq!(bank.at_work(&ids).await, [0]);
    assert_eq!(bank.rows().await, (2, 2));
    for at in 0..3 {
        bank.tell(vec![done(ids[at])]).await;
        bank.inputs().await;
        bank.inputs().await;
        let next: Vec<usize> = (at + 1..3).take(1).collect();
        assert_eq!(bank.at_work(&ids).await, next);
    }
    assert_eq!(bank.rows().await, (0, 0));
}

#[tokio::test]
async fn who_is_cancelled_or_waits_for_too_long_leaves_the_line() {
    let bank = bank("lock_leave").await;
    let ids = bank.transfers(&["ada", "ada", "ada"]).await;

    sagas(&bank).cancel(&mut *bank.conn().await, ids[1]).await.unwrap();
    bank.inputs().await;
    assert_eq!(bank.status(ids[1]).await, Status::Compensated);
    assert_eq!(bank.rows().await, (1, 1));
    bank.keep_time(61 * SECOND).await;

    assert_eq!(bank.status(ids[2]).await, Status::Compensated);
    assert_eq!((bank.rows().await, bank.at_work(&ids).await), ((1, 0), vec![0]));
}

#[tokio::test]
async fn a_saga_that_holds_its_lock_for_too_long_is_undone_before_the_next_one_has_it() {
    let bank = bank_of("lock_expired", &transfer_with(3600 * SECOND)).await;
    let ids = bank.transfers(&["ada", "ada"]).await;
    let mut conn = bank.conn().await;
    let later = SystemTime::now() + 601 * SECOND;
    time::timers(&bank.core, &mut conn, later, time::TAKE_MAX).await.unwrap();

    assert_eq!(bank.status(ids[0]).await, Status::Compensating);
    assert_eq!((bank.inputs().await, bank.rows().await), (0, (1, 1)));
    let mut undone = done(ids[0]);
    if let Input::Reply { correlation, .. } = &mut undone.input {
        correlation.operation = Operation::Compensation;
        correlation.epoch = Epoch::new(2);
    }
    bank.tell(vec![undone]).await;
    assert_eq!(bank.status(ids[0]).await, Status::Compensated);
    assert_eq!((bank.inputs().await, bank.at_work(&ids).await), (1, vec![1]));
}

#[tokio::test]
async fn a_person_takes_the_lock_from_a_saga_and_the_next_one_goes_on() {
    let bank = bank("lock_unlock").await;
    let ids = bank.transfers(&["ada", "ada"]).await;
    let unlock = Verb::Unlock { step: "account".into() };

    sagas(&bank).operate(&mut *bank.conn().await, ids[0], "eve", unlock).await.unwrap();
    bank.inputs().await;
    bank.inputs().await;

    assert_eq!(bank.at_work(&ids).await, [0, 1]);
    let by_name =
        "SELECT count(*) FROM tailrace.saga_journal WHERE entries::text LIKE '%eve%unlock%'";
    assert_eq!(bank.bed.count(by_name).await, 1);
}

#[tokio::test]
async fn transactions_that_meet_at_a_lock_wait_for_nobody_and_lose_no_turn() {
    let bank = bank("lock_meet").await;
    let ids = bank.transfers(&["ada"]).await;
    let begun = |id| {
        let order = Order { customer: "ada".to_owned(), ..order() };
        let instance = transfer().instance(id, &order, SystemTime::now()).unwrap();
        Begun { instance, definition: transfer().definition().clone(), cause: Cause::new() }
    };
    let (second, third) = (new_id(), new_id());
    let now = SystemTime::now();

    // One saga ends while two come, in three transactions at a time.
    let (mut a, mut b, mut c) =
        (bank.bed.begin().await, bank.bed.begin().await, bank.bed.begin().await);
    apply(&bank.core, &mut a, Vec::new(), vec![done(ids[0])], now).await.unwrap();
    apply(&bank.core, &mut b, vec![begun(second)], Vec::new(), now).await.unwrap();
    apply(&bank.core, &mut c, vec![begun(third)], Vec::new(), now).await.unwrap();
    b.commit().await.unwrap();
    assert_eq!(bank.look_again().await, 0, "the first has the line still");
    a.commit().await.unwrap();
    c.commit().await.unwrap();

    assert_eq!(bank.rows().await, (0, 2));
    assert_eq!(bank.look_again().await, 2);
    assert_eq!((bank.inputs().await, bank.looks().await), (1, 0));
    assert_eq!(bank.at_work(&[ids[0], second, third]).await, [1]);
}

#[tokio::test]
async fn who_is_given_a_lock_while_he_leaves_the_line_gives_it_to_the_next() {
    let bank = bank("lock_race").await;
    let ids = bank.transfers(&["ada", "ada", "ada"]).await;
    let now = SystemTime::now();
    let cancel = || Told { saga: ids[1], input: Input::Cancel, cause: Cause::new(), ticket: None };

    // The first gives it to the second, who is cancelled before either has committed.
    let (mut gives, mut leaves) = (bank.bed.begin().await, bank.bed.begin().await);
    apply(&bank.core, &mut gives, Vec::new(), vec![done(ids[0])], now).await.unwrap();
    apply(&bank.core, &mut leaves, Vec::new(), vec![cancel()], now).await.unwrap();
    leaves.commit().await.unwrap();
    gives.commit().await.unwrap();
    assert_eq!(bank.status(ids[1]).await, Status::Compensated);
    assert_eq!(bank.rows().await, (1, 1));

    // He is told, and gives it back; then the third is told.
    for _ in 0..2 {
        bank.look_again().await;
        assert_eq!(bank.inputs().await, 1);
    }
    assert_eq!((bank.at_work(&ids).await, bank.rows().await), (vec![2], (1, 0)));
}

#[tokio::test]
async fn nobody_is_passed_over_for_one_who_may_stay_in_the_line() {
    let bank = bank("lock_stays").await;
    let ids = bank.transfers(&["ada", "ada", "ada"]).await;
    let now = SystemTime::now();
    let cancel = Told { saga: ids[1], input: Input::Cancel, cause: Cause::new(), ticket: None };

    let (mut leaves, mut gives) = (bank.bed.begin().await, bank.bed.begin().await);
    apply(&bank.core, &mut leaves, Vec::new(), vec![cancel], now).await.unwrap();
    apply(&bank.core, &mut gives, Vec::new(), vec![done(ids[0])], now).await.unwrap();
    gives.commit().await.unwrap();
    leaves.rollback().await.unwrap();
    bank.look_again().await;

    assert_eq!((bank.inputs().await, bank.at_work(&ids).await), (1, vec![1]));
}

#[tokio::test]
async fn no_two_sagas_have_one_lock_whatever_somebody_does_to_the_table() {
    let bank = bank("lock_twice").await;
    bank.transfers(&["ada", "ada"]).await;

    let forced = sqlx::raw_sql("UPDATE tailrace.saga_lock SET held_at = now()")
        .execute(&bank.bed.pool)
        .await;

    assert!(forced.is_err());
}

#[tokio::test]
async fn a_lock_that_is_asked_for_again_keeps_its_place() {
    let bank = bank("lock_again").await;
    let ids = bank.transfers(&["ada", "ada", "ada"]).await;
    let retry = || Verb::Retry { step: Some("account".into()) };

    sagas(&bank).operate(&mut *bank.conn().await, ids[1], "eve", retry()).await.unwrap();
    bank.inputs().await;
    bank.tell(vec![done(ids[0])]).await;
    // Once more, while the word that it has the lock is on its way.
    let again = Input::Operator { by: "eve".into(), verb: retry() };
    let again = Told { saga: ids[1], input: again, cause: Cause::new(), ticket: None };
    bank.tell(vec![again]).await;

    assert_eq!(bank.at_work(&ids).await, [1]);
    assert_eq!((bank.inputs().await, bank.rows().await), (1, (1, 1)));
}

#[tokio::test]
async fn an_input_that_fails_leaves_no_lock_and_no_place_in_a_line() {
    let panicking = Saga::define("panicking", 1)
        .lock_order(&["account"])
        .step("reserve-credit", ReserveCredit::of)
        .compensate()
        .lock(ACCOUNT, accounts)
        .pivot("pay", |order: &Order| {
            assert!(order.cents != 13, "this is too much");
            CapturePayment::of(order)
        })
        .build()
        .unwrap();
    let bank = bank_of("lock_panic", &panicking).await;
    let mut tx = bank.bed.begin().await;
    let (id, other) = (new_id(), new_id());
    for (id, cents) in [(id, 13), (other, 14)] {
        let order = Order { customer: "ada".to_owned(), cents, ..order() };
        sagas(&bank).start(&mut tx, &panicking, id, &order).await.unwrap();
    }
    tx.commit().await.unwrap();

    let deferred = bank.tell(vec![reserved(id, 7), reserved(other, 7)]).await;

    assert_eq!(deferred, [(id, Reason::Failed)]);
    assert_eq!(bank.rows().await, (1, 0));
    let pay = bank.find(other).await.step("pay").unwrap().attempts();
    assert_eq!(pay, 1, "the lock is the other one's at once");
}

#[tokio::test]
async fn definitions_and_living_engines_that_contradict_each_other_are_refused() {
    let bank = bank("lock_registry").await;
    let of = |name: &str, order: &[&str]| {
        let saga = Saga::define(name, 1).lock_order(order).pivot("pay", CapturePayment::of);
        saga.build().unwrap().definition().clone()
    };
    let (one, other) = (of("one", &["account", "stock"]), of("other", &["stock", "account"]));
    let fault = "one/1 locks account before stock, and other/1 stock before account";

    let engine = Engine::new().definition(&one).definition(&other);
    assert_eq!(engine.prepare().unwrap_err().list(), [fault]);

    let living = core_of(vec![one]);
    begin(&living, &bank.bed.pool, false).await.unwrap();
    let refused = core_of(vec![other]);
    let error = begin(&refused, &bank.bed.pool, false).await.unwrap_err();
    assert_eq!((error.kind(), error.list()), (Kind::Definition, &[fault.to_owned()][..]));
    living.registry.leave(&mut *bank.conn().await).await.unwrap();
    begin(&refused, &bank.bed.pool, false).await.unwrap();
}

#[tokio::test]
async fn whoever_comes_to_a_line_first_has_the_lock_however_many_come_at_once() {
    let bank = bank("lock_many").await;
    let lock = || LockKey { name: "account".into(), key: "ada".to_owned() };
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let pool = bank.bed.pool.clone();
        tasks.spawn(async move {
            for _ in 0..20 {
                let mut tx = pool.begin().await.unwrap();
                rows::take(&mut tx, new_id(), &lock(), SECOND).await.unwrap();
                tx.commit().await.unwrap();
            }
        });
    }
    tokio::time::timeout(crate::bed::DEADLINE, tasks.join_all()).await.expect("nobody waits");

    while bank.look_again().await > 0 {}

    assert_eq!((bank.rows().await, bank.looks().await), ((1, 239), 0));
}

#[tokio::test]
async fn who_holds_and_who_waits_is_counted_by_the_names_of_locks() {
    let bank = bank("lock_lines").await;
    bank.transfers(&["ada", "ada", "bob"]).await;
    bank.bed
        .execute("UPDATE tailrace.saga_lock SET held_at = now() - interval '1 h' WHERE key = 'bob'")
        .await;
    bank.bed.execute("UPDATE tailrace.saga_lock SET wanted_at = now() - interval '90 s'").await;
    let look = async || {
        let lines = rows::lines(&mut *bank.conn().await).await.unwrap();
        bank.core.counters.look_at_locks(lines);
        bank.core.counters.locks()
    };

    let [lines] = &look().await[..] else { panic!("one lock") };
    assert_eq!((&*lines.lock, lines.held, lines.expired, lines.waiting), ("account", 2, 1, 1));
    assert!(lines.wait_max >= 90 * SECOND, "{lines:?}");
    bank.bed.execute("DELETE FROM tailrace.saga_lock").await;
    assert_eq!(look().await, []);
}
