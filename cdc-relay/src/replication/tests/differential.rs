//! Our decoder against `test_decoding`, which comes with Postgres and shares no code with it.
//!
//! A random workload over tables of every kind is read three times: by `test_decoding`, by our
//! stream (rows in binary form), and by our decoder from a peek (rows in text form). What ours has
//! seen is written in the words of `test_decoding` and must be the same line by line: transaction,
//! change, type and value. `SEED=` replays a workload, `STATEMENTS=` makes it longer.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use super::server::{DEADLINE, Source};
use crate::lsn::Lsn;
use crate::pgoutput::{Change, Column, OldRow, RelationId, Tuple, decode};
use crate::replication::{Client, Event, quote_identifier, quote_literal};
use tokio::time::timeout;

mod echo;
mod kinds;
mod workload;

const STATEMENTS: usize = 400;

/// The prefix of the message after which nothing comes.
const END: &str = "the end";

/// From here on there are columns that are computed when they are read, and generated columns can
/// be published.
const VERSION_WITH_GENERATED: u32 = 180_000;

/// So much of a line is shown where it differs.
const SHOWN: usize = 160;

type Row = Vec<Cell>;

#[derive(Clone, Debug, PartialEq)]
enum Cell {
    Null,
    Unchanged,
    Text(String),
    Binary(Vec<u8>),
}

/// A table as it was described at some time, in the words of the server.
struct Table {
    /// With its schema, quoted where it has to be.
    name: String,
    columns: Vec<Described>,
}

struct Described {
    name: String,
    /// Without its modifier, as `test_decoding` shows it.
    r#type: String,
    oid: u32,
    /// With its modifier.
    sql: String,
}

/// One of our changes; tables are numbers of [`Ours::tables`].
enum Seen {
    Begin { xid: u32 },
    Commit { xid: u32, micros: i64, end: Lsn },
    Message { transactional: bool, prefix: String, content: String, lsn: Lsn },
    Insert { table: usize, new: Row },
    Update { table: usize, old: Option<Row>, new: Row },
    Delete { table: usize, old: Row },
    Truncate { tables: Vec<usize>, cascade: bool, restart_identity: bool },
}

/// What our decoder has made of the log.
struct Ours {
    sql: Client,
    tables: Vec<Table>,
    current: HashMap<RelationId, usize>,
    seen: Vec<Seen>,
    xid: u32,
    /// Whether the last message has come.
    ended: bool,
}

impl Ours {
    async fn new(source: &Source) -> Self {
        let sql = Client::connect(&source.endpoint).await.unwrap();
        let (tables, current, seen) = (Vec::new(), HashMap::new(), Vec::new());
        Ours { sql, tables, current, seen, xid: 0, ended: false }
    }

    async fn take(&mut self, body: &[u8], lsn: Lsn) {
        let of = |relation: RelationId| self.current[&relation];
        let seen = match decode(body, lsn).unwrap() {
            Change::Relation(relation) => {
                let id = relation.id;
                let text = describe(&relation);
                let rows = self.sql.query(&text).await.unwrap();
                let mut rows = rows.iter().map(|row| {
                    let text = |column| row.get(column).unwrap().to_owned();
                    Described {
                        name: text(0),
                        r#type: text(1),
                        oid: text(2).parse().unwrap(),
                        sql: text(3),
                    }
                });
                let name = rows.next().unwrap().name;
                self.current.insert(id, self.tables.len());
                self.tables.push(Table { name, columns: rows.collect() });
                return;
            }
            Change::Type { .. } | Change::Origin { .. } => return,
            Change::Begin { xid, .. } => {
                self.xid = xid.0;
                Seen::Begin { xid: xid.0 }
            }
            Change::Commit { end_lsn, timestamp, .. } => {
                Seen::Commit { xid: self.xid, micros: timestamp.unix_micros(), end: end_lsn }
            }
            Change::Message { transactional, lsn, prefix, content } => {
                self.ended |= prefix == END;
                let content = String::from_utf8(content.to_vec()).unwrap();
                Seen::Message { transactional, prefix: prefix.to_owned(), content, lsn }
            }
            Change::Insert { relation, new } => Seen::Insert { table: of(relation), new: row(new) },
            Change::Update { relation, old, new } => {
                let old = old.map(|(OldRow::Key(old) | OldRow::Full(old))| row(old));
                Seen::Update { table: of(relation), old, new: row(new) }
            }
            Change::Delete { relation, old: OldRow::Key(old) | OldRow::Full(old) } => {
                Seen::Delete { table: of(relation), old: row(old) }
            }
            Change::StreamStart { .. }
            | Change::StreamStop
            | Change::StreamCommit { .. }
            | Change::StreamAbort { .. } => panic!("streaming was not asked for"),
            Change::Truncate { relations, cascade, restart_identity } => {
                let tables = relations.into_iter().map(of).collect();
                Seen::Truncate { tables, cascade, restart_identity }
            }
        };
        self.seen.push(seen);
    }

    /// Has the server read every value that came in binary form.
    async fn in_words(&mut self, url: &str) {
        let mut rows: Vec<Vec<&mut Row>> = self.tables.iter().map(|_| Vec::new()).collect();
        for seen in &mut self.seen {
            match seen {
                Seen::Insert { table, new } => rows[*table].push(new),
                Seen::Update { table, old, new } => {
                    rows[*table].extend(old.iter_mut().chain([new]))
                }
                Seen::Delete { table, old } => rows[*table].push(old),
                _ => {}
            }
        }
        for (table, rows) in self.tables.iter().zip(rows) {
            echo::in_words(url, table, rows).await;
        }
    }

    /// Every change in the words of `test_decoding`.
    fn lines(&self) -> Vec<String> {
        let change = |table: &usize, what: String| {
            let table = &self.tables[*table];
            format!("table {}: {what}", table.name)
        };
        let row = |table: &usize, row: &Row, nulls: bool| self.tables[*table].show(row, nulls);
        let line = |seen: &Seen| match seen {
            Seen::Begin { xid } => format!("BEGIN {xid}"),
            Seen::Commit { xid, micros, end } => format!("COMMIT {xid} at {micros} to {end}"),
            Seen::Message { transactional, prefix, content, lsn } => format!(
                "message: transactional: {} prefix: {prefix}, sz: {} content:{content} at {lsn}",
                u8::from(*transactional),
                content.len(),
            ),
            Seen::Insert { table, new } => {
                change(table, format!("INSERT:{}", row(table, new, true)))
            }
            Seen::Update { table, old, new } => {
                let new = row(table, new, true);
                change(
                    table,
                    match old {
                        None => format!("UPDATE:{new}"),
                        Some(old) => {
                            format!("UPDATE: old-key:{} new-tuple:{new}", row(table, old, false))
                        }
                    },
                )
            }
            Seen::Delete { table, old } => {
                change(table, format!("DELETE:{}", row(table, old, false)))
            }
            Seen::Truncate { tables, cascade, restart_identity } => {
                let names: Vec<&str> =
                    tables.iter().map(|table| self.tables[*table].name.as_str()).collect();
                let options = match (restart_identity, cascade) {
                    (false, false) => " (no-flags)",
                    (true, false) => " restart_seqs",
                    (false, true) => " cascade",
                    (true, true) => " restart_seqs cascade",
                };
                format!("table {}: TRUNCATE:{options}", names.join(", "))
            }
        };
        self.seen.iter().map(line).collect()
    }
}

/// Asks for the names of a relation and its types, in a row for itself and one for each column.
fn describe(relation: &crate::pgoutput::Relation<'_>) -> String {
    let (namespace, name) = (quote_literal(relation.namespace), quote_literal(relation.name));
    let mut sql =
        format!("SELECT quote_ident({namespace}) || '.' || quote_ident({name}), '', 0, ''");
    for column in &relation.columns {
        let (name, oid) = (quote_literal(column.name), column.type_oid);
        sql += &format!(
            " UNION ALL SELECT quote_ident({name}), format_type({oid}, NULL), {oid}, \
             format_type({oid}, {})",
            column.type_modifier
        );
    }
    sql
}

fn row(tuple: Tuple<'_>) -> Row {
    let cell = |column| match column {
        Column::Null => Cell::Null,
        Column::Unchanged => Cell::Unchanged,
        Column::Text(text) => Cell::Text(String::from_utf8(text.to_vec()).unwrap()),
        Column::Binary(bytes) => Cell::Binary(bytes.to_vec()),
    };
    tuple.columns().map(cell).collect()
}

impl Table {
    /// As `print_literal` in contrib/test_decoding/test_decoding.c writes it; the columns of an old
    /// row that are null are left out there.
    fn show(&self, row: &Row, nulls: bool) -> String {
        assert_eq!(row.len(), self.columns.len(), "{}", self.name);
        let mut line = String::new();
        for (cell, column) in row.iter().zip(&self.columns) {
            let value = match cell {
                Cell::Null if nulls => "null".to_owned(),
                Cell::Null => continue,
                Cell::Unchanged => "unchanged-toast-datum".to_owned(),
                Cell::Binary(bytes) => panic!("{} was not read: {bytes:?}", column.name),
                Cell::Text(text) => match column.oid {
                    // int8, int2, int4, oid, float4, float8, numeric
                    20 | 21 | 23 | 26 | 700 | 701 | 1700 => text.clone(),
                    // bit, varbit
                    1560 | 1562 => format!("B'{text}'"),
                    // bool
                    16 => (if text == "t" { "true" } else { "false" }).to_owned(),
                    _ => format!("'{}'", text.replace('\'', "''")),
                },
            };
            line += &format!(" {}[{}]:{value}", column.name, column.r#type);
        }
        line
    }
}

/// What `test_decoding` says, without transactions in which it says nothing.
async fn theirs(source: &mut Source, slot: &str, generated: bool) -> Vec<String> {
    let sql = format!(
        "SELECT lsn, CASE WHEN data LIKE 'COMMIT %' THEN
             (extract(epoch FROM substring(data FROM ' \\(at (.*)\\)$')::timestamptz) * 1000000)::bigint
         END, data
         FROM pg_logical_slot_get_changes({}, NULL, NULL, 'include-timestamp', 'on')",
        quote_literal(slot)
    );
    let mut lines: Vec<String> = Vec::new();
    for row in source.sql.query(&sql).await.unwrap() {
        let (lsn, data) = (row.get(0).unwrap(), row.get(2).unwrap());
        if let Some(micros) = row.get(1) {
            if lines.last().is_some_and(|line| line.starts_with("BEGIN ")) {
                lines.pop();
                continue;
            }
            let xid = data.split(' ').nth(1).unwrap();
            lines.push(format!("COMMIT {xid} at {micros} to {lsn}"));
        } else if data.starts_with("message: ") {
            lines.push(format!("{data} at {lsn}"));
        } else if data.contains(": TRUNCATE: ") {
            // A partitioned table has no rows of its own, and pgoutput tells of its partitions.
            lines.push(data.replace(workload::PARTITIONED, ""));
        } else if generated {
            lines.push(data.to_owned());
        } else {
            lines.push(without_generated(data));
        }
    }
    lines
}

/// The line without the columns that the publication leaves out.
fn without_generated(line: &str) -> String {
    let mut parts = line.split(workload::GENERATED);
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept += part.find(' ').and_then(|end| part.get(end..)).unwrap_or_default();
    }
    kept
}

/// Fails with the first line that differs, from where it differs, and the beginnings of those before.
fn check(ours: &[String], theirs: &[String], replay: &str) {
    let differs = ours.iter().zip(theirs).position(|(one, other)| one != other);
    let at = differs.unwrap_or(ours.len().min(theirs.len()));
    let (ours_at, theirs_at) = (part(ours.get(at), 0), part(theirs.get(at), 0));
    if ours_at.is_none() && theirs_at.is_none() {
        return;
    }
    let same = |(one, other): &(char, char)| one == other;
    let pairs = |one: &String, other: &String| {
        one.chars().zip(other.chars()).take_while(same).count().saturating_sub(SHOWN / 2)
    };
    let from = ours.get(at).zip(theirs.get(at)).map_or(0, |(one, other)| pairs(one, other));
    let before: Vec<_> = (at.saturating_sub(3)..at).map(|at| part(theirs.get(at), 0)).collect();
    panic!(
        "{replay}: line {at} of {} and {} differs, after {before:#?}\nours:   {:?}\ntheirs: {:?}",
        ours.len(),
        theirs.len(),
        part(ours.get(at), from),
        part(theirs.get(at), from)
    );
}

fn part(line: Option<&String>, from: usize) -> Option<String> {
    line.map(|line| line.chars().skip(from).take(SHOWN).collect())
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "the seed has to be known whatever fails")]
async fn our_decoder_and_test_decoding_agree_on_every_change_and_value() {
    let seed =
        from_environment("SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish());
    let statements = from_environment("STATEMENTS").map_or(STATEMENTS, |count| count as usize);
    let replay = format!("SEED={seed} STATEMENTS={statements}");
    println!("{replay}");
    let mut source = Source::without_slot("differential").await;
    let generated = source.sql.server_version() >= VERSION_WITH_GENERATED;
    source.run(&workload::schema()).await;
    let publication = quote_identifier(&source.publication);
    let with = if generated { "WITH (publish_generated_columns = stored)" } else { "" };
    source.run(&format!("DROP PUBLICATION {publication}")).await;
    source.run(&format!("CREATE PUBLICATION {publication} FOR ALL TABLES {with}")).await;
    source.make_slot().await;
    let other = format!("{}_test", source.slot);
    let (slot, quoted) = (quote_literal(&source.slot), quote_literal(&other));
    source
        .run(&format!("SELECT pg_create_logical_replication_slot({quoted}, 'test_decoding')"))
        .await;

    workload::run(&source.endpoint, seed, statements).await;
    source.run(&format!("SELECT pg_logical_emit_message(true, '{END}', '')")).await;

    let theirs = theirs(&mut source, &other, generated).await;
    let mut in_text = Ours::new(&source).await;
    let peek = format!(
        "SELECT lsn, encode(data, 'hex') FROM pg_logical_slot_peek_binary_changes({slot}, NULL, NULL, \
         'proto_version', '2', 'publication_names', {}, 'messages', 'true', 'binary', 'false')",
        quote_literal(&publication)
    );
    for row in source.sql.query(&peek).await.unwrap() {
        in_text.take(&unhex(row.get(1).unwrap()), row.get(0).unwrap().parse().unwrap()).await;
    }
    check(&in_text.lines(), &theirs, &format!("{replay} in text form"));
    let mut in_binary = Ours::new(&source).await;
    let mut stream = source.stream().await;
    while !(in_binary.ended && matches!(in_binary.seen.last(), Some(Seen::Commit { .. }))) {
        let event = timeout(DEADLINE, stream.next()).await.expect("the stream goes on").unwrap();
        let Event::Data { wal_start, body, .. } = event else { continue };
        in_binary.take(body, wal_start).await;
    }
    in_binary.in_words(&source.url).await;
    check(&in_binary.lines(), &theirs, &format!("{replay} in binary form"));

    println!("{} lines agree", theirs.len());
    source.run(&format!("SELECT pg_drop_replication_slot({quoted})")).await;
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2);
    digits.map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}
