//! A saga that the machine has been through, from whose rows those of many others are made.

use std::error::Error;
use std::time::{SystemTime, UNIX_EPOCH};

use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::PgConnection;
use tailrace_outbox::{Message, frame, header};
use tailrace_saga::{
    Answer, Correlation, Definition, Epoch, Input, Instance, Operation, SagaId, Transition, step,
};
use uuid::Uuid;

use super::shop::{Order, order_saga};

type Failure = Box<dyn Error + Send + Sync>;

/// Where the id of a message stands in its frame.
const MESSAGE_ID_AT: usize = 4;

/// Sagas of one statement that fills the tables.
const AT_ONCE: usize = 10_000;

/// The saga, as it stands after its start and after each reply.
pub(crate) struct Template {
    pub(crate) definition: Definition,
    /// After its start, and after each reply.
    pub(crate) stages: Vec<Stage>,
    id: SagaId,
}

/// What one input has left.
pub(crate) struct Stage {
    pub(crate) status: &'static str,
    pub(crate) revision: i64,
    pub(crate) instance: Pattern,
    pub(crate) entries: Pattern,
    /// When it is due, in microseconds, and what about.
    pub(crate) timer: Option<(i64, String)>,
    pub(crate) frame: Option<Pattern>,
    /// The step that is asked for now, and its reply.
    pub(crate) asks: Option<(Box<str>, Value)>,
}

/// Bytes in which the id of a saga stands at these places.
pub(crate) struct Pattern {
    bytes: Vec<u8>,
    places: Vec<usize>,
}

impl Pattern {
    fn new(bytes: Vec<u8>, id: &str) -> Self {
        let places = bytes
            .windows(id.len())
            .enumerate()
            .filter(|(_, part)| *part == id.as_bytes())
            .map(|(at, _)| at)
            .collect();
        Self { bytes, places }
    }

    fn json(value: &impl Serialize, id: &str) -> Result<Self, Failure> {
        Ok(Self::new(serde_json::to_vec(value)?, id))
    }

    /// The same bytes of another saga.
    pub(crate) fn of(&self, id: &str) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        for place in &self.places {
            if let Some(part) = bytes.get_mut(*place..place + id.len()) {
                part.copy_from_slice(id.as_bytes());
            }
        }
        bytes
    }

    /// The same text of another saga.
    pub(crate) fn text(&self, id: &str) -> Result<String, Failure> {
        Ok(String::from_utf8(self.of(id))?)
    }

    /// The same frame of another saga, as a message of its own.
    pub(crate) fn message(&self, id: &str) -> Vec<u8> {
        let mut bytes = self.of(id);
        let place = MESSAGE_ID_AT..MESSAGE_ID_AT + 16;
        if let Some(part) = bytes.get_mut(place) {
            part.copy_from_slice(Uuid::now_v7().as_bytes());
        }
        bytes
    }
}

impl Template {
    pub(crate) fn new() -> Result<Self, Failure> {
        let definition = order_saga()?.definition().clone();
        let id = SagaId::from_uuid(Uuid::now_v7());
        let now = SystemTime::now();
        let data = serde_json::to_value(Order::new(1))?;
        let mut instance = Instance::new(&definition, id, data, now);
        let mut stages = Vec::new();
        let mut input = Some(Input::Start);
        while let Some(given) = input.take() {
            let turn = step(&definition, &instance, given, now)?;
            instance = turn.instance.clone();
            let stage = Stage::of(&turn)?;
            input = stage.asks.as_ref().map(|(step, payload)| Input::Reply {
                correlation: correlation(&definition, id, step),
                answer: Answer::Done,
                payload: payload.clone(),
            });
            stages.push(stage);
        }
        Ok(Self { definition, stages, id })
    }

    /// What a participant says to this saga in its reply.
    pub(crate) fn reply(&self, saga: SagaId, step: &str) -> Vec<(&'static str, String)> {
        correlation(&self.definition, saga, step).reply_attributes(Answer::Done)
    }

    /// Fills the store with sagas that stand as this one does behind this stage, with all that they have left on their
    /// way there. Timers are those that are not stale yet.
    pub(crate) async fn fill(
        &self,
        conn: &mut PgConnection,
        ids: &[Uuid],
        stage: usize,
        bar: &ProgressBar,
    ) -> Result<(), Failure> {
        let behind: Vec<&Stage> = self.stages.iter().take(stage + 1).collect();
        let last = behind.last().ok_or("there is no such stage")?;
        let (id, identity) = (self.id.to_string(), self.definition.identity());
        let (instance, mut entries) = (last.instance.text(&id)?, Vec::new());
        for stage in &behind {
            entries.push(stage.entries.text(&id)?);
        }
        for ids in ids.chunks(AT_ONCE) {
            sqlx::query(
                "insert into tailrace.saga_instance (id, definition, version, hash, status, revision, instance) \
                 select id, $2, $3, $4, $5, $6, replace($7, $8, id::text)::json from unnest($1::uuid[]) as id",
            )
            .bind(ids)
            .bind(&*identity.name)
            .bind(i64::from(identity.version))
            .bind(&*identity.hash)
            .bind(last.status)
            .bind(last.revision)
            .bind(&instance)
            .bind(&id)
            .execute(&mut *conn)
            .await?;
            sqlx::query(
                "insert into tailrace.saga_journal (saga_id, revision, entries) \
                 select id, revision, replace(entries, $3, id::text)::json \
                 from unnest($2::text[]) with ordinality as given (entries, revision), unnest($1::uuid[]) as id",
            )
            .bind(ids)
            .bind(&entries)
            .bind(&id)
            .execute(&mut *conn)
            .await?;
            if let Some((due, tick)) = &last.timer {
                sqlx::query(
                    "insert into tailrace.saga_timer (due_at, saga_id, tick) \
                     select to_timestamp($2 / 1000000.0), id, $3::json from unnest($1::uuid[]) as id",
                )
                .bind(ids)
                .bind(due)
                .bind(tick)
                .execute(&mut *conn)
                .await?;
            }
            bar.inc(u64::try_from(ids.len())?);
        }
        Ok(())
    }
}

fn correlation(definition: &Definition, saga: SagaId, step: &str) -> Correlation {
    Correlation {
        saga,
        definition: definition.identity().to_string().into(),
        step: step.into(),
        operation: Operation::Action,
        epoch: Epoch::FIRST,
    }
}

impl Stage {
    fn of(turn: &Transition) -> Result<Self, Failure> {
        let instance = &turn.instance;
        let id = instance.id().to_string();
        let timer = turn.timers.first().map(|timer| {
            let due = timer.due.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
            Ok::<_, Failure>((i64::try_from(due)?, serde_json::to_string(&timer.tick)?))
        });
        let (mut frame, mut asks) = (None, None);
        if let Some(command) = turn.commands.first() {
            let step = &command.instruction.correlation.step;
            let reply = if **step == *"reserve-credit" { json!(1_999) } else { Value::Null };
            asks = Some((step.clone(), reply));
            let cause = Uuid::now_v7().to_string();
            let message = Message::builder(&*command.request.topic, &*command.request.message_type)
                .source("/sagas")
                .key(command.request.key.as_str())
                .json(&command.request.payload)
                .of_saga(command.instruction.attributes())
                .caused_by([
                    (header::CORRELATION_ID.to_owned(), cause.clone()),
                    (header::CAUSATION_ID.to_owned(), cause),
                ])
                .build()?;
            frame = Some(Pattern::new(frame::encode(&message), &id));
        }
        Ok(Self {
            status: instance.status().as_str(),
            revision: i64::try_from(instance.revision())?,
            instance: Pattern::json(instance, &id)?,
            entries: Pattern::json(&turn.journal, &id)?,
            timer: timer.transpose()?,
            frame,
            asks,
        })
    }
}
