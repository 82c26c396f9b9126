//! Sagas that are started by a key of the business.

use super::*;

#[tokio::test]
async fn a_key_of_the_business_has_one_saga_also_where_both_wishes_come_at_once() {
    let shop = shop("engine_key").await;
    let start = async |tx: &mut PgConnection, key: &str| {
        sagas(&shop).start_once(tx, &definition(1), key, &order(), Vec::new()).await.unwrap()
    };
    let mut first = shop.bed.begin().await;
    let begun = start(&mut first, "order 7").await;
    let mut second = shop.bed.begin().await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND wait_event_type = 'Lock'";
    let committing = async {
        let begun = async { while shop.bed.count(waiting).await == 0 {} };
        tokio::time::timeout(crate::bed::DEADLINE, begun).await.expect("the second one waits");
        first.commit().await.unwrap();
    };

    let (again, ()) = tokio::join!(start(&mut second, "order 7"), committing);
    let other = start(&mut second, "order 8").await;
    second.commit().await.unwrap();
    let mut conn = shop.conn().await;
    let found = sagas(&shop).find_by_key(&mut conn, &definition(1), "order 7").await.unwrap();
    let nobodys = sagas(&shop).find_by_key(&mut conn, &definition(1), "order 9").await.unwrap();

    assert_eq!(begun.1, Started::Now);
    assert_eq!(again, (begun.0, Started::Before));
    assert!(other.0 != begun.0 && other.1 == Started::Now);
    assert_eq!(found.map(|saga| saga.id()), Some(begun.0));
    assert_eq!(nobodys, None);
}

#[tokio::test]
async fn a_key_whose_saga_does_not_begin_is_free_in_the_same_transaction() {
    async fn pays(_: LocalCx<'_>, _: i64) -> Result<Result<(), String>, sqlx::Error> {
        Ok(Ok(()))
    }
    fn panics(_: &Order) -> ReserveCredit {
        panic!("planted")
    }
    let newer = Saga::<i64>::define("create-order", 2).pivot("pay", local(pays)).build().unwrap();
    let broken = Saga::<Order>::define("broken", 1)
        .step("reserve-credit", panics)
        .compensate()
        .pivot("approve", local(approve))
        .build()
        .unwrap();
    let bed = installed("engine_key_free").await;
    let definitions = [definition(1).definition().clone(), broken.definition().clone()];
    let shop = Shop { bed, core: core_of(definitions.to_vec()) };
    let (sagas, mut tx) = (sagas(&shop), shop.bed.begin().await);

    let too_new = sagas.start_once(&mut tx, &newer, "order 7", &7, Vec::new()).await.unwrap_err();
    let current = sagas.start_once(&mut tx, &definition(1), "order 7", &order(), Vec::new()).await;
    let panicked = sagas.start_once(&mut tx, &broken, "order 8", &order(), Vec::new()).await;
    tx.commit().await.unwrap();

    assert_eq!(too_new.kind(), Kind::Definition);
    let (saga, started) = current.unwrap();
    assert_eq!(started, Started::Now);
    assert_eq!(shop.status(saga).await, Status::Running);
    assert!(panicked.is_err());
    assert_eq!(shop.bed.count("SELECT count(*) FROM tailrace.saga_key").await, 1);
}

#[tokio::test]
async fn a_key_that_postgres_cannot_store_is_refused_and_fails_no_transaction() {
    let shop = shop("engine_key_size").await;
    let (sagas, saga, mut tx) = (sagas(&shop), definition(1), shop.bed.begin().await);
    let long = "7".repeat(1_024);

    for key in [format!("{long}7"), "order\u{0}7".to_owned()] {
        let refused = sagas.start_once(&mut tx, &saga, &key, &order(), Vec::new()).await;
        assert_eq!(refused.unwrap_err().kind(), Kind::Conflict);
        assert_eq!(sagas.find_by_key(&mut tx, &saga, &key).await.unwrap(), None);
    }
    let longest = sagas.start_once(&mut tx, &saga, &long, &order(), Vec::new()).await.unwrap();
    tx.commit().await.unwrap();

    assert_eq!(longest.1, Started::Now);
}
