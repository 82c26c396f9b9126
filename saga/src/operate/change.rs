//! What people want of sagas: told first, then made, bounded per transaction.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::list::several;
use super::{By, Listed, Living, living, structures, unread, unwritten};
use crate::correlation::SagaId;
use crate::definition::{Identity, StepKind};
use crate::error::{Error, Kind};
use crate::instance::{Instance, Phase, SIGNALS_MAX, StepState, StepStatus};
use crate::mapping_file::MappingFile;
use crate::migrate;
use crate::structure::Structure;
use crate::transition::{Input, Verb};

/// The most sagas in one transaction.
pub const BATCH_SAGAS_MAX: usize = 500;

/// What is wanted of sagas, by whom, and why of these.
///
/// It is made in as many transactions as one likes, each of [`BATCH_SAGAS_MAX`] sagas at most. To break off between two
/// of them leaves nothing half done, and to begin again does nothing twice: a saga that has been told and not yet heard
/// is passed over.
#[derive(Clone, Debug)]
pub struct Change {
    wish: Wish,
    by: By,
    query: String,
    batch: Uuid,
}

/// What may be wanted of a saga.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Wish {
    /// What it is told.
    Verb(Verb),
    /// That it gets the signal that one of its steps waits for, or will.
    Signal {
        /// Its message type.
        signal_type: Box<str>,
        /// Its payload, as JSON.
        payload: Value,
    },
    /// That it goes on under another definition.
    Migrate {
        /// The definition.
        to: Structure,
        /// How.
        mapping: MappingFile,
    },
}

/// What becomes of a wish for one saga.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// The saga.
    pub saga: SagaId,
    /// What its engine does as it stands now, or why nothing was told to it.
    pub planned: Result<String, String>,
}

impl Change {
    /// Tells sagas something. The query says how they were chosen, for the audit.
    pub fn verb(verb: Verb, by: By, query: impl Into<String>) -> Self {
        Self::new(Wish::Verb(verb), by, query.into())
    }

    /// Gives sagas a signal, as the event of this message type would.
    pub fn signal(signal_type: &str, payload: Value, by: By, query: impl Into<String>) -> Self {
        Self::new(Wish::Signal { signal_type: signal_type.into(), payload }, by, query.into())
    }

    /// Has sagas go on under another definition, of which an engine must have the code.
    pub fn migrate(to: Structure, mapping: MappingFile, by: By, query: impl Into<String>) -> Self {
        Self::new(Wish::Migrate { to, mapping }, by, query.into())
    }

    fn new(wish: Wish, by: By, query: String) -> Self {
        Self { wish, by, query, batch: Uuid::now_v7() }
    }

    /// What is wanted.
    pub fn wish(&self) -> &Wish {
        &self.wish
    }

    /// The number that all rows of the audit have which this change writes.
    pub fn batch(&self) -> Uuid {
        self.batch
    }

    /// What it would come to. Nothing is changed.
    ///
    /// # Errors
    /// [`Kind::Conflict`] for more than [`BATCH_SAGAS_MAX`] sagas; what Postgres answers.
    pub async fn plan(
        &self,
        conn: &mut PgConnection,
        sagas: &[SagaId],
    ) -> Result<Vec<Outcome>, Error> {
        let judged = self.judged(conn, sagas).await?;
        Ok(outcomes(sagas, judged.into_iter().map(|(saga, planned)| (saga.id, planned))))
    }

    /// Tells it to those sagas for which it makes sense, in a transaction of its own or as a part of the one that is
    /// open. They hear it after the commit.
    ///
    /// # Errors
    /// As [`plan`](Self::plan); nothing is told then.
    pub async fn make(
        &self,
        conn: &mut PgConnection,
        sagas: &[SagaId],
    ) -> Result<Vec<Outcome>, Error> {
        let mut tx = conn.begin().await.map_err(unwritten)?;
        let judged = match self.judged(&mut tx, sagas).await {
            Ok(judged) => judged,
            Err(error) => {
                // So that its locks do not outlast the error.
                tx.rollback().await.map_err(unwritten)?;
                return Err(error);
            }
        };
        let told: Vec<&Listed> =
            judged.iter().filter(|(_, planned)| planned.is_ok()).map(|(saga, _)| saga).collect();
        self.tell(&mut tx, &told).await?;
        self.audit(&mut tx, &told).await?;
        tx.commit().await.map_err(unwritten)?;
        Ok(outcomes(sagas, judged.into_iter().map(|(saga, planned)| (saga.id, planned))))
    }

    async fn judged(
        &self,
        conn: &mut PgConnection,
        sagas: &[SagaId],
    ) -> Result<Vec<(Listed, Result<String, String>)>, Error> {
        if sagas.len() > BATCH_SAGAS_MAX {
            let text = format!("{} sagas are too many for one transaction", sagas.len());
            return Err(
                Error::new(Kind::Conflict, text).mended_by("give them in parts of BATCH_SAGAS_MAX")
            );
        }
        let listed = several(conn, sagas).await?;
        let follow: BTreeSet<Identity> =
            listed.iter().map(|saga| saga.definition.clone()).collect();
        let known = structures(conn, &follow.into_iter().collect::<Vec<_>>()).await?;
        let told = self.told_before(conn, sagas).await?;
        let living = match self.wish {
            Wish::Verb(_) | Wish::Signal { .. } => Living::default(),
            Wish::Migrate { .. } => living(conn).await?,
        };
        let judge = |saga: Listed| {
            let planned = match &saga.instance {
                _ if told.contains(&saga.id) => {
                    Err("it has been told already, and no engine has taken it yet".to_owned())
                }
                None => Err("a newer release has written it".to_owned()),
                Some(instance) => match &self.wish {
                    Wish::Verb(verb) => planned(instance, known.get(&saga.definition), verb),
                    Wish::Signal { signal_type, .. } => {
                        signalled(instance, known.get(&saga.definition), signal_type)
                    }
                    Wish::Migrate { to, mapping } => {
                        moved(instance, known.get(&saga.definition), to, mapping, &living)
                    }
                },
            };
            (saga, planned)
        };
        Ok(listed.into_iter().map(judge).collect())
    }

    /// Sagas that have still to hear the same.
    async fn told_before(
        &self,
        conn: &mut PgConnection,
        sagas: &[SagaId],
    ) -> Result<BTreeSet<SagaId>, Error> {
        let ids: Vec<Uuid> = sagas.iter().map(|saga| *saga.as_uuid()).collect();
        match &self.wish {
            Wish::Verb(_) | Wish::Signal { .. } => {
                let rows: Vec<(Uuid, String)> = sqlx::query_as(
                    "SELECT saga_id, input::text FROM tailrace.saga_input
                     WHERE saga_id = ANY ($1) AND reason = 'told'",
                )
                .bind(ids)
                .fetch_all(conn)
                .await
                .map_err(unread)?;
                let is_same = |input: &str| match (serde_json::from_str(input), &self.wish) {
                    (Ok(Input::Operator { verb: told, .. }), Wish::Verb(verb)) => told == *verb,
                    (Ok(told), _) => self.input().is_some_and(|input| input == told),
                    (Err(_), _) => false,
                };
                let told = rows.into_iter().filter(|(_, input)| is_same(input));
                Ok(told.map(|(saga, _)| SagaId::from_uuid(saga)).collect())
            }
            Wish::Migrate { to, .. } => {
                let rows: Vec<Uuid> = sqlx::query_scalar(
                    "SELECT saga_id FROM tailrace.saga_migration
                     WHERE saga_id = ANY ($1) AND refused IS NULL AND (definition, version, hash) = ($2, $3, $4)",
                )
                .bind(ids)
                .bind(&*to.identity.name)
                .bind(i64::from(to.identity.version))
                .bind(&*to.identity.hash)
                .fetch_all(conn)
                .await
                .map_err(unread)?;
                Ok(rows.into_iter().map(SagaId::from_uuid).collect())
            }
        }
    }

    /// What sagas are told; nothing where they are moved.
    fn input(&self) -> Option<Input> {
        match &self.wish {
            Wish::Verb(verb) => {
                Some(Input::Operator { by: self.by.actor.as_str().into(), verb: verb.clone() })
            }
            Wish::Signal { signal_type, payload } => {
                Some(Input::Signal { signal_type: signal_type.clone(), payload: payload.clone() })
            }
            Wish::Migrate { .. } => None,
        }
    }

    async fn tell(&self, conn: &mut PgConnection, sagas: &[&Listed]) -> Result<(), Error> {
        let ids: Vec<Uuid> = sagas.iter().map(|saga| *saga.id.as_uuid()).collect();
        match &self.wish {
            Wish::Verb(_) | Wish::Signal { .. } => {
                let input = json(&self.input())?;
                sqlx::query(
                    "INSERT INTO tailrace.saga_input (saga_id, input)
                     SELECT id, $2::json FROM unnest($1::uuid[]) AS id ORDER BY id",
                )
                .bind(ids)
                .bind(input)
                .execute(conn)
                .await
            }
            Wish::Migrate { to, mapping } => {
                sqlx::query(
                    "INSERT INTO tailrace.saga_migration (saga_id, definition, version, hash, mapping, actor)
                     SELECT id, $2, $3, $4, $5::json, $6 FROM unnest($1::uuid[]) AS id ORDER BY id
                     ON CONFLICT (saga_id) DO UPDATE SET definition = excluded.definition,
                         version = excluded.version, hash = excluded.hash, mapping = excluded.mapping,
                         actor = excluded.actor, inserted_at = now(), refused = NULL",
                )
                .bind(ids)
                .bind(&*to.identity.name)
                .bind(i64::from(to.identity.version))
                .bind(&*to.identity.hash)
                .bind(json(mapping)?)
                .bind(&self.by.actor)
                .execute(conn)
                .await
            }
        }
        .map(drop)
        .map_err(unwritten)
    }

    async fn audit(&self, conn: &mut PgConnection, sagas: &[&Listed]) -> Result<(), Error> {
        let (action, step) = match &self.wish {
            Wish::Verb(verb) => (verb.as_str().to_owned(), verb.step()),
            Wish::Signal { signal_type, .. } => (format!("signal {signal_type}"), None),
            Wish::Migrate { to, .. } => (format!("migrate to {}", to.identity), None),
        };
        let status = |saga: &&Listed| saga.status.map_or("unknown", |status| status.as_str());
        sqlx::query(
            "INSERT INTO tailrace.saga_audit
                 (batch, actor, note, action, step, query, saga_id, definition, version, status, revision)
             SELECT $1, $2, $3, $4, $5, $6, saga_id, definition, version, status, revision
             FROM unnest($7::uuid[], $8::text[], $9::bigint[], $10::text[], $11::bigint[])
                 AS chosen (saga_id, definition, version, status, revision)
             ORDER BY saga_id",
        )
        .bind(self.batch)
        .bind(&self.by.actor)
        .bind(&self.by.note)
        .bind(action)
        .bind(step)
        .bind(&self.query)
        .bind(sagas.iter().map(|saga| *saga.id.as_uuid()).collect::<Vec<_>>())
        .bind(sagas.iter().map(|saga| saga.definition.name.to_string()).collect::<Vec<_>>())
        .bind(sagas.iter().map(|saga| i64::from(saga.definition.version)).collect::<Vec<_>>())
        .bind(sagas.iter().map(status).collect::<Vec<_>>())
        .bind(sagas.iter().map(|saga| i64::try_from(saga.revision).unwrap_or(i64::MAX)).collect::<Vec<_>>())
        .execute(conn)
        .await
        .map(drop)
        .map_err(|error| Error::database("the change cannot be audited", error))
    }
}

/// In the order in which they were given; of one that was given twice, once.
fn outcomes(
    sagas: &[SagaId],
    judged: impl Iterator<Item = (SagaId, Result<String, String>)>,
) -> Vec<Outcome> {
    let mut judged: BTreeMap<SagaId, Result<String, String>> = judged.collect();
    let of = |saga: &SagaId| Outcome {
        saga: *saga,
        planned: judged.remove(saga).unwrap_or_else(|| Err("there is no such saga".to_owned())),
    };
    let mut seen = BTreeSet::new();
    sagas.iter().filter(|saga| seen.insert(**saga)).map(of).collect()
}

/// What an engine does with this verb, as the saga stands now: the same cases as in the machine, which has the last
/// word.
pub(super) fn planned(
    saga: &Instance,
    structure: Option<&Structure>,
    verb: &Verb,
) -> Result<String, String> {
    if saga.status().is_over() {
        return Err(format!("it is over: {}", saga.status().as_str()));
    }
    match verb {
        Verb::Retry { step: None } => {
            let stuck: Vec<String> = saga.stuck().map(about).collect();
            if stuck.is_empty() {
                return Err("none of its steps waits for a person".to_owned());
            }
            Ok(format!("asks again: {}", stuck.join(", ")))
        }
        Verb::Retry { step: Some(step) } => {
            let state = found(saga, step)?;
            match state.operation() {
                Some(_) => Ok(format!("asks again: {}", about(state))),
                None => Err(format!("step {step} is {}", state.status().as_str())),
            }
        }
        Verb::Skip { step } => {
            let state = found(saga, step)?;
            match state.status() {
                StepStatus::StuckActing => Ok(format!("goes on without {step}")),
                StepStatus::StuckCompensating => Ok(format!("leaves {step} as it is, not undone")),
                other => {
                    let is = other.as_str();
                    Err(format!(
                        "step {step} is {is}, and only one that waits for a person is passed over"
                    ))
                }
            }
        }
        Verb::Compensate => compensated(saga, structure),
        Verb::Unlock { step } => {
            let state = found(saga, step)?;
            let held = state.lock.as_ref().map_or(&[][..], |lock| lock.held());
            if held.is_empty() || state.operation().is_some() {
                return Err(format!("step {step} holds no lock"));
            }
            Ok(format!("goes on without the lock {step} of {}", held.join(", ")))
        }
        Verb::Abort => Ok(format!("ends as it is: {}", left(saga, structure))),
    }
}

/// What stays of a saga that ends now. Locks and waits leave nothing, and what a local step did is there once it is done.
fn left(saga: &Instance, structure: Option<&Structure>) -> String {
    let awaits = |step: &StepState| {
        let of = structure.and_then(|it| it.steps().iter().find(|of| of.name() == step.name()));
        of.is_some_and(|of| of.signal_type().is_some())
    };
    let (mut done, mut asked, mut undoing) = (Vec::new(), Vec::new(), Vec::new());
    for step in saga.steps().iter().filter(|step| step.lock().is_none() && !awaits(step)) {
        match step.status() {
            StepStatus::Done => done.push(step.name()),
            StepStatus::Acting | StepStatus::StuckActing if step.request.is_some() => {
                asked.push(step.name());
            }
            StepStatus::Compensating | StepStatus::StuckCompensating | StepStatus::Waived => {
                undoing.push(step.name());
            }
            _ => {}
        }
    }
    let stays = [(done, "stay done"), (asked, "may be done"), (undoing, "not undone")];
    let stays = stays.iter().filter(|(steps, _)| !steps.is_empty());
    let stays: Vec<String> =
        stays.map(|(steps, how)| format!("{} {how}", steps.join(", "))).collect();
    if stays.is_empty() { "no step is done".to_owned() } else { stays.join("; ") }
}

/// What an engine does with a signal, as the saga stands now: the same cases as in the machine.
fn signalled(
    saga: &Instance,
    structure: Option<&Structure>,
    signal: &str,
) -> Result<String, String> {
    if saga.status().is_over() {
        return Err(format!("it is over: {}", saga.status().as_str()));
    }
    if saga.phase != Phase::Running {
        return Err("it is being undone".to_owned());
    }
    let Some(structure) = structure else {
        return Ok(
            "is given to the step that waits for it: its structure is not stored here".to_owned()
        );
    };
    let takers = structure.steps().iter().filter(|step| step.signal_type() == Some(signal));
    let states: Vec<&StepState> = takers.filter_map(|step| saga.step(step.name())).collect();
    let with = |wanted: &[StepStatus]| {
        states.iter().find(|step| wanted.contains(&step.status())).map(|step| step.name())
    };
    match (with(&[StepStatus::Acting, StepStatus::StuckActing]), with(&[StepStatus::Pending])) {
        _ if states.is_empty() => Err(format!("none of its steps waits for {signal}")),
        (Some(step), _) => Ok(format!("{step} takes {signal}")),
        (None, Some(_)) if saga.signals.len() >= SIGNALS_MAX => {
            Err(format!("it keeps {SIGNALS_MAX} signals already"))
        }
        (None, Some(step)) => Ok(format!("{signal} is kept for {step}")),
        (None, None) => Err(format!("it does not wait for {signal} any more")),
    }
}

fn compensated(saga: &Instance, structure: Option<&Structure>) -> Result<String, String> {
    if saga.phase == Phase::Compensating {
        return Err("it is being undone already".to_owned());
    }
    let Some(structure) = structure else {
        return Ok("is undone, if its pivot was not asked for: its structure is not stored here"
            .to_owned());
    };
    let asked = structure.steps().iter().find(|step| {
        let state = saga.step(step.name()).map(StepState::status);
        step.kind() == StepKind::Pivot && state != Some(StepStatus::Pending)
    });
    match asked {
        Some(pivot) => Err(format!("its pivot {} was asked for: it is too late", pivot.name())),
        None => Ok("is undone".to_owned()),
    }
}

fn found<'s>(saga: &'s Instance, step: &str) -> Result<&'s StepState, String> {
    saga.step(step).ok_or_else(|| format!("it has no step {step}"))
}

fn about(step: &StepState) -> String {
    match step.operation() {
        Some(crate::correlation::Operation::Compensation) => format!("undo {}", step.name()),
        _ => step.name().to_owned(),
    }
}

/// What an engine finds with this mapping, as far as structures tell.
fn moved(
    saga: &Instance,
    from: Option<&Structure>,
    to: &Structure,
    mapping: &MappingFile,
    living: &Living,
) -> Result<String, String> {
    if saga.definition == to.identity {
        return Err(format!("it follows {} already", to.identity));
    }
    let Some(from) = from else {
        return Err(format!("the structure of {} is not stored here", saga.definition));
    };
    let mut faults = migrate::faults(saga, from, to, &mapping.skipped());
    let is_old = saga.data_version < from.data_version;
    if is_old && !living.run_both(&from.identity, &to.identity) {
        faults.push(migrate::needs_upcasters(&from.identity));
    }
    // Edits are for the newest form of the old definition's data.
    if !is_old && let Err(fault) = mapping.apply(saga.data.clone()) {
        faults.push(fault);
    }
    match faults.as_slice() {
        [] if living.run(&to.identity) => Ok(format!("goes on as {}", to.identity)),
        [] => Ok(format!("goes on as {}, once an engine has it", to.identity)),
        faults => Err(faults.join("; ")),
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| {
        Error::new(Kind::Unreadable, "what is wanted does not encode as JSON").caused_by(error)
    })
}
