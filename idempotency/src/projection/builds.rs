//! The builds of a read model in Postgres: begun, switched to, and dropped, each in one transaction.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, Transaction};

use super::choice::{Build, Choice, State, Wanted, choose};
use crate::error::{Error, Kind};

/// How long a switch waits for the batches of the live build and for those of the new one, each. Meanwhile the read
/// model is not written to; readers notice nothing.
const SWITCH_WAIT: Duration = Duration::from_secs(2);
/// How long a drop waits for readers of what is dropped.
const DROP_WAIT: Duration = Duration::from_millis(200);
/// How often a switch looks whether the new build has passed the live one.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The builds of one read model.
#[derive(Debug, Clone)]
pub(super) struct Builds {
    /// Plain letters, digits and underscores: it stands in statements as it is.
    pub(super) name: String,
    /// What makes the tables of a build.
    pub(super) tables: String,
    pub(super) readers: Vec<String>,
}

/// What came of a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Switched {
    Done,
    /// The build is behind the live one, has parked messages, or a batch runs for long: later.
    NotYet,
    /// It is not being built any more: another process was faster, or a higher version has come.
    Elsewhere,
}

impl Builds {
    /// The name that the consumer of a build has.
    pub(super) fn consumer(&self, build: i32) -> String {
        format!("{}.{build}", self.name)
    }

    /// The statement with which a transaction that writes to a build begins.
    pub(super) fn entering(&self, build: i32) -> String {
        let name = &self.name;
        format!(
            "SELECT set_config('search_path', concat_ws(', ', quote_ident(tailrace.enter_projection('{name}', {build})),
                 nullif(current_setting('search_path'), '')), true)"
        )
    }

    /// The build to work at as things stand; none where one would have to be begun.
    pub(super) async fn look(
        &self,
        conn: &mut PgConnection,
        wanted: &Wanted,
    ) -> Result<Option<Build>, Error> {
        match choose(&self.known(conn).await?, wanted) {
            Choice::Take(build) => Ok(Some(build)),
            Choice::Begin | Choice::Replaced(_) | Choice::Changed => Ok(None),
        }
    }

    /// The build to work at, which is begun where there is none.
    pub(super) async fn choose(
        &self,
        conn: &mut PgConnection,
        wanted: &Wanted,
    ) -> Result<Build, Error> {
        let (name, version) = (&self.name, wanted.version);
        let mut tx = self.begin(conn, SWITCH_WAIT * 3).await?;
        match choose(&self.known(&mut tx).await?, wanted) {
            Choice::Take(build) => Ok(build),
            Choice::Begin => {
                let build = self.make(&mut tx, wanted).await?;
                tx.commit().await.map_err(failed)?;
                tracing::info!(projection = name, build = build.number, version, "a build begins");
                Ok(build)
            }
            Choice::Replaced(by) => Err(Error::new(
                Kind::Conflict,
                format!("version {version} of the read model {name} was replaced by version {by}"),
            )
            .mended_by("deploy the newer version, or go back to this one where it was kept")),
            Choice::Changed => Err(Error::new(
                Kind::Conflict,
                format!("version {version} of the read model {name} has other tables or topics"),
            )
            .mended_by("give the read model a higher version, which is built beside this one")),
        }
    }

    async fn make(&self, conn: &mut PgConnection, wanted: &Wanted) -> Result<Build, Error> {
        let name = &self.name;
        let taken: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)
                AND NOT EXISTS (SELECT FROM tailrace.projection_build WHERE projection = $1 AND state = 'live')",
        )
        .bind(name)
        .fetch_one(&mut *conn)
        .await
        .map_err(failed)?;
        if taken {
            let text = format!("the schema {name} exists, and no read model has made it");
            return Err(Error::new(Kind::Conflict, text)
                .mended_by("the read model's tables go there: give it another name"));
        }
        let number: i32 = sqlx::query_scalar(
            "WITH given_up AS (
                 UPDATE tailrace.projection_build SET state = 'leaving' WHERE projection = $1 AND state = 'building')
             SELECT coalesce(max(build), 0) + 1 FROM tailrace.projection_build WHERE projection = $1",
        )
        .bind(name)
        .fetch_one(&mut *conn)
        .await
        .map_err(failed)?;
        sqlx::query(
            "INSERT INTO tailrace.projection_build (projection, build, version, state, definition)
             VALUES ($1, $2, $3, 'building', $4)",
        )
        .bind(name)
        .bind(number)
        .bind(wanted.version)
        .bind(&wanted.definition)
        .execute(&mut *conn)
        .await
        .map_err(failed)?;
        let schema = format!("{name}_build{number}");
        let prepare = format!("CREATE SCHEMA \"{schema}\"; {}", self.entering(number));
        run(conn, &prepare).await.map_err(|error| {
            failed(error)
                .mended_by("the role needs CREATE on its database, for the schema of a build")
        })?;
        run(conn, &self.tables).await.map_err(|error| {
            Error::database("the statements that make the read model's tables fail", error)
        })?;
        for role in &self.readers {
            let role = role.replace('"', "\"\"");
            let grants = format!(
                "GRANT USAGE ON SCHEMA \"{schema}\" TO \"{role}\";
                 GRANT SELECT ON ALL TABLES IN SCHEMA \"{schema}\" TO \"{role}\""
            );
            run(conn, &grants).await.map_err(failed)?;
        }
        let definition = wanted.definition.clone();
        Ok(Build { number, version: wanted.version, state: State::Building, definition })
    }

    /// Gives readers a build in the place of the live one, in one transaction.
    ///
    /// The live build's batches are held up first and the new one's go on until they have passed it: no reader sees an
    /// older state than before. Then both stand still while the schemas change their names, which takes no lock on a
    /// table: no reader waits, and whatever reader is under way stays with what it has.
    pub(super) async fn switch(
        &self,
        conn: &mut PgConnection,
        build: i32,
        topics: &[String],
        keep: bool,
    ) -> Result<Switched, Error> {
        let mut tx = self.begin(conn, SWITCH_WAIT).await?;
        let known = self.known(&mut tx).await?;
        let ours = known.iter().find(|known| known.number == build);
        if ours.is_none_or(|ours| ours.state != State::Building) {
            return Ok(Switched::Elsewhere);
        }
        let live = known.iter().find(|known| known.state == State::Live);
        if let Some(live) = live
            && !self.passes(&mut tx, live.number, build, topics).await?
        {
            return Ok(Switched::NotYet);
        }
        if !self.hold(&mut tx, build).await? || self.parked(&mut tx, build).await? > 0 {
            return Ok(Switched::NotYet);
        }
        self.rename(&mut tx, live.map(|live| live.number), build, keep).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Switched::Done)
    }

    /// Goes back to the newest build that was kept; answers with its version.
    pub(super) async fn back(&self, conn: &mut PgConnection) -> Result<i32, Error> {
        let mut tx = self.begin(conn, SWITCH_WAIT).await?;
        let known = self.known(&mut tx).await?;
        let of = |state| known.iter().rev().find(|build| build.state == state);
        let (Some(live), Some(former)) = (of(State::Live), of(State::Former)) else {
            let text = format!("no former build of the read model {} was kept", self.name);
            return Err(Error::new(Kind::Conflict, text)
                .mended_by("say Projection::keep_former, or build the former version anew"));
        };
        for build in [live, former] {
            if !self.hold(&mut tx, build.number).await? {
                let text = format!("build {} is being written to for long", build.number);
                return Err(Error::new(Kind::Conflict, text).mended_by("try again"));
            }
        }
        self.rename(&mut tx, Some(live.number), former.number, true).await?;
        tx.commit().await.map_err(failed)?;
        Ok(former.version)
    }

    /// Holds up the live build's batches and waits until the other has passed it.
    async fn passes(
        &self,
        conn: &mut PgConnection,
        live: i32,
        build: i32,
        topics: &[String],
    ) -> Result<bool, Error> {
        // Far behind, it would only hold up for nothing.
        if self.behind(conn, live, build, topics).await? > BEHIND_MAX
            || !self.hold(conn, live).await?
        {
            return Ok(false);
        }
        let passed = async {
            while self.behind(conn, live, build, topics).await? > 0 {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Ok(true)
        };
        tokio::time::timeout(SWITCH_WAIT, passed).await.unwrap_or(Ok(false))
    }

    /// How many offsets a build is behind the live one, in the topics that it reads.
    async fn behind(
        &self,
        conn: &mut PgConnection,
        live: i32,
        build: i32,
        topics: &[String],
    ) -> Result<i64, Error> {
        sqlx::query_scalar(
            "SELECT coalesce(sum(greatest(live.reached - coalesce(new.reached, 0), 0)), 0)::bigint
             FROM (SELECT topic, partition, max(next_offset) AS reached FROM tailrace.consumer_progress
                   WHERE consumer = $1 AND topic = ANY ($3) GROUP BY topic, partition) AS live
             LEFT JOIN (SELECT topic, partition, min(coalesce(next_offset, 0)) AS reached
                        FROM tailrace.consumer_progress
                        WHERE consumer = $2 GROUP BY topic, partition) AS new USING (topic, partition)",
        )
        .bind(self.consumer(live))
        .bind(self.consumer(build))
        .bind(topics)
        .fetch_one(conn)
        .await
        .map_err(failed)
    }

    /// What a build is by now; none where it has gone.
    pub(super) async fn state(
        &self,
        conn: &mut PgConnection,
        build: i32,
    ) -> Result<Option<State>, Error> {
        let known = self.known(conn).await?;
        Ok(known.iter().find(|known| known.number == build).map(|known| known.state))
    }

    pub(super) async fn parked(&self, conn: &mut PgConnection, build: i32) -> Result<i64, Error> {
        sqlx::query_scalar("SELECT count(*) FROM tailrace.parked_message WHERE consumer = $1")
            .bind(self.consumer(build))
            .fetch_one(conn)
            .await
            .map_err(failed)
    }

    async fn rename(
        &self,
        conn: &mut PgConnection,
        from: Option<i32>,
        to: i32,
        keep: bool,
    ) -> Result<(), Error> {
        let name = &self.name;
        if let Some(from) = from {
            let away = format!("ALTER SCHEMA \"{name}\" RENAME TO \"{name}_build{from}\"");
            run(conn, &away).await.map_err(failed)?;
        }
        let here = format!("ALTER SCHEMA \"{name}_build{to}\" RENAME TO \"{name}\"");
        run(conn, &here).await.map_err(failed)?;
        // One is kept at most.
        sqlx::query(
            "UPDATE tailrace.projection_build
             SET state = CASE WHEN $3 AND state = 'live' THEN 'former' ELSE 'leaving' END
             WHERE projection = $1 AND state IN ('live', 'former') AND build <> $2",
        )
        .bind(name)
        .bind(to)
        .bind(keep)
        .execute(&mut *conn)
        .await
        .map_err(failed)?;
        sqlx::query(
            "UPDATE tailrace.projection_build SET state = 'live', switched_at = now()
             WHERE projection = $1 AND build = $2",
        )
        .bind(name)
        .bind(to)
        .execute(conn)
        .await
        .map_err(failed)?;
        Ok(())
    }

    /// Drops what is to leave. Whatever still reads it is let finish: what can not be dropped now is left for later.
    pub(super) async fn sweep(&self, conn: &mut PgConnection) -> Result<(), Error> {
        for build in self.known(conn).await? {
            if build.state == State::Leaving {
                self.drop_one(conn, build.number).await?;
            }
        }
        Ok(())
    }

    async fn drop_one(&self, conn: &mut PgConnection, build: i32) -> Result<(), Error> {
        let mut tx = self.begin(conn, DROP_WAIT).await?;
        let known = self.known(&mut tx).await?;
        let leaves = known.iter().any(|b| b.number == build && b.state == State::Leaving);
        if !leaves || !self.hold(&mut tx, build).await? {
            return Ok(());
        }
        let schema = format!("{}_build{build}", self.name);
        let leaning: Option<String> =
            sqlx::query_scalar(LEANING).bind(&schema).fetch_one(&mut *tx).await.map_err(failed)?;
        if let Some(leaning) = leaning {
            let text = format!("{leaning} uses tables of {schema}, which is to be dropped");
            return Err(Error::new(Kind::Conflict, text).mended_by(
                "views and foreign keys stay with the build that they were made on: make them in the read model's \
                 own statements",
            ));
        }
        let dropped = format!("DROP SCHEMA \"{schema}\" CASCADE");
        match run(&mut tx, &dropped).await {
            Err(error) if is_busy(&error) => return Ok(()),
            result => result.map_err(failed)?,
        }
        for forget in [
            "DELETE FROM tailrace.parked_message WHERE consumer = $1",
            "DELETE FROM tailrace.consumer_progress WHERE consumer = $1",
        ] {
            let consumer = self.consumer(build);
            sqlx::query(forget).bind(consumer).execute(&mut *tx).await.map_err(failed)?;
        }
        sqlx::query(
            "UPDATE tailrace.projection_build SET state = 'dropped' WHERE projection = $1 AND build = $2",
        )
        .bind(&self.name)
        .bind(build)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        tracing::info!(projection = %self.name, build, "a build was dropped");
        Ok(())
    }

    /// A transaction in which nobody else changes the builds.
    async fn begin<'c>(
        &self,
        conn: &'c mut PgConnection,
        wait: Duration,
    ) -> Result<Transaction<'c, Postgres>, Error> {
        let mut tx =
            conn.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await.map_err(failed)?;
        let wait = format!("SET LOCAL lock_timeout = {}", wait.as_millis());
        run(&mut tx, &wait).await.map_err(failed)?;
        lock(&mut tx, &self.name, 0).await.map_err(failed)?;
        Ok(tx)
    }

    /// Holds up whoever writes to a build, until the end of the transaction; false where a batch runs for longer than
    /// that is waited for, and the transaction is lost.
    async fn hold(&self, conn: &mut PgConnection, build: i32) -> Result<bool, Error> {
        match lock(conn, &self.name, build).await {
            Ok(()) => Ok(true),
            Err(error) if is_busy(&error) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// The builds that have not gone, in their order.
    async fn known(&self, conn: &mut PgConnection) -> Result<Vec<Build>, Error> {
        let rows: Vec<(i32, i32, String, Vec<u8>)> = sqlx::query_as(
            "SELECT build, version, state, definition FROM tailrace.projection_build
             WHERE projection = $1 AND state <> 'dropped' ORDER BY build",
        )
        .bind(&self.name)
        .fetch_all(conn)
        .await
        .map_err(failed)?;
        let build = |(number, version, state, definition): (i32, i32, String, Vec<u8>)| {
            let state = match state.as_str() {
                "building" => State::Building,
                "live" => State::Live,
                "former" => State::Former,
                _ => State::Leaving,
            };
            Build { number, version, state, definition }
        };
        Ok(rows.into_iter().map(build).collect())
    }
}

/// A build that is further behind is not worth holding the live one up for. Both follow their topics in batches, so a
/// busy one is seldom level.
const BEHIND_MAX: i64 = 50_000;

/// A view or a table outside of a schema that needs something inside of it.
const LEANING: &str = "SELECT min(leaning.oid::regclass::text)
     FROM pg_catalog.pg_class AS inside
     JOIN pg_catalog.pg_namespace AS schema ON schema.oid = inside.relnamespace AND schema.nspname = $1
     JOIN pg_catalog.pg_depend AS needs
       ON needs.refclassid = 'pg_class'::regclass AND needs.refobjid = inside.oid
     LEFT JOIN pg_catalog.pg_rewrite AS rule
       ON needs.classid = 'pg_rewrite'::regclass AND rule.oid = needs.objid
     LEFT JOIN pg_catalog.pg_constraint AS foreign_key
       ON needs.classid = 'pg_constraint'::regclass AND foreign_key.oid = needs.objid
     JOIN pg_catalog.pg_class AS leaning
       ON leaning.oid = coalesce(rule.ev_class, foreign_key.conrelid)
     WHERE leaning.relnamespace <> inside.relnamespace";

async fn lock(conn: &mut PgConnection, name: &str, build: i32) -> Result<(), sqlx::Error> {
    sqlx::query(
        "SELECT pg_advisory_xact_lock(hashtextextended('tailrace.projection ' || $1, $2::int))",
    )
    .bind(name)
    .bind(build)
    .execute(conn)
    .await
    .map(drop)
}

async fn run(conn: &mut PgConnection, statements: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(conn).await.map(drop)
}

/// Somebody held a lock for longer than was waited.
fn is_busy(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|fault| fault.code().as_deref() == Some("55P03"))
}

fn failed(error: sqlx::Error) -> Error {
    Error::database("the builds of a read model cannot be changed", error)
}
