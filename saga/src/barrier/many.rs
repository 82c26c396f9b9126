//! The barrier's rows of many commands at once.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Row as _};
use tailrace_outbox::{BATCH_MESSAGES_MAX, Message, Outbox};
use uuid::Uuid;

use super::Barrier;
use super::rows::{Held, barrier_of, failed, horizon, is_forgotten, micros, remember};
use crate::correlation::{Correlation, Instruction};
use crate::error::Error;

/// As for one row; in the order of the key, so that two transactions never wait for each other in a circle.
const LOCK: &str = "INSERT INTO tailrace.saga_barrier AS held (saga_id, step, definition)
     SELECT saga_id, step, definition FROM unnest($1::uuid[], $2::text[], $3::text[]) AS given (saga_id, step, definition)
     ON CONFLICT (saga_id, step) DO UPDATE SET definition = held.definition
     RETURNING action_epoch, action_outcome, reply, compensation_epoch, saga_id, step,
         (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
         held.saga_id < (SELECT horizon.saga_id FROM tailrace.saga_barrier_horizon AS horizon),
         compensation_calling, caller,
         held.saga_id < (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint - 60000), 12, '0')
             || repeat('0', 20))::uuid";

// All of the rows are there. By ON CONFLICT each is found by the primary key, whatever number of rows the plan was made for.
const REMEMBER: &str = "INSERT INTO tailrace.saga_barrier AS held
         (saga_id, step, definition, action_epoch, action_outcome, reply, compensation_epoch)
     SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::bytea[], $7::bigint[])
     ON CONFLICT (saga_id, step) DO UPDATE
     SET action_epoch = excluded.action_epoch, action_outcome = excluded.action_outcome, reply = excluded.reply,
         compensation_epoch = excluded.compensation_epoch, compensation_calling = NULL, caller = NULL";

/// The locked rows of the steps that a batch of commands is about.
///
/// Several commands of a batch may be about one step: what the one leaves is what the next finds.
#[derive(Debug)]
pub(crate) struct Many(BTreeMap<Key, Row>);

type Key = (Uuid, Box<str>);

#[derive(Debug)]
struct Row {
    barrier: Barrier,
    reply: Option<Vec<u8>>,
    /// The clock of the database when it was locked, in microseconds.
    at: i64,
    is_forgotten: bool,
    caller: Option<String>,
    of: Correlation,
    is_changed: bool,
}

impl Many {
    /// Locks the rows until the transaction ends, in one round trip.
    pub(crate) async fn lock(
        conn: &mut PgConnection,
        commands: &[Instruction],
    ) -> Result<Self, Error> {
        let of: BTreeMap<Key, &Correlation> =
            commands.iter().map(|it| (key(&it.correlation), &it.correlation)).collect();
        let rows = sqlx::query(LOCK)
            .bind(of.keys().map(|(saga, _)| *saga).collect::<Vec<_>>())
            .bind(of.keys().map(|(_, step)| &**step).collect::<Vec<_>>())
            .bind(of.values().map(|of| &*of.definition).collect::<Vec<_>>())
            .fetch_all(&mut *conn)
            .await
            .map_err(failed)?;
        let mut many = BTreeMap::new();
        let mut beyond: Option<Uuid> = None;
        for row in rows {
            let saga: Uuid = row.try_get(4).map_err(failed)?;
            let step: String = row.try_get(5).map_err(failed)?;
            let key = (saga, Box::from(step));
            let Some(of) = of.get(&key) else { continue };
            let (barrier, reply) = barrier_of(&row)?;
            let (mut is_beyond, is_old): (bool, bool) =
                (row.try_get(7).map_err(failed)?, row.try_get(10).map_err(failed)?);
            // As with one row: it may have been deleted while the statement waited.
            if !is_beyond && is_old && barrier == Barrier::default() {
                let seen = match beyond {
                    Some(seen) => seen,
                    None => *beyond.insert(horizon(conn).await?),
                };
                is_beyond = saga < seen;
            }
            let locked = Row {
                barrier,
                reply,
                at: row.try_get(6).map_err(failed)?,
                is_forgotten: is_forgotten(saga, is_beyond),
                caller: row.try_get("caller").map_err(failed)?,
                of: (*of).clone(),
                is_changed: false,
            };
            many.insert(key, locked);
        }
        Ok(Self(many))
    }

    /// What a command finds.
    pub(crate) fn held(&self, command: &Instruction) -> Result<Held, Error> {
        let row = self.0.get(&key(&command.correlation)).ok_or_else(missing)?;
        let late = command.deadline.is_some_and(|deadline| micros(deadline) < row.at);
        let (barrier, reply) = (row.barrier, row.reply.clone());
        let caller = row.caller.clone();
        Ok(Held { barrier, reply, late, forgotten: row.is_forgotten, caller })
    }

    /// What a command leaves.
    pub(crate) fn leave(
        &mut self,
        of: &Correlation,
        barrier: Barrier,
        reply: Option<&[u8]>,
    ) -> Result<(), Error> {
        let row = self.0.get_mut(&key(of)).ok_or_else(missing)?;
        row.barrier = barrier;
        row.reply = reply.map(<[u8]>::to_vec);
        row.is_changed = true;
        Ok(())
    }

    /// Stores what is remembered from now on, and writes the answers: one round trip for one command, two for many.
    pub(crate) async fn remember(
        &self,
        conn: &mut PgConnection,
        outbox: &Outbox,
        answers: &[Message],
    ) -> Result<(), Error> {
        let changed: Vec<&Row> = self.0.values().filter(|row| row.is_changed).collect();
        if let ([row], [answer]) = (changed.as_slice(), answers) {
            let Row { of, barrier, reply, .. } = row;
            return remember(conn, outbox, of, *barrier, reply.as_deref(), answer).await;
        }
        if !changed.is_empty() {
            store(conn, &changed).await?;
        }
        for answers in answers.chunks(BATCH_MESSAGES_MAX) {
            outbox.write_all(&mut *conn, answers).await.map_err(Error::of_outbox)?;
        }
        Ok(())
    }
}

async fn store(conn: &mut PgConnection, rows: &[&Row]) -> Result<(), Error> {
    let actions = || rows.iter().map(|row| row.barrier.action);
    let compensations = rows.iter().map(|row| row.barrier.compensation);
    sqlx::query(REMEMBER)
        .bind(rows.iter().map(|row| *row.of.saga.as_uuid()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| &*row.of.step).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| &*row.of.definition).collect::<Vec<_>>())
        .bind(actions().map(|past| Some(i64::from(past?.epoch.get()))).collect::<Vec<_>>())
        .bind(actions().map(|past| Some(past?.ended.as_str())).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.reply.as_deref()).collect::<Vec<_>>())
        .bind(compensations.map(|epoch| Some(i64::from(epoch?.get()))).collect::<Vec<_>>())
        .execute(conn)
        .await
        .map(drop)
        .map_err(|error| Error::database("what was done for steps cannot be stored", error))
}

fn key(of: &Correlation) -> Key {
    (*of.saga.as_uuid(), of.step.clone())
}

fn missing() -> Error {
    Error::database("what was done for a step is not there", sqlx::Error::RowNotFound)
}

/// A command for this step, without a deadline.
#[cfg(test)]
pub(super) fn alone(of: &Correlation) -> Instruction {
    Instruction { correlation: of.clone(), reply_to: "replies".into(), deadline: None }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use tailrace_outbox::Store;

    use super::super::rows::{calls, lock};
    use super::super::{Ended, Past};
    use super::*;
    use crate::bed::installed;
    use crate::correlation::{Epoch, Operation, SagaId};

    fn command(saga: Uuid, step: &str, deadline: Option<SystemTime>) -> Instruction {
        let correlation = Correlation {
            saga: SagaId::from_uuid(saga),
            definition: "create-order/4".into(),
            step: step.into(),
            operation: Operation::Action,
            epoch: Epoch::FIRST,
        };
        Instruction { correlation, reply_to: "replies".into(), deadline }
    }

    fn answer() -> Message {
        Message::builder("replies", "reply.v1").source("/customers").json(&7).build().unwrap()
    }

    fn done() -> Barrier {
        let past = Past { epoch: Epoch::FIRST, ended: Ended::Done };
        Barrier { action: Some(past), ..Barrier::default() }
    }

    #[tokio::test]
    async fn each_command_of_a_batch_finds_what_those_before_it_have_left() {
        let bed = installed("barrier_many").await;
        let outbox = Outbox::new(Store::Wal);
        let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
        let commands = [
            command(other, "pay", None),
            command(one, "reserve", None),
            command(one, "reserve", None),
        ];
        let [pay, reserve, again] = &commands;

        let mut tx = bed.begin().await;
        let mut rows = Many::lock(&mut tx, &commands).await.unwrap();
        let fresh = rows.held(reserve).unwrap();
        rows.leave(&reserve.correlation, done(), Some(b"41")).unwrap();
        let found = rows.held(again).unwrap();
        let answers = [answer(), answer(), answer()];
        rows.remember(&mut tx, &outbox, &answers).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = bed.begin().await;
        let rows = Many::lock(&mut tx, &commands).await.unwrap();

        assert_eq!((fresh.barrier, fresh.reply), (Barrier::default(), None));
        assert_eq!((found.barrier, found.reply.as_deref()), (done(), Some(&b"41"[..])));
        let stored = rows.held(reserve).unwrap();
        assert_eq!((stored.barrier, stored.reply.as_deref()), (done(), Some(&b"41"[..])));
        assert_eq!(rows.held(pay).unwrap().barrier, Barrier::default());
    }

    #[tokio::test]
    async fn many_rows_are_stored_as_one_is() {
        let bed = installed("barrier_many_stored").await;
        let outbox = Outbox::new(Store::Wal);
        let commands: Vec<Instruction> =
            (0..60).map(|_| command(Uuid::now_v7(), "reserve", None)).collect();
        let compensated = Barrier { compensation: Some(Epoch::new(2)), ..Barrier::default() };

        let mut tx = bed.begin().await;
        // Calls are over with what is stored.
        for command in &commands {
            let of = &command.correlation;
            lock(&mut tx, of, None).await.unwrap();
            let calling = Barrier { undoing: Some(Epoch::new(2)), ..Barrier::default() };
            calls(&mut tx, of, calling, "the one".parse().unwrap(), None).await.unwrap();
        }
        let mut rows = Many::lock(&mut tx, &commands).await.unwrap();
        for (at, command) in commands.iter().enumerate() {
            match at % 2 {
                0 => rows.leave(&command.correlation, done(), Some(b"{}")).unwrap(),
                _ => rows.leave(&command.correlation, compensated, None).unwrap(),
            }
        }
        rows.remember(&mut tx, &outbox, &[]).await.unwrap();
        let rows = Many::lock(&mut tx, &commands).await.unwrap();

        for (at, command) in commands.iter().enumerate() {
            let held = rows.held(command).unwrap();
            let expected =
                if at % 2 == 0 { (done(), Some(b"{}".to_vec())) } else { (compensated, None) };
            assert_eq!((held.barrier, held.reply), expected);
            assert_eq!(held.caller, None);
        }
    }

    #[tokio::test]
    async fn each_command_is_late_by_its_own_deadline() {
        let bed = installed("barrier_many_late").await;
        let now = SystemTime::now();
        let minute = Duration::from_secs(60);
        let deadlines = [Some(now - minute), Some(now + minute), None];
        let commands = deadlines.map(|deadline| command(Uuid::now_v7(), "reserve", deadline));

        let mut tx = bed.begin().await;
        let rows = Many::lock(&mut tx, &commands).await.unwrap();

        let late = commands.iter().map(|command| rows.held(command).unwrap().late);
        assert_eq!(late.collect::<Vec<_>>(), [true, false, false]);
    }
}
