//! Rows, column by column.

use crate::replication::reader::{Fault, Reader};

/// A row's columns, still as bytes of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuple<'a> {
    columns: usize,
    bytes: &'a [u8],
}

/// A column's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column<'a> {
    /// SQL null.
    Null,
    /// Stored out of line and not changed, so that Postgres did not send it.
    Unchanged,
    /// In text form.
    Text(&'a [u8]),
    /// As the type's send function writes it.
    Binary(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// Reads a whole tuple, so that all of it is known to be well formed.
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, Fault> {
        let columns = reader.count()?;
        let bytes = reader.rest();
        for _ in 0..columns {
            Column::read(reader)?;
        }
        let length = bytes.len() - reader.rest().len();
        let bytes = bytes.get(..length).expect("a reader only ever moves forward");
        Ok(Tuple { columns, bytes })
    }

    /// How many columns there are.
    pub(crate) fn len(&self) -> usize {
        self.columns
    }

    /// The columns in the relation's order.
    pub(crate) fn columns(&self) -> Columns<'a> {
        Columns { reader: Reader::new(self.bytes), left: self.columns }
    }
}

/// Walks over the columns of a [`Tuple`].
#[derive(Clone, Debug)]
pub(crate) struct Columns<'a> {
    reader: Reader<'a>,
    left: usize,
}

impl<'a> Iterator for Columns<'a> {
    type Item = Column<'a>;

    fn next(&mut self) -> Option<Column<'a>> {
        self.left = self.left.checked_sub(1)?;
        Some(Column::read(&mut self.reader).expect("a tuple is checked when it is read"))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Columns<'_> {}

impl<'a> Column<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Fault> {
        let fault = reader.fault("an unknown kind of column");
        Ok(match reader.u8()? {
            b'n' => Column::Null,
            b'u' => Column::Unchanged,
            b't' => Column::Text(reader.sized()?),
            b'b' => Column::Binary(reader.sized()?),
            _ => return Err(fault),
        })
    }
}
