//! What a table's rows look like.

use std::fmt;

use crate::replication::reader::{Fault, Reader};

/// A table's OID, by which changes name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RelationId(pub(crate) u32);

impl fmt::Display for RelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A table, as its next changes will show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Relation<'a> {
    pub(crate) id: RelationId,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) replica_identity: ReplicaIdentity,
    pub(crate) columns: Vec<RelationColumn<'a>>,
}

/// A column of a [`Relation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RelationColumn<'a> {
    /// Whether it is part of the replica identity.
    pub(crate) key: bool,
    pub(crate) name: &'a str,
    pub(crate) type_oid: u32,
    /// As `pg_attribute.atttypmod`.
    pub(crate) type_modifier: i32,
}

/// What of an old row Postgres logs, as `pg_class.relreplident`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// Nothing.
    Nothing,
    /// All columns.
    Full,
    /// The columns of an index.
    Index,
}

/// Flags, an empty name, type and modifier: no column takes fewer bytes.
const COLUMN_BYTES_MIN: usize = 10;

impl<'a> Relation<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, Fault> {
        let id = RelationId(reader.u32()?);
        let namespace = match reader.text()? {
            // How pgoutput writes the schema of the catalogs.
            "" => "pg_catalog",
            namespace => namespace,
        };
        let name = reader.text()?;
        let fault = reader.fault("an unknown replica identity");
        let replica_identity = match reader.u8()? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            _ => return Err(fault),
        };
        let count = reader.count()?;
        let mut columns = Vec::with_capacity(count.min(reader.rest().len() / COLUMN_BYTES_MIN));
        for _ in 0..count {
            columns.push(RelationColumn::read(reader)?);
        }
        Ok(Relation { id, namespace, name, replica_identity, columns })
    }
}

impl<'a> RelationColumn<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Fault> {
        let fault = reader.fault("unknown column flags");
        let key = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(fault),
        };
        let name = reader.text()?;
        Ok(RelationColumn { key, name, type_oid: reader.u32()?, type_modifier: reader.i32()? })
    }
}
