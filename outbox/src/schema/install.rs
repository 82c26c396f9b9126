//! Installing the SQL side and looking whether it is there, through sqlx.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{MIGRATIONS, Schema};
use crate::journal::Journal;
use crate::{Error, Kind};

const MEND: &str = "run tailrace_outbox::schema::install or the files of its folder migrations";

/// Tables and functions that the newest migration leaves there.
const MADE: [&str; 6] =
    ["outbox", "outbox_default", "emit", "emit_bytes", "frame_pairs", "check_attribute_text"];

/// Applies the missing migrations to the schema `tailrace` and makes the journal's next partitions.
///
/// It may be called at every start and by many processes at once: they wait for each other. On a
/// connection with an open transaction it becomes part of that transaction. For another schema
/// there is [`Schema::install`].
///
/// # Errors
///
/// What Postgres answers; nothing is installed then.
pub async fn install(connection: &mut PgConnection) -> Result<(), Error> {
    Schema::default().install(connection).await
}

/// Fails unless the functions and tables are there and not older than this version of the crate
/// needs.
///
/// A newer schema passes: it still serves the release before it. For another schema there is
/// [`Schema::check`].
///
/// # Errors
///
/// [`Kind::Setup`] when they are missing or old; the text says how to mend it.
pub async fn check(connection: &mut PgConnection) -> Result<(), Error> {
    Schema::default().check(connection).await
}

impl Schema {
    /// As [`install`](fn@install), into this schema.
    ///
    /// # Errors
    ///
    /// What Postgres answers, or [`Kind::Setup`] where a table or function was dropped by hand that
    /// an earlier call had made: no migration makes it again, because what it held would be thought
    /// of as empty. Nothing is installed then.
    pub async fn install(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let failed = |error| Error::database("the schema can not be installed", error);
        let mut tx = connection.begin().await.map_err(failed)?;
        sqlx::query("SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended($1, 0))")
            .bind(self.object("outbox_version"))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        let installed = self.installed(&mut tx).await?.unwrap_or(0);
        for migration in MIGRATIONS.iter().filter(|migration| migration.version > installed) {
            sqlx::raw_sql(AssertSqlSafe(self.render(migration)))
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        if installed == 0 {
            Journal::new(self).make_first_partitions(&mut tx).await?;
        }
        self.must_be_whole(&mut tx).await?;
        tx.commit().await.map_err(failed)
    }

    /// As [`check`], of this schema.
    ///
    /// # Errors
    ///
    /// [`Kind::Setup`] when functions and tables are missing or old.
    pub async fn check(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let needed = MIGRATIONS.last().map_or(0, |migration| migration.version);
        let setup = |text: String| Err(Error::new(Kind::Setup, text).mended_by(MEND));
        match self.installed(connection).await? {
            None => setup(format!("schema {:?} has no functions of tailrace-outbox", self.name())),
            Some(version) if version < needed => setup(format!(
                "the functions of tailrace-outbox in schema {:?} have version {version}, and \
                 {needed} is needed",
                self.name()
            )),
            Some(_) => self.must_be_whole(connection).await,
        }
    }

    /// Fails if something is gone that the migrations made: the version alone would not know.
    async fn must_be_whole(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let gone: Vec<String> = sqlx::query_scalar(
            "SELECT wanted.name FROM unnest($2::text[]) AS wanted (name) WHERE NOT EXISTS ( \
                 SELECT FROM pg_catalog.pg_class c \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname = $1 AND c.relname = wanted.name) \
             AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc p \
                 JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
                 WHERE n.nspname = $1 AND p.proname = wanted.name)",
        )
        .bind(self.name())
        .bind(&MADE[..])
        .fetch_all(&mut *connection)
        .await
        .map_err(|error| Error::database("the schema can not be looked at", error))?;
        if gone.is_empty() {
            return self.must_have_its_name(connection).await;
        }
        let text = format!(
            "schema {:?} has the version of tailrace-outbox, but not {}: dropped or renamed by hand",
            self.name(),
            gone.join(", ")
        );
        Err(Error::new(Kind::Setup, text).mended_by(
            "make it again by its statements from the migration, or drop what is left, \
             outbox_version too, and install anew",
        ))
    }

    /// Fails if the schema had another name when it was installed: its functions call each other by
    /// the name they were made with.
    async fn must_have_its_name(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let calls: bool = sqlx::query_scalar(
            "SELECT coalesce(bool_and(strpos(p.prosrc, $2) > 0 OR strpos(p.prosrc, $3) > 0), false) \
             FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
             WHERE n.nspname = $1 AND p.proname = 'emit_bytes'",
        )
        .bind(self.name())
        .bind(format!(" {}.frame_pairs(", self.name()))
        .bind(format!(" \"{}\".frame_pairs(", self.name()))
        .fetch_one(connection)
        .await
        .map_err(|error| Error::database("the schema can not be looked at", error))?;
        if calls {
            return Ok(());
        }
        let text = format!(
            "schema {:?} had another name when it was installed, and its functions call each other \
             by that",
            self.name()
        );
        Err(Error::new(Kind::Setup, text).mended_by(
            "give it back its name, or make the functions again by what Schema::render gives",
        ))
    }

    /// An object in this schema, as SQL names it.
    pub(crate) fn object(&self, name: &str) -> String {
        format!("\"{}\".{name}", self.name())
    }

    /// Whether a table is there now, committed or our own; it asks for no right on the schema.
    ///
    /// Not by `to_regclass`: a session remembers the names that it did not find, and inside a
    /// transaction it may go on to, after the one that had the lock before it has made the table.
    /// The test `an_installer_that_looked_before_another_was_done_finds_its_work` watches it.
    pub(crate) async fn has_table(
        &self,
        name: &str,
        connection: &mut PgConnection,
    ) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relname = $2)",
        )
        .bind(self.name())
        .bind(name)
        .fetch_one(connection)
        .await
    }

    async fn installed(&self, connection: &mut PgConnection) -> Result<Option<i32>, Error> {
        let failed = |error| {
            let error = Error::database("the schema's version can not be read", error);
            let mend = format!(
                "run GRANT USAGE ON SCHEMA \"{0}\" and GRANT SELECT ON \"{0}\".outbox_version to \
                 this role, as their owner",
                self.name()
            );
            if error.is_about_what_is_missing() { error.of_setup(mend) } else { error }
        };
        if !self.has_table("outbox_version", connection).await.map_err(failed)? {
            return Ok(None);
        }
        let table = self.object("outbox_version");
        sqlx::query_scalar(AssertSqlSafe(format!("SELECT max(version) FROM {table}")))
            .fetch_one(connection)
            .await
            .map_err(failed)
    }
}
