//! Timers that are due, inputs that wait, and signs of life.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use sqlx::{Connection as _, PgConnection, PgPool};
use tailrace_idempotency::{BoxError, Ending};

use super::sweep::Sweep;
use super::{Core, SILENCE_MAX, registry};
use crate::engine::apply::{Applied, Told, apply, told};
use crate::lock;
use crate::store::{self, Cause, Deferred, Look, Reason, Waiting};
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
pub(super) const TAKE_MAX: u32 = 200;
/// Timers of sagas that nobody can run, put off in one statement.
const NOBODYS_MAX: u32 = 1_000;
/// Transactions of one kind in a round. Whoever has more to do gives signs of life and sees to all else in between: an
/// engine that took all timers which an outage has left first would be silent for so long that others take it for gone.
pub(super) const PORTIONS_MAX: u32 = 20;

/// Runs until told to end, and takes the engine's leave. An error of the database passes, or the consumer beside it ends
/// with it.
pub(super) async fn keep(core: Arc<Core>, pool: PgPool, mut ends: Ending) {
    let mut beaten = Beaten::default();
    loop {
        let wait = match round(&core, &pool, &mut beaten).await {
            Ok(Left::Nothing) => LOOK_EVERY,
            Ok(Left::More) => Duration::ZERO,
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
    timers: Portion,
    inputs: Portion,
    parked: Portion,
}

/// Whether a round has left something that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    More,
}

impl Left {
    fn or(self, other: Self) -> Self {
        if self == Self::More { self } else { other }
    }
}

/// How many are taken in one transaction: fewer after one that was lost, since one of them may have lost it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Portion(u32);

impl Default for Portion {
    fn default() -> Self {
        Self(TAKE_MAX)
    }
}

impl Portion {
    fn succeeded(&mut self) {
        self.0 = self.0.saturating_mul(2).min(TAKE_MAX);
    }

    /// Whether it was to blame alone.
    fn lost(&mut self) -> bool {
        let was_alone = self.0 == 1;
        self.0 = (self.0 / 2).max(1);
        was_alone
    }
}

/// What is taken portion by portion.
#[derive(Debug, Clone, Copy)]
pub(super) enum Due {
    Timers,
    Inputs(Look),
}

/// What is due comes before all that is only looked at: where a look fails each time, sagas go on all the same.
async fn round(core: &Core, pool: &PgPool, beaten: &mut Beaten) -> Result<Left, BoxError> {
    let mut conn = pool.acquire().await?;
    let looks = beaten.last.is_none_or(|at| at.elapsed() >= BEAT_EVERY);
    if looks {
        core.registry.beat(&mut conn, SILENCE_MAX).await?;
        beaten.last = Some(Instant::now());
    }
    drop(conn);
    let now = SystemTime::now();
    let mut left = take(core, pool, Due::Timers, &mut beaten.timers, now).await?;
    left = left.or(look_at_locks(pool).await?);
    left = left.or(take(core, pool, Due::Inputs(Look::Ready), &mut beaten.inputs, now).await?);
    if looks {
        left = left.or(take(core, pool, Due::Inputs(Look::Parked), &mut beaten.parked, now).await?);
        look(core, &mut *pool.acquire().await?, beaten).await?;
    }
    Ok(left)
}

/// Takes what is due, a bounded number of portions.
///
/// What always loses its transaction (a local step that meets `statement_timeout`, or a database of its own that is away)
/// is found by halving, put off, and keeps nobody else from what he waits for.
pub(super) async fn take(
    core: &Core,
    pool: &PgPool,
    due: Due,
    portion: &mut Portion,
    now: SystemTime,
) -> Result<Left, BoxError> {
    let mut conn = pool.acquire().await?;
    for _ in 0..PORTIONS_MAX {
        let max = portion.0;
        let taken = match due {
            Due::Timers => timers(core, &mut conn, now, max).await,
            Due::Inputs(look) => inputs(core, &mut conn, look, max).await,
        };
        let error = match taken {
            Ok(taken) => {
                portion.succeeded();
                if taken < max as usize {
                    return Ok(Left::Nothing);
                }
                continue;
            }
            Err(error) => error,
        };
        // The roll-back is over then. Before, the next look would pass over what the transaction has locked.
        if conn.ping().await.is_err() {
            drop(conn);
            conn = pool.acquire().await?;
        }
        if portion.lost() {
            put_one_off(core, &mut conn, due, now, &error).await?;
        } else {
            tracing::warn!(error = %told(&*error), ?due, taken = max,
                "a transaction of sagas is lost, and fewer of them are taken");
        }
    }
    Ok(Left::More)
}

/// Puts the first one off that is due: it has lost its transaction alone.
async fn put_one_off(
    core: &Core,
    conn: &mut PgConnection,
    due: Due,
    now: SystemTime,
    error: &BoxError,
) -> Result<(), BoxError> {
    let mine = core.registry.identities();
    let mut tx = super::begin_transaction(conn).await?;
    let first = match due {
        Due::Timers => store::put_timer_off(&mut tx, &mine, now).await?,
        Due::Inputs(look) => {
            let first = store::waiting(&mut tx, &mine, look, 1).await?.pop();
            let ids: Vec<i64> = first.iter().map(|first| first.id).collect();
            store::put_off(&mut tx, &ids, Reason::Failed).await?;
            first.map(|first| first.saga)
        }
    };
    tx.commit().await?;
    if let Some(saga) = first {
        tracing::error!(%saga, error = %told(&**error), ?due,
            "what is due for a saga loses its transaction even alone, and is put off");
    }
    Ok(())
}

/// Looks again at lines of locks, a bounded number of them.
async fn look_at_locks(pool: &PgPool) -> Result<Left, BoxError> {
    let mut conn = pool.acquire().await?;
    for _ in 0..PORTIONS_MAX {
        if locks(&mut conn).await? < TAKE_MAX as usize {
            return Ok(Left::Nothing);
        }
    }
    Ok(Left::More)
}

/// All that is looked at now and then.
async fn look(core: &Core, conn: &mut PgConnection, beaten: &mut Beaten) -> Result<(), BoxError> {
    for _ in 0..PORTIONS_MAX {
        if super::moves::take(core, conn, SystemTime::now()).await? == 0 {
            break;
        }
    }
    let mine = core.registry.identities();
    core.counters.quarantine(registry::quarantined(conn, SILENCE_MAX, &mine).await?);
    core.counters.look_at_locks(lock::rows::lines(conn).await?);
    store::put_off_nobodys_timers(conn, SILENCE_MAX, NOBODYS_MAX).await?;
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
    max: u32,
) -> Result<usize, BoxError> {
    if !store::has_due(conn, now).await? {
        return Ok(0);
    }
    let mut tx = super::begin_transaction(conn).await?;
    let due = store::take_timers(&mut tx, &core.registry.identities(), now, max).await?;
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
pub(super) async fn inputs(
    core: &Core,
    conn: &mut PgConnection,
    look: Look,
    max: u32,
) -> Result<usize, BoxError> {
    let now = SystemTime::now();
    let mut tx = super::begin_transaction(conn).await?;
    let waiting = store::waiting(&mut tx, &core.registry.identities(), look, max).await?;
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
