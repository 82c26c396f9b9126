//! Timers that are due, inputs that wait, and signs of life.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use sqlx::{PgConnection, PgPool};
use tailrace_idempotency::{BoxError, Ending};

use super::sweep::Sweep;
use super::{Core, SILENCE_MAX, registry};
use crate::engine::apply::{Applied, Told, apply};
use crate::lock;
use crate::store::{self, Cause, Deferred, Reason, Waiting};
use crate::transition::Input;

/// Between two looks at what is due.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between two signs of life, and two looks at those of others.
const BEAT_EVERY: Duration = Duration::from_secs(3);
/// Signs of life between two looks at what waits for a person or to be undone.
const BEATS_PER_LOOK: u64 = 5;
/// After an error of the database.
const ERROR_WAIT: Duration = Duration::from_secs(1);
/// What is taken in one transaction.
const TAKE_MAX: u32 = 200;

/// Runs until told to end, and takes the engine's leave. An error of the database passes, or the consumer beside it ends
/// with it.
pub(super) async fn keep(core: Arc<Core>, pool: PgPool, mut ends: Ending) {
    let mut beaten = Beaten::default();
    loop {
        let wait = match round(&core, &pool, &mut beaten).await {
            Ok(()) => LOOK_EVERY,
            Err(error) => {
                tracing::warn!(error = %error, "timers and waiting inputs cannot be taken, and are tried again");
                ERROR_WAIT
            }
        };
        tokio::select! {
            biased;
            () = ends.wait() => break,
            () = tokio::time::sleep(wait) => {}
        }
    }
    if let Ok(mut conn) = pool.acquire().await
        && let Err(error) = core.registry.leave(&mut conn).await
    {
        tracing::warn!(%error, "an engine ends without taking its leave; others wait until it counts as gone");
    }
}

/// When the last sign of life was given, and how many there were.
#[derive(Default)]
struct Beaten {
    last: Option<Instant>,
    count: u64,
    sweep: Sweep,
}

/// What is due comes before all that is only looked at: where a look fails each time, sagas go on all the same.
async fn round(core: &Core, pool: &PgPool, beaten: &mut Beaten) -> Result<(), BoxError> {
    let mut conn = pool.acquire().await?;
    let looks = beaten.last.is_none_or(|at| at.elapsed() >= BEAT_EVERY);
    if looks {
        core.registry.beat(&mut conn, SILENCE_MAX).await?;
        beaten.last = Some(Instant::now());
    }
    while timers(core, &mut conn, SystemTime::now()).await? == TAKE_MAX as usize {}
    while locks(&mut conn).await? == TAKE_MAX as usize {}
    while inputs(core, &mut conn).await? == TAKE_MAX as usize {}
    if looks {
        look(core, &mut conn, beaten).await?;
    }
    Ok(())
}

/// All that is looked at now and then.
async fn look(core: &Core, conn: &mut PgConnection, beaten: &mut Beaten) -> Result<(), BoxError> {
    while super::moves::take(core, conn, SystemTime::now()).await? > 0 {}
    let mine = core.registry.identities();
    core.counters.quarantine(registry::quarantined(conn, SILENCE_MAX, &mine).await?);
    core.counters.look_at_locks(lock::rows::lines(conn).await?);
    let expired = store::expire(conn, TAKE_MAX).await?;
    if expired > 0 {
        tracing::warn!(
            inputs = expired,
            "what came for unknown sagas has waited in vain, and is dropped"
        );
    }
    beaten.count += 1;
    if beaten.count % BEATS_PER_LOOK == 1 {
        super::metrics::look(conn, &core.registry.names()).await?;
    }
    Ok(beaten.sweep.round(conn).await?)
}

/// Takes timers that are due, and says how many.
pub(super) async fn timers(
    core: &Core,
    conn: &mut PgConnection,
    now: SystemTime,
) -> Result<usize, BoxError> {
    if !store::has_due(conn, now).await? {
        return Ok(0);
    }
    let mut tx = super::begin_transaction(conn).await?;
    let due = store::take_timers(&mut tx, &core.registry.identities(), now, TAKE_MAX).await?;
    let taken = due.len();
    if taken == 0 {
        return Ok(0);
    }
    let told = due.into_iter().filter_map(|(saga, tick)| {
        Some(Told { saga, input: Input::Tick(tick?), cause: Cause::new(), ticket: None })
    });
    let applied = apply(core, &mut tx, Vec::new(), told.collect(), now).await?;
    store::defer(&mut tx, &applied.deferred, core.unknown_for_secs()).await?;
    tx.commit().await?;
    super::report(&applied);
    let mut tally = applied.tally;
    tally.timers = taken as u64;
    core.counters.count(tally);
    Ok(taken)
}

/// Looks again at the lines of locks at which transactions met, and says at how many.
pub(super) async fn locks(conn: &mut PgConnection) -> Result<usize, BoxError> {
    if !lock::rows::has_looks(conn).await? {
        return Ok(0);
    }
    let mut tx = super::begin_transaction(conn).await?;
    let looked = lock::rows::look(&mut tx, TAKE_MAX).await?;
    tx.commit().await?;
    Ok(looked)
}

/// Tells sagas what has waited for them, and says how much.
pub(super) async fn inputs(core: &Core, conn: &mut PgConnection) -> Result<usize, BoxError> {
    let now = SystemTime::now();
    let mut tx = super::begin_transaction(conn).await?;
    let waiting = store::waiting(&mut tx, &core.registry.identities(), TAKE_MAX).await?;
    let taken = waiting.len();
    if taken == 0 {
        return Ok(0);
    }
    let (mut ids, mut unread, mut told) = (Vec::new(), Vec::new(), Vec::new());
    for Waiting { id, saga, input, cause, .. } in waiting {
        match input {
            Some(input) => {
                ids.push(id);
                told.push(Told { saga, input, cause, ticket: Some(id) });
            }
            None => {
                tracing::error!(%saga, "what a saga is told can not be read, and waits: a newer release has written it");
                unread.push(id);
            }
        }
    }
    store::put_off(&mut tx, &unread, Reason::Foreign).await?;
    let applied = apply(core, &mut tx, Vec::new(), told, now).await?;
    let Applied { deferred, .. } = &applied;
    for reason in [Reason::Unknown, Reason::Foreign, Reason::Failed] {
        store::put_off(&mut tx, &tickets(deferred, reason), reason).await?;
    }
    let is_done = |id: &i64| deferred.iter().all(|deferred| deferred.ticket != Some(*id));
    store::told(&mut tx, &ids.into_iter().filter(is_done).collect::<Vec<_>>()).await?;
    tx.commit().await?;
    super::report(&applied);
    core.counters.count(applied.tally);
    Ok(taken)
}

fn tickets(deferred: &[Deferred], reason: Reason) -> Vec<i64> {
    let of = deferred.iter().filter(|deferred| deferred.reason == reason);
    of.filter_map(|deferred| deferred.ticket).collect()
}
