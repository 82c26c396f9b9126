//! What values in binary form say, by the server's own word.
//!
//! The bytes go back as parameters of the column's type, so that the type's receive function reads
//! them, and its output function writes what was understood.

use std::error::Error;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{IsNull, ToSql, Type};
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::{Cell, Row, Table};

/// A value in binary form, of whatever type the server takes it for.
#[derive(Debug)]
struct Raw<'a>(Option<&'a [u8]>);

impl ToSql for Raw<'_> {
    fn to_sql(
        &self,
        _: &Type,
        into: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        Ok(match self.0 {
            None => IsNull::Yes,
            Some(bytes) => {
                into.put_slice(bytes);
                IsNull::No
            }
        })
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    tokio_postgres::types::to_sql_checked!();
}

/// Puts texts in the place of all binary values of these rows of one table.
pub(super) async fn in_words(url: &str, table: &Table, rows: Vec<&mut Row>) {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    // Some types have no binary form, in either direction.
    let is_binary = |cell: Option<&Cell>| matches!(cell, Some(Cell::Binary(_)));
    let places: Vec<usize> = (0..table.columns.len())
        .filter(|&at| rows.iter().any(|row| is_binary(row.get(at))))
        .collect();
    if places.is_empty() {
        return;
    }
    let of_each = |text: &dyn Fn(usize) -> String| {
        places.iter().map(|&at| text(at)).collect::<Vec<_>>().join(", ")
    };
    let columns = of_each(&|at| format!("c{at} {}", table.columns[at].sql));
    client.batch_execute(&format!("CREATE TEMP TABLE echo (n serial, {columns})")).await.unwrap();
    let names = of_each(&|at| format!("c{at}"));
    let parameters: Vec<String> = (1..=places.len()).map(|at| format!("${at}")).collect();
    let insert = format!("INSERT INTO echo ({names}) VALUES ({})", parameters.join(", "));
    let insert = client.prepare(&insert).await.unwrap();
    for row in &rows {
        let raw = |at: &usize| match &row[*at] {
            Cell::Binary(bytes) => Raw(Some(bytes)),
            Cell::Null | Cell::Unchanged | Cell::Text(_) => Raw(None),
        };
        let values: Vec<Raw<'_>> = places.iter().map(raw).collect();
        let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|raw| raw as _).collect();
        client.execute(&insert, &values).await.unwrap();
    }

    let answers = client.simple_query(&format!("SELECT {names} FROM echo ORDER BY n")).await;
    let answers = answers.unwrap().into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    for (row, answer) in rows.into_iter().zip(answers) {
        for (column, &at) in places.iter().enumerate() {
            if is_binary(row.get(at)) {
                let text = answer.get(column).expect("no value became null");
                row[at] = Cell::Text(text.to_owned());
            }
        }
    }
}
