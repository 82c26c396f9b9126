//! Steps that rely on what their saga saw earlier.

use serde::{Deserialize, Serialize};

use super::*;
use crate::definition::OnRefused;
use crate::seen::{Changed, Seen};

#[derive(Debug, Serialize, Deserialize)]
struct Transfer {
    cents: i64,
    balance: Seen<i64>,
}

async fn debit(
    cx: LocalCx<'_>,
    transfer: Transfer,
) -> Result<Result<(), Changed<i64>>, sqlx::Error> {
    let now =
        sqlx::query_scalar("SELECT cents FROM account FOR UPDATE").fetch_one(&mut *cx.conn).await?;
    if let Err(changed) = transfer.balance.reread(now) {
        return Ok(Err(changed));
    }
    sqlx::query("UPDATE account SET cents = cents - $1")
        .bind(transfer.cents)
        .execute(cx.conn)
        .await?;
    Ok(Ok(()))
}

async fn credit(cx: LocalCx<'_>, transfer: Transfer) -> Result<(), sqlx::Error> {
    let back = "UPDATE account SET cents = cents + $1";
    sqlx::query(back).bind(transfer.cents).execute(cx.conn).await.map(drop)
}

#[tokio::test]
async fn a_saga_that_saw_another_value_is_undone_or_goes_by_what_is_there_now() {
    let saga = Saga::<Transfer>::define("transfer", 1)
        .step("debit", local(debit).undo(credit))
        .on_refused(|transfer, changed: Changed<i64>| {
            transfer.balance = Seen::new(changed.now);
            if changed.now >= transfer.cents { OnRefused::Anew } else { OnRefused::Abort }
        })
        .compensate()
        .build()
        .unwrap();
    let bed = installed("engine_seen").await;
    bed.execute("CREATE TABLE account (cents bigint); INSERT INTO account VALUES (100)").await;
    let shop = Shop { bed, core: core_of(vec![saga.definition().clone()]) };
    let mut ids = Vec::new();
    let mut tx = shop.bed.begin().await;
    for cents in [30, 40, 50] {
        let id = new_id();
        let transfer = Transfer { cents, balance: Seen::new(100) };
        sagas(&shop).start(&mut tx, &saga, id, &transfer).await.unwrap();
        ids.push(id);
    }
    tx.commit().await.unwrap();

    // The first is right. The others saw what is no longer so, and both could do with what is there now.
    assert_eq!(shop.status(ids[0]).await, Status::Completed);
    assert_eq!(shop.status(ids[1]).await, Status::Running);
    assert_eq!(shop.status(ids[2]).await, Status::Running);
    shop.keep_time(Duration::from_secs(600)).await;

    assert_eq!(shop.status(ids[1]).await, Status::Completed);
    assert_eq!(shop.status(ids[2]).await, Status::Compensated);
    assert_eq!(shop.bed.count("SELECT cents FROM account").await, 30);
}
