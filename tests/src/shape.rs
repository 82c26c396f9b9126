//! The shapes that a source transaction can have, as scripts, and who writes them.
//!
//! What was committed is in the table `expected` (see [`crate::writers`]), which each message
//! writes in its own transaction: whatever a script rolls back is gone from there too.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tailrace_stack::unique;

use crate::site::Site;

/// The table of [`Store::Table`], for the relay.
pub const MAPPING: &str = "public.shaped=topic=${topic}, id:id:uuid, key:key:text, type:type:text, \
     subject:subject:text, headers:headers:jsonb, payload:payload:text, source=/writers";

/// Keys of each connection.
const KEYS: usize = 3;
/// Payload of a small message, and of one of a bulk.
const SMALL_BYTES: i32 = 20;
const BULK_BYTES: i32 = 400;

/// Where the messages of a script are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Into the log.
    Log,
    /// Into the journal.
    Journal,
    /// Into a table of the service, by a mapping.
    Table,
}

impl Store {
    /// All of them.
    pub const ALL: [Store; 3] = [Store::Log, Store::Journal, Store::Table];
    /// Those whose messages are rows.
    pub const OF_ROWS: [Store; 2] = [Store::Journal, Store::Table];

    fn name(self) -> &'static str {
        match self {
            Store::Log => "log",
            Store::Journal => "journal",
            Store::Table => "table",
        }
    }

    /// The table whose rows are the messages, or one beside them where there is none.
    fn table(self) -> &'static str {
        match self {
            Store::Log => "noise",
            Store::Journal => "tailrace.outbox",
            Store::Table => "shaped",
        }
    }
}

/// What a script does next.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// SQL, in which `TABLE` stands for the store's table and `NAME` for a name of its own.
    Sql(&'static str),
    /// So many messages in one statement.
    Say(i32),
    /// So many messages that are larger, for the scale to say.
    Bulk,
    /// So many messages by one COPY.
    CopyIn(i32),
    /// So many messages, each in a subtransaction, every third of which is rolled back.
    Parts(i32),
    /// Meanwhile, on another connection.
    Beside(&'static [Step]),
}

/// A shape of a source transaction, and of those around it.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// What it is called in a report.
    pub name: &'static str,
    /// What makes it.
    pub steps: &'static [Step],
}

impl Shape {
    /// Whether it has transactions that the server sends before they commit, where it may.
    pub fn is_large(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Bulk))
    }
}

use Step::{Beside, Bulk, CopyIn, Parts, Say, Sql};

/// Every shape.
pub const SHAPES: &[Shape] = &[
    Shape { name: "one row", steps: &[Say(1)] },
    Shape { name: "many rows", steps: &[Say(40)] },
    Shape { name: "copy", steps: &[Sql("begin"), CopyIn(40), Sql("commit")] },
    Shape {
        name: "several messages",
        steps: &[
            Sql("begin"),
            Say(1),
            Sql(NOISE),
            Say(1),
            Say(2),
            Sql(NOISE),
            Say(1),
            Sql("commit"),
        ],
    },
    Shape { name: "rolled back", steps: &[Sql("begin"), Say(3), Sql("rollback"), Say(1)] },
    Shape {
        name: "savepoints",
        steps: &[
            Sql("begin"),
            Say(1),
            Sql("savepoint lost"),
            Say(2),
            Sql("rollback to lost"),
            Say(1),
            Sql("savepoint kept"),
            Say(1),
            Sql("savepoint lost_in_kept"),
            Say(2),
            Sql("rollback to lost_in_kept"),
            Say(1),
            Sql("release kept"),
            Sql("savepoint lost_with_kept"),
            Sql("savepoint kept_in_lost"),
            Say(2),
            Sql("release kept_in_lost"),
            Sql("rollback to lost_with_kept"),
            Say(1),
            Sql("commit"),
        ],
    },
    // More subtransactions than a snapshot of the server has room for.
    Shape { name: "many savepoints", steps: &[Parts(100)] },
    Shape { name: "giant", steps: &[Sql("begin"), Bulk, Say(1), Bulk, Sql("commit")] },
    Shape {
        name: "giant with savepoints",
        steps: &[
            Sql("begin"),
            Bulk,
            Sql("savepoint lost"),
            Bulk,
            Sql("rollback to lost"),
            Say(1),
            Sql("savepoint kept"),
            Bulk,
            Sql("release kept"),
            Say(1),
            Sql("commit"),
        ],
    },
    Shape {
        name: "giant with ddl",
        steps: &[
            Sql("begin"),
            Bulk,
            Sql("alter table TABLE add column later integer default 7"),
            Bulk,
            Sql("alter table TABLE drop column later"),
            Say(1),
            Sql("commit"),
        ],
    },
    Shape {
        name: "giant, prepared",
        steps: &[
            Sql("begin"),
            Bulk,
            Sql("savepoint lost"),
            Bulk,
            Sql("rollback to lost"),
            Say(1),
            Sql("prepare transaction 'NAME'"),
            Beside(&[Say(1), Sql("commit prepared 'NAME'")]),
            Say(1),
        ],
    },
    Shape {
        name: "giants, interleaved",
        steps: &[
            Sql("begin"),
            Bulk,
            Beside(&[Sql("begin"), Bulk]),
            Bulk,
            Beside(&[Sql("savepoint lost"), Bulk, Sql("rollback to lost"), Say(1), Sql("commit")]),
            Say(1),
            Sql("commit"),
        ],
    },
    Shape { name: "giant rolled back", steps: &[Sql("begin"), Bulk, Sql("rollback"), Say(1)] },
    Shape {
        name: "ddl inside",
        steps: &[
            Sql("begin"),
            Say(2),
            Sql("alter table TABLE add column later integer default 7"),
            Say(2),
            // Rewrites the table, and with it every row that was published before.
            Sql("alter table TABLE alter column later type text using later::text"),
            Say(1),
            Sql("savepoint lost"),
            Sql("alter table TABLE add column never integer"),
            Say(1),
            Sql("rollback to lost"),
            Say(1),
            Sql("alter table TABLE drop column later"),
            Say(1),
            Sql("commit"),
        ],
    },
    Shape {
        name: "ddl between",
        steps: &[
            Sql("begin"),
            Sql("insert into place values ('beside', 0) on conflict do nothing"),
            Beside(&[Sql("alter table TABLE add column beside integer default 7"), Say(1)]),
            Say(2),
            Sql("commit"),
            Say(1),
            Sql("alter table TABLE drop column beside"),
            Say(1),
            Sql("vacuum full TABLE"),
            Say(1),
        ],
    },
    Shape {
        name: "rows that are gone",
        steps: &[
            Sql("begin"),
            Say(3),
            Sql("delete from TABLE"),
            Say(2),
            Sql("truncate TABLE"),
            Say(1),
            Sql("commit"),
        ],
    },
    Shape {
        name: "prepared",
        steps: &[
            Sql("begin"),
            Say(1),
            Sql("savepoint lost"),
            Say(1),
            Sql("rollback to lost"),
            Say(1),
            Sql("prepare transaction 'NAME'"),
            Beside(&[Say(1), Sql("commit prepared 'NAME'")]),
            Say(1),
        ],
    },
    Shape {
        name: "prepared and rolled back",
        steps: &[
            Sql("begin"),
            Say(2),
            Sql("prepare transaction 'NAME'"),
            Beside(&[Say(1), Sql("rollback prepared 'NAME'")]),
            Say(1),
        ],
    },
    Shape {
        name: "interleaved",
        steps: &[
            Sql("begin"),
            Say(1),
            Beside(&[Sql("begin"), Say(1)]),
            Say(1),
            Beside(&[Say(1), Sql("commit")]),
            Say(1),
            Sql("commit"),
        ],
    },
];

const NOISE: &str = "insert into noise (text) values ('a row')";

/// Tables and functions of the scripts. An id is a UUID v7, as the journal's partitions want it.
const PREPARE: &str = "
create index on expected (key, place);
create table shaped (id uuid primary key, topic text not null, key text, type text not null,
    subject text, headers jsonb, payload text);
create table copied (like expected);

create function fresh_id() returns uuid language sql volatile as $$
    select encode(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint << 16 | 28672)
        || substring(uuid_send(gen_random_uuid()) from 9), 'hex')::uuid
$$;

create function expect(a_topic text, a_key text, count integer, bytes integer)
returns setof expected language plpgsql as $$
declare
    before bigint;
begin
    insert into place as p values (a_key, count)
        on conflict (key) do update set last = p.last + count returning p.last - count into before;
    return query insert into expected
        select fresh_id(), a_topic, a_key, before + n,
            format('{\"text\": \"%s\", \"place\": %s}', repeat('x', bytes), before + n)
        from generate_series(1, count) as n returning *;
end $$;

create function say(store text, a_topic text, a_key text, count integer, bytes integer)
returns void language plpgsql as $$
begin
    case store
    when 'log' then
        perform tailrace.emit(e.topic, e.key, 'thing.happened.v1', e.payload::jsonb, '/writers',
            'subject of ' || e.key, headers => jsonb_build_object('place', e.place::text),
            id => e.id)
        from expect(a_topic, a_key, count, bytes) as e;
    when 'journal' then
        insert into tailrace.outbox
            (id, created_at, topic, key, type, source, subject, headers, payload)
        select e.id, clock_timestamp(), e.topic, convert_to(e.key, 'UTF8'), 'thing.happened.v1',
            '/writers', 'subject of ' || e.key, jsonb_build_object('place', e.place::text),
            convert_to(e.payload, 'UTF8')
        from expect(a_topic, a_key, count, bytes) as e;
    when 'table' then
        insert into shaped (id, topic, key, type, subject, headers, payload)
        select e.id, e.topic, e.key, 'thing.happened.v1', 'subject of ' || e.key,
            jsonb_build_object('place', e.place::text), e.payload
        from expect(a_topic, a_key, count, bytes) as e;
    end case;
end $$;

create function say_in_parts(store text, a_topic text, a_key text, parts integer, bytes integer)
returns void language plpgsql as $$
begin
    for part in 1 .. parts loop
        begin
            perform say(store, a_topic, a_key, 1, bytes);
            if part % 3 = 0 then
                raise exception 'this part is not to be';
            end if;
        exception when raise_exception then
            null;
        end;
    end loop;
end $$;

create function emit_copied() returns trigger language plpgsql as $$
begin
    perform tailrace.emit(new.topic, new.key, 'thing.happened.v1', new.payload::jsonb, '/writers',
        'subject of ' || new.key, headers => jsonb_build_object('place', new.place::text),
        id => new.id);
    return null;
end $$;
create trigger emit_copied after insert on copied for each row execute function emit_copied();
";

impl Site {
    /// Makes what the scripts need, after the writers' tables and the journal. What the relay has
    /// to keep of a transaction is far more than `logical_decoding_work_mem` lets it.
    ///
    /// # Panics
    ///
    /// When the server refuses, or takes no prepared transactions.
    pub async fn prepare_shapes(&self) {
        self.pool.execute(PREPARE).await.expect("tables and functions are made");
        let small = format!(
            "alter database {} set logical_decoding_work_mem = '64kB'",
            self.database.name()
        );
        self.pool.execute(AssertSqlSafe(small)).await.expect("the setting is taken");
        let row = self.pool.fetch_one("select current_setting('max_prepared_transactions')::int");
        let prepared: i32 = row.await.expect("the server answers").get(0);
        assert!(prepared > 0, "set max_prepared_transactions = 20 on the server and restart it");
    }

    /// Who writes the scripts; a bulk is so many messages.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn scribe(&self, bulk: i32) -> Scribe {
        let hand = async |name| Hand { connection: self.connect().await, name, said: 0 };
        let hands = [hand("first").await, hand("second").await];
        Scribe { hands, topics: self.topics.clone(), bulk }
    }
}

/// Writes scripts, on two connections.
#[derive(Debug)]
pub struct Scribe {
    hands: [Hand; 2],
    topics: Vec<String>,
    bulk: i32,
}

/// A connection, with keys of its own, so that neither waits for the other.
#[derive(Debug)]
struct Hand {
    connection: PgConnection,
    name: &'static str,
    said: usize,
}

/// What a script is written for.
struct Task<'a> {
    store: Store,
    /// No other prepared transaction of the server has it.
    name: &'a str,
    bulk: i32,
    topics: &'a [String],
}

impl Scribe {
    /// Writes a shape once, to its end.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn write(&mut self, shape: &Shape, store: Store) {
        let name = unique("prepared");
        let task = Task { store, name: &name, bulk: self.bulk, topics: &self.topics };
        let [first, second] = &mut self.hands;
        for step in shape.steps {
            match step {
                Beside(steps) => {
                    for step in *steps {
                        second.take(*step, &task).await;
                    }
                }
                step => first.take(*step, &task).await,
            }
        }
    }

    /// Closes the connections.
    ///
    /// # Panics
    ///
    /// When the server does not answer.
    pub async fn close(self) {
        for hand in self.hands {
            hand.connection.close().await.expect("a connection is closed");
        }
    }
}

impl Hand {
    async fn take(&mut self, step: Step, task: &Task<'_>) {
        match step {
            Sql(sql) => {
                let sql = sql.replace("TABLE", task.store.table()).replace("NAME", task.name);
                let done = self.connection.execute(AssertSqlSafe(sql.clone())).await;
                done.unwrap_or_else(|error| panic!("{sql}: {error}"));
            }
            Say(count) => {
                self.say("select say($1, $2, $3, $4, $5)", count, SMALL_BYTES, task).await
            }
            Bulk => self.say("select say($1, $2, $3, $4, $5)", task.bulk, BULK_BYTES, task).await,
            Parts(count) => {
                let sql = "select say_in_parts($1, $2, $3, $4, $5)";
                self.say(sql, count, SMALL_BYTES, task).await;
            }
            CopyIn(count) => self.copy(count, task).await,
            Beside(_) => panic!("there are two connections and no more"),
        }
    }

    async fn say(&mut self, sql: &'static str, count: i32, bytes: i32, task: &Task<'_>) {
        let (topic, key) = self.next_key(task);
        let said = sqlx::query(sql)
            .bind(task.store.name())
            .bind(topic)
            .bind(&key)
            .bind(count)
            .bind(bytes)
            .execute(&mut self.connection)
            .await;
        said.unwrap_or_else(|error| panic!("{count} messages of {key}: {error}"));
    }

    /// A trigger makes messages of rows that are copied beside the log.
    async fn copy(&mut self, count: i32, task: &Task<'_>) {
        let (topic, key) = self.next_key(task);
        let rows = sqlx::query("select id::text, place, payload from expect($1, $2, $3, $4)")
            .bind(topic)
            .bind(&key)
            .bind(count)
            .bind(SMALL_BYTES)
            .fetch_all(&mut self.connection)
            .await
            .expect("the rows are expected");
        let bytes = |text: &str| {
            let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
            // A backslash of COPY's own before that of the type.
            format!("\\\\x{hex}")
        };
        let line = |row: &sqlx::postgres::PgRow| {
            let (id, place, payload): (String, i64, String) = (row.get(0), row.get(1), row.get(2));
            let of_record =
                format!("thing.happened.v1\tsubject of {key}\t{{\"place\": \"{place}\"}}");
            match task.store {
                Store::Log => format!("{id}\t{topic}\t{key}\t{place}\t{payload}\n"),
                Store::Journal => format!(
                    "{id}\t{topic}\t{}\t{of_record}\t{}\tnow\t/writers\n",
                    bytes(&key),
                    bytes(&payload)
                ),
                Store::Table => format!("{id}\t{topic}\t{key}\t{of_record}\t{payload}\n"),
            }
        };
        let text: String = rows.iter().map(line).collect();
        let into = match task.store {
            Store::Log => "copy copied from stdin",
            Store::Journal => {
                "copy tailrace.outbox (id, topic, key, type, subject, headers, payload, \
                 created_at, source) from stdin"
            }
            Store::Table => {
                "copy shaped (id, topic, key, type, subject, headers, payload) from stdin"
            }
        };
        let mut copy = self.connection.copy_in_raw(into).await.expect("a copy begins");
        copy.send(text.into_bytes()).await.expect("the rows are sent");
        copy.finish().await.expect("the rows are taken");
    }

    /// Key by key, each in a topic of its own.
    fn next_key<'t>(&mut self, task: &Task<'t>) -> (&'t str, String) {
        let at = self.said % KEYS;
        self.said += 1;
        let topic = task.topics.get(at % task.topics.len()).expect("below the number of topics");
        (topic, format!("{}-{at}", self.name))
    }
}
