//! Transactions of every shape over tables of every kind, by a seed.

use std::fmt::Write as _;

use super::kinds::{KINDS, TYPES};
use crate::replication::{Client, Endpoint};

/// Sessions whose transactions run at the same time; each has rows of its own, so that none waits.
const SESSIONS: u64 = 3;

/// Tables with a column of each type. The first is identified by its key, the second by the whole
/// row, the third by an index.
const WIDE: [&str; 3] = ["kinds", "kinds_full", "\"Kinds, 'indexed'\""];

/// The generated columns are numbers, which end at the next blank in test_decoding's words.
pub(super) const GENERATED: &str = " twice[bigint]:";

/// The partitioned table, as `test_decoding` names it in a TRUNCATE.
pub(super) const PARTITIONED: &str = "public.parts, ";

const TABLES: &str = "
CREATE TABLE toasted (id int PRIMARY KEY, note text, big text, huge bytea);
ALTER TABLE toasted ALTER big SET STORAGE EXTERNAL, ALTER huge SET STORAGE EXTERNAL;
CREATE TABLE toasted_full (LIKE toasted INCLUDING ALL);
ALTER TABLE toasted_full REPLICA IDENTITY FULL;
CREATE TABLE lines (id int PRIMARY KEY, order_id int REFERENCES kinds ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE keyless (id serial, note text);
CREATE TABLE nothing (id int PRIMARY KEY, note text);
ALTER TABLE nothing REPLICA IDENTITY NOTHING;
CREATE TABLE parts (id int, part int, note text, PRIMARY KEY (part, id)) PARTITION BY LIST (part);
CREATE TABLE parts_0 PARTITION OF parts FOR VALUES IN (0);
CREATE TABLE parts_1 (note text, dropped int, part int NOT NULL, id int NOT NULL);
ALTER TABLE parts_1 DROP dropped;
ALTER TABLE parts ATTACH PARTITION parts_1 FOR VALUES IN (1);
CREATE SCHEMA \"odd 'Schema'\";
CREATE TABLE \"odd 'Schema'\".\"select\" (\"from\" int PRIMARY KEY, \"A \"\"b\"\"\" text);
";

/// The statements that make types and tables.
pub(super) fn schema() -> String {
    let mut sql = format!("{TYPES} CREATE TABLE kinds (id int PRIMARY KEY");
    for kind in KINDS {
        write!(sql, ", {} {}", kind.name, kind.r#type).unwrap();
    }
    let [kinds, full, indexed] = WIDE;
    write!(
        sql,
        ", twice bigint GENERATED ALWAYS AS (id::bigint * 2) STORED);
         CREATE TABLE {full} (LIKE {kinds} INCLUDING ALL);
         ALTER TABLE {full} REPLICA IDENTITY FULL;
         CREATE TABLE {indexed} (LIKE {kinds} INCLUDING DEFAULTS, other int NOT NULL);
         ALTER TABLE {indexed} DROP twice;
         CREATE UNIQUE INDEX of_two ON {indexed} (other, id);
         ALTER TABLE {indexed} ALTER id SET NOT NULL, REPLICA IDENTITY USING INDEX of_two;
         {TABLES}"
    )
    .unwrap();
    sql
}

/// Numbers that follow from a seed (splitmix64).
pub(super) struct Dice(pub(super) u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }

    fn pick<'t, T: ?Sized>(&mut self, of: &[&'t T]) -> &'t T {
        of[self.below(of.len())]
    }
}

struct Session {
    number: u64,
    sql: Client,
    open: bool,
    savepoints: usize,
    /// Whether its transaction has locked whole tables: then the others wait for its end.
    locking: bool,
}

/// Runs so many statements, in transactions of several sessions.
pub(super) async fn run(endpoint: &Endpoint, seed: u64, statements: usize) {
    let mut dice = Dice(seed);
    let mut sessions = Vec::new();
    for number in 0..SESSIONS {
        let sql = Client::connect(endpoint).await.unwrap();
        sessions.push(Session { number, sql, open: false, savepoints: 0, locking: false });
    }
    let mut count = 0;
    for _ in 0..statements {
        let locking = sessions.iter().position(|session| session.locking);
        let at = locking.unwrap_or(dice.below(sessions.len()));
        let alone = sessions.iter().all(|session| session.number == at as u64 || !session.open);
        count += 1;
        step(&mut sessions[at], &mut dice, count, alone).await;
    }
    for session in &mut sessions {
        if session.open {
            session.sql.query("COMMIT").await.unwrap();
        }
    }
}

/// The next statement of a session; what locks whole tables only while no other is in a
/// transaction.
async fn step(session: &mut Session, dice: &mut Dice, count: u64, alone: bool) {
    let sql = match dice.below(20) {
        0..=2 if !session.open => {
            session.open = true;
            "BEGIN".to_owned()
        }
        0..=2 => {
            (session.open, session.savepoints, session.locking) = (false, 0, false);
            dice.pick(&["COMMIT", "COMMIT", "COMMIT", "ROLLBACK"]).to_owned()
        }
        3 | 4 if session.open => savepoint(session, dice),
        5 if alone => {
            session.locking = session.open;
            match dice.below(2) {
                0 => truncate(dice),
                _ => format!("ALTER TABLE keyless ADD c{count} int DEFAULT {count}"),
            }
        }
        _ => change(session.number, dice, count),
    };
    let done = session.sql.query(&sql).await;
    done.unwrap_or_else(|error| panic!("{error}: {error:?} in {sql}"));
}

fn savepoint(session: &mut Session, dice: &mut Dice) -> String {
    if session.savepoints == 0 || dice.below(3) == 0 {
        session.savepoints += 1;
        return format!("SAVEPOINT s{}", session.savepoints);
    }
    let name = session.savepoints;
    if dice.below(3) == 0 {
        session.savepoints -= 1;
        return format!("RELEASE s{name}");
    }
    format!("ROLLBACK TO s{name}")
}

fn truncate(dice: &mut Dice) -> String {
    let what = dice.pick(&[
        "lines",
        "kinds CASCADE",
        "keyless RESTART IDENTITY",
        "kinds_full, toasted",
        "parts",
        "lines, kinds RESTART IDENTITY CASCADE",
    ]);
    format!("TRUNCATE {what}")
}

/// A change of rows that belong to this session alone, or a message.
fn change(session: u64, dice: &mut Dice, count: u64) -> String {
    let id = count * SESSIONS + session;
    // A row of this session, if there is one.
    let other = dice.below(4);
    let own = |table: &str| {
        format!(
            "id IN (SELECT id FROM {table} WHERE id % {SESSIONS} = {session} ORDER BY id DESC \
             OFFSET {other} LIMIT 1)"
        )
    };
    let wide = dice.pick(&WIDE);
    let toasted = dice.pick(&["toasted", "toasted_full"]);
    let new_id = format!("id + {}", 1_000_000 * SESSIONS);
    match dice.below(18) {
        0..=3 => insert(wide, id, dice),
        4 => format!("{}; {}", insert("kinds", id, dice), line(id)),
        5 | 6 => format!("UPDATE {wide} SET {} WHERE {}", some(dice), own(wide)),
        7 => format!("UPDATE {wide} SET id = {new_id}, {} WHERE {}", some(dice), own(wide)),
        8 => format!("DELETE FROM {wide} WHERE {}", own(wide)),
        9 => format!(
            "INSERT INTO {toasted} VALUES ({id}, 'n', repeat('ä', 5000), \
             convert_to(repeat('it''s', 3000), 'UTF8'))"
        ),
        10 => {
            let set = dice.pick(&[
                "note = note || 'm'",
                "big = big || 'x'",
                "huge = NULL",
                "big = 'short'",
            ]);
            format!("UPDATE {toasted} SET {set} WHERE {}", own(toasted))
        }
        11 => format!("UPDATE {toasted} SET id = {new_id} WHERE {}", own(toasted)),
        12 => format!("DELETE FROM {toasted} WHERE {}", own(toasted)),
        13 => message(dice, count),
        14 => format!(
            "INSERT INTO keyless (note) VALUES ('{count}'), (NULL); INSERT INTO nothing VALUES ({id}, 'n')"
        ),
        15 => format!("INSERT INTO parts VALUES ({id}, {}, 'p')", count % 2),
        16 => {
            format!("UPDATE parts SET part = 1 - part, note = note || 'q' WHERE {}", own("parts"))
        }
        _ => caught(id),
    }
}

fn insert(table: &str, id: u64, dice: &mut Dice) -> String {
    let (mut names, mut values) = ("id".to_owned(), id.to_string());
    for kind in KINDS {
        // A column that is left out has its default.
        if dice.below(10) == 0 {
            continue;
        }
        write!(names, ", {}", kind.name).unwrap();
        write!(values, ", {}", value(kind.values, dice)).unwrap();
    }
    if table == WIDE[2] {
        names.push_str(", other");
        values.push_str(", 1");
    }
    format!("INSERT INTO {table} ({names}) VALUES ({values})")
}

/// New values for one to three columns.
fn some(dice: &mut Dice) -> String {
    let first = dice.below(KINDS.len());
    let kinds = KINDS.iter().cycle().skip(first).step_by(7).take(1 + first % 3);
    let set = kinds.map(|kind| format!("{} = {}", kind.name, value(kind.values, dice)));
    set.collect::<Vec<_>>().join(", ")
}

fn value(of: &[&'static str], dice: &mut Dice) -> &'static str {
    if dice.below(7) == 0 { "NULL" } else { dice.pick(of) }
}

fn line(id: u64) -> String {
    format!("INSERT INTO lines VALUES ({id}, {id}), ({id} + 1000000000, NULL)")
}

fn message(dice: &mut Dice, count: u64) -> String {
    let transactional = dice.pick(&["true", "true", "false"]);
    let content = dice.pick(&["''", "'it''s'", "'ä 🦀'", "repeat('x', 10000)"]);
    format!("SELECT pg_logical_emit_message({transactional}, 'p {count}', {content})")
}

/// A subtransaction that nobody asked for: the handler of an exception rolls it back.
fn caught(id: u64) -> String {
    format!(
        "DO $$ BEGIN INSERT INTO nothing VALUES ({id} + 1000000000);
         BEGIN INSERT INTO nothing VALUES ({id} + 1500000000); RAISE 'no'; EXCEPTION WHEN OTHERS THEN END;
         BEGIN INSERT INTO nothing VALUES ({id} + 2000000000); EXCEPTION WHEN OTHERS THEN END; END $$"
    )
}
