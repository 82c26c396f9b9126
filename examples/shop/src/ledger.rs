//! A double-entry ledger in each service's database: what leaves one account arrives at another.
//!
//! A trigger at the end of every transaction refuses to commit an order whose postings do not add up to zero. What is
//! promised and not yet given stands on the account [`IN_TRANSIT`], so that the ledger balances in the middle of a saga
//! as well.

use sqlx::PgConnection;
use uuid::Uuid;

/// What is promised and not yet given.
pub(crate) const IN_TRANSIT: &str = "in-transit";

/// The tables of a ledger. They may be made again.
pub(crate) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS ledger (
        entry bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        order_id uuid NOT NULL,
        account text NOT NULL,
        amount bigint NOT NULL,
        at timestamptz NOT NULL DEFAULT clock_timestamp());
    CREATE INDEX IF NOT EXISTS ledger_order ON ledger (order_id) INCLUDE (amount);
    CREATE OR REPLACE FUNCTION ledger_balances() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF (SELECT sum(amount) FROM ledger WHERE order_id = NEW.order_id) <> 0 THEN
                RAISE EXCEPTION 'the ledger does not balance for order %', NEW.order_id;
            END IF;
            RETURN NULL;
        END $$;
    DO $$ BEGIN
        IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'ledger_balances') THEN
            CREATE CONSTRAINT TRIGGER ledger_balances AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION ledger_balances();
        END IF;
    END $$";

/// Moves an amount from one account to another, in the caller's transaction.
pub(crate) async fn transfer(
    conn: &mut PgConnection,
    order: Uuid,
    from: &str,
    to: &str,
    amount: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO ledger (order_id, account, amount) VALUES ($1, $2, -$4::bigint), ($1, $3, $4)",
    )
    .bind(order)
    .bind(from)
    .bind(to)
    .bind(amount)
    .execute(conn)
    .await
    .map(drop)
}
