//! From the bytes of one message to a change.

use super::{Change, Head, OldRow, Relation, RelationId, Segment, Timestamp, Tuple, Xid};
use crate::error::Error;
use crate::lsn::Lsn;
use crate::replication::reader::{Fault, Reader};

/// Reads one message of pgoutput; `lsn` is where the server says it lies, for error texts.
///
/// Every byte is accounted for: what is cut short, too long, unknown, a name not in UTF-8 or left
/// over is [`Kind::Malformed`](crate::error::Kind::Malformed) with the LSN and the byte's offset.
pub(crate) fn decode(body: &[u8], lsn: Lsn) -> Result<Change<'_>, Error> {
    let mut reader = Reader::new(body);
    read(&mut reader)
        .and_then(|change| reader.end().map(|()| change))
        .map_err(|fault| fault.error(format_args!("pgoutput message at {lsn}")))
}

/// What comes between the start and the stop of a segment of a streamed transaction, as far as it
/// has to be known before the transaction commits.
pub(crate) fn decode_segment(body: &[u8], lsn: Lsn) -> Result<Segment, Error> {
    let mut reader = Reader::new(body);
    read_segment(&mut reader)
        .map_err(|fault| fault.error(format_args!("pgoutput message at {lsn}")))
}

/// Reads a change that came in a segment: in front of it stands the transaction that made it, the
/// top one or one of its subtransactions. Of logical messages it is always the top one.
pub(crate) fn decode_streamed(body: &[u8], lsn: Lsn) -> Result<(Xid, Change<'_>), Error> {
    let mut reader = Reader::new(body);
    read_streamed(&mut reader)
        .and_then(|change| reader.end().map(|()| change))
        .map_err(|fault| fault.error(format_args!("streamed pgoutput message at {lsn}")))
}

/// Reads the beginning of a change that is too large to be received; `streamed` says whether the number
/// of its transaction stands in front, as in a segment.
pub(crate) fn decode_head(head: &[u8], streamed: bool, lsn: Lsn) -> Result<Head<'_>, Error> {
    let mut reader = Reader::new(head);
    read_head(&mut reader, streamed)
        .map_err(|fault| fault.error(format_args!("the beginning of a pgoutput message at {lsn}")))
}

fn read_head<'a>(reader: &mut Reader<'a>, streamed: bool) -> Result<Head<'a>, Fault> {
    let strange = reader.fault("a kind of message that is never so long");
    let kind = reader.u8()?;
    if streamed {
        reader.u32()?;
    }
    Ok(match kind {
        b'M' => {
            let (transactional, _, prefix) = message_head(reader)?;
            reader.u32()?;
            Head::Message { transactional, prefix, content: reader.rest() }
        }
        b'I' | b'U' | b'D' => Head::Row { relation: RelationId(reader.u32()?), new: kind == b'I' },
        _ => return Err(strange),
    })
}

fn read_segment(reader: &mut Reader<'_>) -> Result<Segment, Fault> {
    let strange = reader.fault("no part of a streamed transaction");
    match reader.u8()? {
        b'E' => reader.end().map(|()| Segment::Stop),
        b'O' | b'Y' => Ok(Segment::Nothing),
        b'R' => Ok(Segment::Relation(Xid(reader.u32()?))),
        b'I' | b'U' | b'D' | b'T' | b'M' => Ok(Segment::Change(Xid(reader.u32()?))),
        _ => Err(strange),
    }
}

fn read_streamed<'a>(reader: &mut Reader<'a>) -> Result<(Xid, Change<'a>), Fault> {
    let strange = reader.fault("no change of a streamed transaction");
    let kind = reader.u8()?;
    if !b"RIUDTMY".contains(&kind) {
        return Err(strange);
    }
    let xid = Xid(reader.u32()?);
    Ok((xid, read_change(reader, kind, strange)?))
}

fn read<'a>(reader: &mut Reader<'a>) -> Result<Change<'a>, Fault> {
    let unknown = reader.fault("an unknown kind of message");
    let prepared = reader.fault("a prepared transaction, which was not asked for");
    Ok(match reader.u8()? {
        b'B' => Change::Begin {
            final_lsn: reader.lsn()?,
            timestamp: Timestamp(reader.i64()?),
            xid: Xid(reader.u32()?),
        },
        b'C' => {
            let fault = reader.fault("unknown commit flags");
            if reader.u8()? != 0 {
                return Err(fault);
            }
            Change::Commit {
                commit_lsn: reader.lsn()?,
                end_lsn: reader.lsn()?,
                timestamp: Timestamp(reader.i64()?),
            }
        }
        b'S' => {
            let xid = Xid(reader.u32()?);
            let fault = reader.fault("unknown flags of a stream's start");
            let first = match reader.u8()? {
                0 => false,
                1 => true,
                _ => return Err(fault),
            };
            Change::StreamStart { xid, first }
        }
        b'E' => Change::StreamStop,
        b'c' => {
            let xid = Xid(reader.u32()?);
            let fault = reader.fault("unknown commit flags");
            if reader.u8()? != 0 {
                return Err(fault);
            }
            Change::StreamCommit {
                xid,
                commit_lsn: reader.lsn()?,
                end_lsn: reader.lsn()?,
                timestamp: Timestamp(reader.i64()?),
            }
        }
        b'A' => Change::StreamAbort { xid: Xid(reader.u32()?), subtransaction: Xid(reader.u32()?) },
        b'b' | b'P' | b'K' | b'r' | b'p' => return Err(prepared),
        kind => return read_change(reader, kind, unknown),
    })
}

/// What a transaction consists of; `kind` has been read.
fn read_change<'a>(reader: &mut Reader<'a>, kind: u8, unknown: Fault) -> Result<Change<'a>, Fault> {
    Ok(match kind {
        b'M' => message(reader)?,
        b'R' => Change::Relation(Relation::read(reader)?),
        b'Y' => {
            Change::Type { oid: reader.u32()?, namespace: reader.text()?, name: reader.text()? }
        }
        b'O' => Change::Origin { commit_lsn: reader.lsn()?, name: reader.text()? },
        b'I' => {
            let relation = RelationId(reader.u32()?);
            let fault = reader.fault("no new row in an insert");
            if reader.u8()? != b'N' {
                return Err(fault);
            }
            Change::Insert { relation, new: Tuple::read(reader)? }
        }
        b'U' => update(reader)?,
        b'D' => {
            let relation = RelationId(reader.u32()?);
            let fault = reader.fault("no old row in a delete");
            let kind = reader.u8()?;
            Change::Delete { relation, old: old_row(reader, kind)?.ok_or(fault)? }
        }
        b'T' => truncate(reader)?,
        _ => return Err(unknown),
    })
}

fn message<'a>(reader: &mut Reader<'a>) -> Result<Change<'a>, Fault> {
    let (transactional, lsn, prefix) = message_head(reader)?;
    Ok(Change::Message { transactional, lsn, prefix, content: reader.sized()? })
}

fn message_head<'a>(reader: &mut Reader<'a>) -> Result<(bool, Lsn, &'a str), Fault> {
    let fault = reader.fault("unknown message flags");
    let transactional = match reader.u8()? {
        0 => false,
        1 => true,
        _ => return Err(fault),
    };
    let lsn = reader.lsn()?;
    // Where the database has no encoding (SQL_ASCII), anybody may write a prefix of any bytes. One
    // that is no text is of nobody that the relay knows, as is the empty one.
    let prefix = str::from_utf8(reader.until_zero()?).unwrap_or_default();
    Ok((transactional, lsn, prefix))
}

fn update<'a>(reader: &mut Reader<'a>) -> Result<Change<'a>, Fault> {
    let relation = RelationId(reader.u32()?);
    let mut fault = reader.fault("no row in an update");
    let mut kind = reader.u8()?;
    let old = old_row(reader, kind)?;
    if old.is_some() {
        fault = reader.fault("no new row in an update");
        kind = reader.u8()?;
    }
    if kind != b'N' {
        return Err(fault);
    }
    Ok(Change::Update { relation, old, new: Tuple::read(reader)? })
}

fn old_row<'a>(reader: &mut Reader<'a>, kind: u8) -> Result<Option<OldRow<'a>>, Fault> {
    Ok(match kind {
        b'K' => Some(OldRow::Key(Tuple::read(reader)?)),
        b'O' => Some(OldRow::Full(Tuple::read(reader)?)),
        _ => None,
    })
}

fn truncate<'a>(reader: &mut Reader<'a>) -> Result<Change<'a>, Fault> {
    let fault = reader.fault("a count of tables that does not fit the message");
    let count = reader.u32()? as usize;
    let options = reader.fault("unknown truncate options");
    let flags = reader.u8()?;
    if flags > 3 {
        return Err(options);
    }
    // Also keeps a count from allocating more than the message holds.
    if reader.rest().len() / size_of::<u32>() != count {
        return Err(fault);
    }
    let mut relations = Vec::with_capacity(count);
    for _ in 0..count {
        relations.push(RelationId(reader.u32()?));
    }
    Ok(Change::Truncate { relations, cascade: flags & 1 != 0, restart_identity: flags & 2 != 0 })
}
