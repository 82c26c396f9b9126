//! What runs beside the handlers of a consumer: looks at the start, and chores.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::error::{BoxError, Error, Kind};
use crate::handler::BoxFuture;

/// How long chores have to come to their end, once the consumer has ended.
const END_MAX: Duration = Duration::from_secs(5);

/// Resolves when the consumer has ended: see [`Consumer::beside`](crate::Consumer::beside).
#[derive(Debug, Clone)]
pub struct Ending(watch::Receiver<bool>);

impl Ending {
    /// Waits until the consumer has ended; at once where it has.
    pub async fn wait(&mut self) {
        // An error means that nobody is left who could tell.
        self.0.wait_for(|ends| *ends).await.map(drop).unwrap_or_default();
    }
}

type Look = dyn Fn(PgPool) -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync;
type Chore = dyn Fn(PgPool, Ending) -> BoxFuture<'static, ()> + Send + Sync;

/// All that belongs to a consumer and is no handler of it.
#[derive(Clone, Default)]
pub(crate) struct Company {
    looks: Vec<Arc<Look>>,
    chores: Vec<Arc<Chore>>,
}

impl Company {
    pub(crate) fn look<F>(&mut self, look: impl Fn(PgPool) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.looks.push(Arc::new(move |pool| Box::pin(look(pool))));
    }

    pub(crate) fn chore<F>(&mut self, chore: impl Fn(PgPool, Ending) -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.chores.push(Arc::new(move |pool, ending| Box::pin(chore(pool, ending))));
    }

    /// Looks whether the consumer may begin.
    pub(crate) async fn may_begin(&self, pool: &PgPool) -> Result<(), Error> {
        for look in &self.looks {
            look(pool.clone()).await.map_err(|error| match error.downcast::<Error>() {
                Ok(own) => *own,
                Err(other) => {
                    Error::new(Kind::Config, "the consumer may not begin").caused_by(other)
                }
            })?;
        }
        Ok(())
    }

    /// Begins the chores. They end at the latest when what is answered is dropped.
    pub(crate) fn begin(&self, pool: &PgPool) -> Working {
        let (end, ends) = watch::channel(false);
        let mut chores = JoinSet::new();
        for chore in &self.chores {
            chores.spawn(chore(pool.clone(), Ending(ends.clone())));
        }
        Working { chores, end }
    }
}

/// Chores that are being done.
pub(crate) struct Working {
    chores: JoinSet<()>,
    end: watch::Sender<bool>,
}

impl Working {
    /// Resolves once a chore has broken off: nobody would notice that it is not done.
    pub(crate) async fn broken(&mut self) {
        while let Some(ended) = self.chores.join_next().await {
            if ended.is_err() {
                return;
            }
        }
        std::future::pending().await
    }

    /// Has them come to their end, which is not waited for longer than it is worth.
    pub(crate) async fn end(mut self) {
        // Where there is no chore, nobody is to be told.
        self.end.send(true).unwrap_or_default();
        let ended = async { while self.chores.join_next().await.is_some() {} };
        if tokio::time::timeout(END_MAX, ended).await.is_err() {
            tracing::warn!("what runs beside the consumer takes too long to end: it is left");
        }
    }
}
