//! What is forgotten of sagas that have been over for long, beside what runs.

use std::time::{Duration, SystemTime};

use sqlx::{PgConnection, PgPool};
use tailrace_idempotency::Ending;

use crate::barrier::rows;
use crate::choreography;
use crate::error::Error;

/// How long participants and services remember what they have done for a saga unless told otherwise: 90 days from when
/// it began.
pub const KEEP: Duration = Duration::from_secs(90 * 86_400);

/// The shortest time that is kept: less would forget sagas that are under way.
pub const KEEP_MIN: Duration = Duration::from_secs(3600);

/// Between two looks at what is old.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// What is deleted in one transaction.
const PORTION_ROWS: u32 = 1_000;
/// Between two of them, so that there is room for what is under way.
const PAUSE: Duration = Duration::from_millis(50);

/// What of it there is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    /// From when a saga began.
    pub(crate) keep: Duration,
    /// Whether sagas start here without an orchestrator.
    pub(crate) with_starts: bool,
}

impl Kept {
    /// Forgets until the end, in bounded portions. Any number of processes may do so at once; a fault of the database
    /// passes.
    pub(crate) async fn keep(self, pool: PgPool, mut ends: Ending) {
        // A time before all times: everything is kept.
        while SystemTime::now().checked_sub(self.keep).is_some() {
            let wait = match self.portion(&pool).await {
                Ok(true) => PAUSE,
                Ok(false) => LOOK_EVERY,
                Err(error) => {
                    tracing::warn!(%error, "what is old is not forgotten, and is tried again");
                    LOOK_EVERY
                }
            };
            tokio::select! {
                biased;
                () = ends.wait() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Says whether there may be more.
    async fn portion(self, pool: &PgPool) -> Result<bool, Error> {
        let mut conn = pool
            .acquire()
            .await
            .map_err(|error| Error::database("no connection to postgres", error))?;
        self.forget(&mut conn).await
    }

    async fn forget(self, conn: &mut PgConnection) -> Result<bool, Error> {
        let Some(before) = SystemTime::now().checked_sub(self.keep) else { return Ok(false) };
        let rows = rows::forget(conn, before, i64::from(PORTION_ROWS)).await?;
        let sagas = match self.with_starts {
            true => choreography::forget(conn, before, PORTION_ROWS).await?,
            false => 0,
        };
        if rows + sagas > 0 {
            tracing::debug!(rows, sagas, "what is old is forgotten");
        }
        Ok(rows.max(sagas) >= u64::from(PORTION_ROWS))
    }
}
