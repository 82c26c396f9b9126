//! Sagas from the service's own code: started, told, looked at.

use std::any::TypeId;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;

use super::Core;
use crate::builder::{Saga, Signal};
use crate::correlation::SagaId;
use crate::definition::Definition;
use crate::engine::apply::{Begun, apply};
use crate::error::{Error, Kind};
use crate::instance::Instance;
use crate::known;
use crate::store::{self, Cause, Deferred, Reason};
use crate::transition::{Input, Verb};
use crate::unreadable::write;

/// Starts sagas, and tells them something, in transactions of the service: a clone is the same handle.
#[derive(Debug, Clone)]
pub struct Sagas(Arc<Core>);

/// What a saga begins with.
struct Begins {
    definition: Definition,
    data: Value,
}

/// Whether a saga was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// It begins with this transaction.
    Now,
    /// There is one with this id.
    Before,
}

impl Sagas {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self(core)
    }

    /// Starts a saga in the transaction that is open: its first commands leave with the commit.
    ///
    /// The id is the caller's, as [`SagaId::mint`] makes it, so that the same wish twice is the same saga. It follows the
    /// version that new sagas follow now, which may be an older one than that of `saga` while a deploy is under way.
    ///
    /// # Errors
    /// [`Kind::Definition`] where the engine has no definition of this name, or new sagas follow a version whose data is of
    /// another type: have an engine with both versions running first, and start by the [`Saga`] of either until then.
    /// [`Kind::Unreadable`] for data that is not JSON; otherwise what Postgres says, upon which the transaction has failed.
    pub async fn start<D: Serialize + Sync + 'static>(
        &self,
        conn: &mut PgConnection,
        saga: &Saga<D>,
        id: SagaId,
        data: &D,
    ) -> Result<Started, Error> {
        self.start_caused_by(conn, saga, id, data, Vec::new()).await
    }

    /// As [`start`](Self::start), with what has caused it: attributes of a message, such as `traceparent`, that all
    /// commands of the saga will carry.
    ///
    /// # Errors
    /// As there.
    pub async fn start_caused_by<D: Serialize + Sync + 'static>(
        &self,
        conn: &mut PgConnection,
        saga: &Saga<D>,
        id: SagaId,
        data: &D,
        cause: Vec<(String, String)>,
    ) -> Result<Started, Error> {
        let begins = self.begins(saga, data)?;
        self.begin(conn, id, begins, cause).await
    }

    /// What a saga begins with: all that can be found to be wrong before anything is written.
    fn begins<D: Serialize + 'static>(&self, saga: &Saga<D>, data: &D) -> Result<Begins, Error> {
        let given = saga.definition().identity();
        let Some(definition) = self.0.registry.current(&given.name) else {
            return Err(Error::definition(format!("there is no definition {}", given.name)));
        };
        if definition.0.data != TypeId::of::<D>() {
            let (current, text) = (definition.identity(), "whose data is of another type than");
            return Err(Error::definition(format!("new sagas follow {current}, {text} {given}"))
                .mended_by(
                    "start them by the Saga of that version until every engine has the other",
                ));
        }
        Ok(Begins { definition: definition.clone(), data: write("the data", data)? })
    }

    async fn begin(
        &self,
        conn: &mut PgConnection,
        id: SagaId,
        Begins { definition, data }: Begins,
        cause: Vec<(String, String)>,
    ) -> Result<Started, Error> {
        let cause: Cause = cause.into_iter().collect();
        let core = &*self.0;
        if !store::lock(conn, &[id]).await?.is_empty() {
            return Ok(Started::Before);
        }
        let now = SystemTime::now();
        let instance = Instance::new(&definition, id, data, now);
        let begun = vec![Begun { instance, definition, cause }];
        let applied = apply(core, conn, begun, Vec::new(), now).await.map_err(|error| {
            Error::new(Kind::Database, "the saga cannot be started").caused_by(error)
        })?;
        super::report(&applied);
        core.counters.count(applied.tally);
        Ok(Started::Now)
    }

    /// As [`start_caused_by`](Self::start_caused_by), once for a key of the business, such as an order's number: the same
    /// wish twice is the same saga, also where both come at once. Which one it is, is answered with whether it begins now.
    ///
    /// # Errors
    /// As there; the key is nobody's then, and free for another try in the same transaction. [`Kind::Conflict`] for a key of
    /// more than 1,024 bytes, or with NUL in it.
    pub async fn start_once<D: Serialize + Sync + 'static>(
        &self,
        conn: &mut PgConnection,
        saga: &Saga<D>,
        key: &str,
        data: &D,
        cause: Vec<(String, String)>,
    ) -> Result<(SagaId, Started), Error> {
        let begins = self.begins(saga, data)?;
        let wanted = SagaId::mint();
        let name = &saga.definition().identity().name;
        let id = known::claim(conn, name, key, wanted).await?;
        if id != wanted {
            return Ok((id, Started::Before));
        }
        match self.begin(conn, id, begins, cause).await {
            Ok(started) => Ok((id, started)),
            Err(error) => {
                // Where Postgres has failed, the key goes with the transaction. Where the saga's code has, the caller may
                // commit what else it did, and a key without a saga would be taken for good.
                let given_back = known::give_back(conn, name, key, id).await;
                given_back.unwrap_or_else(|error| {
                    tracing::debug!(%error, "the key of a saga goes with its transaction");
                });
                Err(error)
            }
        }
    }

    /// Gives a saga what it waits for, or will. It is told after the commit.
    ///
    /// # Errors
    /// [`Kind::Unreadable`] or what Postgres says.
    pub async fn signal<S: Signal>(
        &self,
        conn: &mut PgConnection,
        id: SagaId,
        signal: &S,
    ) -> Result<(), Error> {
        let payload = write("the signal", signal)?;
        self.tell(conn, id, Input::Signal { signal_type: S::TYPE.into(), payload }).await
    }

    /// Has a saga undone, unless its pivot was asked for. It is told after the commit.
    ///
    /// # Errors
    /// What Postgres says.
    pub async fn cancel(&self, conn: &mut PgConnection, id: SagaId) -> Result<(), Error> {
        self.tell(conn, id, Input::Cancel).await
    }

    /// Tells a saga what a person wants of it, by name for the journal. It is told after the commit.
    ///
    /// # Errors
    /// What Postgres says.
    pub async fn operate(
        &self,
        conn: &mut PgConnection,
        id: SagaId,
        by: &str,
        verb: Verb,
    ) -> Result<(), Error> {
        self.tell(conn, id, Input::Operator { by: by.into(), verb }).await
    }

    /// A saga as it stands, where there is one.
    ///
    /// # Errors
    /// What Postgres says.
    pub async fn find(
        &self,
        conn: &mut PgConnection,
        id: SagaId,
    ) -> Result<Option<Instance>, Error> {
        store::read(conn, id).await
    }

    /// As [`find`](Self::find), by the key that [`start_once`](Self::start_once) was given.
    ///
    /// # Errors
    /// As there.
    pub async fn find_by_key(
        &self,
        conn: &mut PgConnection,
        saga: &impl AsRef<Definition>,
        key: &str,
    ) -> Result<Option<Instance>, Error> {
        match known::find(conn, &saga.as_ref().identity().name, key).await? {
            Some(id) => self.find(conn, id).await,
            None => Ok(None),
        }
    }

    async fn tell(&self, conn: &mut PgConnection, saga: SagaId, input: Input) -> Result<(), Error> {
        tell(conn, saga, input).await
    }
}

/// Tells a saga something in the transaction that is open, by no more than the orchestrator's database: an engine that
/// can run the saga does the rest after the commit.
///
/// # Errors
/// What Postgres says.
pub async fn tell(conn: &mut PgConnection, saga: SagaId, input: Input) -> Result<(), Error> {
    let reason = Reason::Told;
    let told = Deferred { saga, input, cause: Cause::new(), reason, ticket: None };
    // What was told to a saga by name waits for as long as it takes.
    store::defer(conn, &[told], 0.0).await
}
