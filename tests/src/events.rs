//! A table whose rows are messages, each with its number among those of its key.

use std::collections::BTreeMap;
use std::ops::Range;

use sqlx::{Executor, PgConnection};

use crate::reader::Seen;
use crate::site::Site;

/// How a relay reads the table.
pub const MAPPING: &str = "public.event=topic=${topic}, id:id:uuid, key:key:text, type:kind:text, \
                           payload:body:text, source=/events";

/// The least memory that the server can be told to decode a transaction in.
const DECODES_IN_LITTLE: &str = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET \
     logical_decoding_work_mem = ''64kB''', current_database()); END $$";

impl Site {
    /// Makes the table, and a server that holds as little as it can of a transaction in memory.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn prepare_events(&self) {
        self.pool
            .execute(
                "CREATE TABLE event (id uuid NOT NULL DEFAULT gen_random_uuid(), \
                 topic text NOT NULL, key text NOT NULL, kind text NOT NULL DEFAULT 'Happened', \
                 body text NOT NULL)",
            )
            .await
            .expect("the table is made");
        self.pool.execute(DECODES_IN_LITTLE).await.expect("it is set");
    }

    /// Inserts rows with these numbers, in one statement: each for the key of its number, so many
    /// keys in turn.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn insert_events(
        &self,
        connection: &mut PgConnection,
        key: &str,
        keys: i32,
        numbers: Range<i32>,
    ) {
        let topic = self.topics.first().expect("a site has topics");
        let insert = "INSERT INTO event (topic, key, body) SELECT $1, $2 || mod(n, $3), n::text \
                      FROM generate_series($4::int, $5::int - 1) n";
        let Range { start, end } = numbers;
        let insert = sqlx::query(insert).bind(topic).bind(key).bind(keys).bind(start).bind(end);
        insert.execute(connection).await.expect("rows are inserted");
    }
}

/// The numbers of each key, in the order in which they were read.
///
/// # Panics
///
/// When a record is of no event.
pub fn numbers(seen: &[Seen]) -> BTreeMap<String, Vec<i32>> {
    let mut keys: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for record in seen {
        let (key, number) = event(record);
        keys.entry(key).or_default().push(number);
    }
    keys
}

/// Key and number of a record.
///
/// # Panics
///
/// When it is of no event.
pub fn event(record: &Seen) -> (String, i32) {
    let text = |bytes: &Option<Vec<u8>>| {
        String::from_utf8(bytes.clone().unwrap_or_default()).expect("an event is text")
    };
    (text(&record.key), text(&record.value).parse().expect("an event is a number"))
}
