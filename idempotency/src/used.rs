//! A connection of a pool that somebody is in the middle of something with.

use std::ops::{Deref, DerefMut};

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, Postgres};

/// A connection that is closed where what it is used for is given up. One whose BEGIN was not answered yet would go back
/// to the pool with its transaction open, and whoever is given it next would write into that.
#[derive(Debug)]
pub(crate) struct Used(Option<PoolConnection<Postgres>>);

impl Used {
    pub(crate) fn new(conn: PoolConnection<Postgres>) -> Self {
        Self(Some(conn))
    }

    /// Nothing is under way on it any more: it may go back to its pool.
    pub(crate) fn unused(mut self) -> PoolConnection<Postgres> {
        self.0.take().expect("it is there until its end")
    }
}

impl Deref for Used {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.0.as_ref().expect("it is there until its end")
    }
}

impl DerefMut for Used {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("it is there until its end")
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        if let Some(conn) = &mut self.0 {
            conn.close_on_drop();
        }
    }
}
