use super::server::{Source, next};
use crate::pgoutput::{Change, Column, OldRow, RelationId, ReplicaIdentity, Tuple, decode};
use crate::replication::{Event, Stream};

/// A change that outlives the receive buffer, in words.
#[derive(Debug, PartialEq)]
enum Seen {
    /// Name, replica identity, and the columns' names, those of the key with a star.
    Relation(String, ReplicaIdentity, Vec<String>),
    Type(String),
    Origin(String),
    Insert(Vec<String>),
    Update(Option<String>, Vec<String>),
    Delete(String),
    Truncate(usize, bool, bool),
}

fn shown(tuple: Tuple<'_>) -> Vec<String> {
    let value = |column: Column<'_>| match column {
        Column::Null => "null".into(),
        Column::Unchanged => "unchanged".into(),
        Column::Text(text) => format!("text {}", String::from_utf8_lossy(text)),
        Column::Binary(bytes) => match bytes.try_into() {
            Ok(int4) => format!("int4 {}", i32::from_be_bytes(int4)),
            Err(_) if bytes.len() > 1000 => format!("{} bytes", bytes.len()),
            Err(_) => format!("bytes {}", String::from_utf8_lossy(bytes)),
        },
    };
    tuple.columns().map(value).collect()
}

fn shown_old(old: OldRow<'_>) -> String {
    match old {
        OldRow::Key(row) => format!("key {}", shown(row).join(", ")),
        OldRow::Full(row) => format!("full {}", shown(row).join(", ")),
    }
}

fn seen(change: Change<'_>, table: &mut Option<RelationId>) -> Option<Seen> {
    Some(match change {
        Change::Relation(relation) => {
            let star = |key: bool| if key { "*" } else { "" };
            let columns = relation
                .columns
                .iter()
                .map(|column| format!("{}{}", column.name, star(column.key)));
            *table = Some(relation.id);
            Seen::Relation(
                format!("{}.{}", relation.namespace, relation.name),
                relation.replica_identity,
                columns.collect(),
            )
        }
        Change::Type { namespace, name, .. } => Seen::Type(format!("{namespace}.{name}")),
        Change::Origin { name, .. } => Seen::Origin(name.to_owned()),
        Change::Insert { relation, new } => {
            assert_eq!(Some(relation), *table);
            Seen::Insert(shown(new))
        }
        Change::Update { relation, old, new } => {
            assert_eq!(Some(relation), *table);
            Seen::Update(old.map(shown_old), shown(new))
        }
        Change::Delete { relation, old } => {
            assert_eq!(Some(relation), *table);
            Seen::Delete(shown_old(old))
        }
        Change::Truncate { relations, cascade, restart_identity } => {
            Seen::Truncate(relations.len(), cascade, restart_identity)
        }
        _ => return None,
    })
}

/// The changes of the next transaction.
async fn transaction(tail: &mut Tail) -> Vec<Seen> {
    let mut changes = Vec::new();
    loop {
        let Event::Data { wal_start, body, .. } = next(&mut tail.stream).await else { continue };
        let change = decode(body, wal_start).unwrap();
        if matches!(change, Change::Commit { .. }) {
            return changes;
        }
        changes.extend(seen(change, &mut tail.table));
    }
}

/// A stream and the table that was described last.
struct Tail {
    stream: Stream,
    table: Option<RelationId>,
}

fn strings<const N: usize>(values: [&str; N]) -> Vec<String> {
    values.map(str::to_owned).to_vec()
}

async fn orders(name: &str) -> (Source, Tail) {
    let mut source = Source::new(name).await;
    source
        .run(&format!(
            "CREATE TYPE mood AS ENUM ('good');
             CREATE TABLE orders (id int PRIMARY KEY, note text, big text, mood mood);
             ALTER TABLE orders ALTER big SET STORAGE EXTERNAL;
             CREATE TABLE lines (id int PRIMARY KEY, order_id int REFERENCES orders);
             ALTER PUBLICATION {} ADD TABLE orders, lines",
            source.publication
        ))
        .await;
    let tail = Tail { stream: source.stream().await, table: None };
    (source, tail)
}

#[tokio::test]
async fn rows_come_in_binary_form_with_their_table_and_types() {
    let (mut source, mut tail) = orders("rows_come_in_binary_form").await;

    source.run("INSERT INTO orders VALUES (1, 'ä', NULL, 'good'), (-2, '', 'b', NULL)").await;

    assert_eq!(
        transaction(&mut tail).await,
        [
            Seen::Type("public.mood".into()),
            Seen::Relation(
                "public.orders".into(),
                ReplicaIdentity::Default,
                strings(["id*", "note", "big", "mood"])
            ),
            Seen::Insert(strings(["int4 1", "bytes ä", "null", "int4 1735356260"])),
            Seen::Insert(strings(["int4 -2", "bytes ", "bytes b", "null"])),
        ]
    );
}

#[tokio::test]
async fn a_large_value_that_did_not_change_is_marked_and_not_null() {
    let (mut source, mut tail) = orders("a_large_value").await;
    source.run("INSERT INTO orders VALUES (1, 'n', repeat('x', 50000), NULL)").await;
    transaction(&mut tail).await;

    source.run("UPDATE orders SET note = 'm'").await;
    source.run("UPDATE orders SET id = 7").await;
    source.run("DELETE FROM orders").await;

    assert_eq!(
        transaction(&mut tail).await,
        [Seen::Update(None, strings(["int4 1", "bytes m", "unchanged", "null"]))]
    );
    assert_eq!(
        transaction(&mut tail).await,
        [Seen::Update(
            Some("key int4 1, null, null, null".into()),
            strings(["int4 7", "bytes m", "unchanged", "null"])
        )]
    );
    assert_eq!(transaction(&mut tail).await, [Seen::Delete("key int4 7, null, null, null".into())]);
}

#[tokio::test]
async fn a_full_replica_identity_brings_the_whole_old_row() {
    let (mut source, mut tail) = orders("a_full_replica_identity").await;
    source.run("ALTER TABLE orders REPLICA IDENTITY FULL").await;
    source.run("INSERT INTO orders VALUES (1, 'n', repeat('x', 50000), NULL)").await;
    let inserted = transaction(&mut tail).await;

    source.run("UPDATE orders SET note = 'm'").await;
    source.run("DELETE FROM orders").await;

    assert!(
        matches!(&inserted[1], Seen::Relation(_, ReplicaIdentity::Full, columns)
            if columns.iter().all(|column| column.ends_with('*'))),
        "{inserted:?}"
    );
    let updated = transaction(&mut tail).await;
    assert!(
        matches!(&updated[..], [Seen::Update(Some(old), _)]
            if old == "full int4 1, bytes n, 50000 bytes, null"),
        "{updated:?}"
    );
    assert_eq!(
        transaction(&mut tail).await,
        [Seen::Delete("full int4 1, bytes m, 50000 bytes, null".into())]
    );
}

#[tokio::test]
async fn emptied_tables_are_told_with_their_options() {
    let (mut source, mut tail) = orders("emptied_tables").await;

    source.run("TRUNCATE lines").await;
    source.run("TRUNCATE orders RESTART IDENTITY CASCADE").await;

    let truncate = |changes: Vec<Seen>| changes.into_iter().next_back();
    assert_eq!(truncate(transaction(&mut tail).await), Some(Seen::Truncate(1, false, false)));
    assert_eq!(truncate(transaction(&mut tail).await), Some(Seen::Truncate(2, true, true)));
}

#[tokio::test]
async fn a_changed_table_is_described_anew() {
    let (mut source, mut tail) = orders("a_changed_table").await;
    source.run("INSERT INTO lines VALUES (1)").await;
    transaction(&mut tail).await;

    source.run("ALTER TABLE lines ADD extra int; INSERT INTO lines VALUES (2, NULL, 3)").await;

    assert_eq!(
        transaction(&mut tail).await,
        [
            Seen::Relation(
                "public.lines".into(),
                ReplicaIdentity::Default,
                strings(["id*", "order_id", "extra"])
            ),
            Seen::Insert(strings(["int4 2", "null", "int4 3"])),
        ]
    );
}

#[tokio::test]
async fn rows_and_messages_keep_their_order() {
    let (mut source, mut tail) = orders("rows_and_messages").await;

    source
        .run(
            "BEGIN; SELECT pg_logical_emit_message(true, 'p', 'a');
             INSERT INTO lines VALUES (1);
             SELECT pg_logical_emit_message(true, 'p', 'b');
             DELETE FROM lines; COMMIT",
        )
        .await;

    let mut kinds = Vec::new();
    while kinds.last() != Some(&b'C') {
        if let Event::Data { body, .. } = next(&mut tail.stream).await {
            kinds.push(body[0]);
        }
    }
    assert_eq!(kinds, b"BMRIMDC");
}

#[tokio::test]
async fn where_a_transaction_came_from_is_told() {
    let (mut source, mut tail) = orders("where_it_came_from").await;
    let origin = source.slot.clone();
    source
        .run(&format!(
            "SELECT pg_replication_origin_create('{origin}'), pg_replication_origin_session_setup('{origin}')"
        ))
        .await;

    source
        .run(
            "BEGIN; SELECT pg_replication_origin_xact_setup('0/42', now());
             INSERT INTO lines VALUES (1); COMMIT",
        )
        .await;

    assert_eq!(transaction(&mut tail).await[0], Seen::Origin(origin.clone()));
    source
        .run(&format!(
            "SELECT pg_replication_origin_session_reset(); SELECT pg_replication_origin_drop('{origin}')"
        ))
        .await;
}
