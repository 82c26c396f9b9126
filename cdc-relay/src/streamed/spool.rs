//! Files for what does not fit into memory: one for each transaction that needs it.
//!
//! A file has no name: it is removed from its directory as soon as it is open, so that none
//! outlives the relay, however that ends. All calls that may wait for the disk run on a thread that
//! may block.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::log::Tail;
use crate::pgoutput::Xid;

/// Files that are open at once. Each is a transaction in progress that alone had more than fits
/// into memory beside the others; a process may open some hundred files more.
const FILES_MAX: usize = 128;

/// The files of the transactions in progress.
#[derive(Debug)]
pub(super) struct Spool {
    directory: PathBuf,
    bytes_max: u64,
    /// Of all files together.
    bytes: u64,
    files: HashMap<Xid, Spooled>,
}

#[derive(Debug)]
struct Spooled {
    file: Arc<File>,
    bytes: u64,
}

impl Spool {
    pub(super) fn new(directory: PathBuf, bytes_max: u64) -> Self {
        Spool { directory, bytes_max, bytes: 0, files: HashMap::new() }
    }

    /// Bytes of all files together.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes to the end of a transaction's file. After an error the spool is of no more use.
    pub(super) async fn append(&mut self, tail: Tail) -> io::Result<()> {
        let Tail { xid, at, chunks } = tail;
        let added: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        if self.bytes.saturating_add(added) > self.bytes_max {
            let full = format!("the spool is full: it may have {} bytes", self.bytes_max);
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, full));
        }
        let file = self.files.get(&xid).map(|spooled| Arc::clone(&spooled.file));
        if file.is_none() && self.files.len() >= FILES_MAX {
            let full = format!("the spool is full: it has {FILES_MAX} files");
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, full));
        }
        let directory = self.directory.clone();
        let file = blocking(move || {
            let file = match file {
                Some(file) => file,
                None => Arc::new(nameless(&directory)?),
            };
            let mut at = at;
            for chunk in &chunks {
                file.write_all_at(chunk, at)?;
                at += chunk.len() as u64;
            }
            Ok(file)
        })
        .await?;
        let spooled = self.files.entry(xid).or_insert(Spooled { file, bytes: 0 });
        spooled.bytes += added;
        self.bytes += added;
        Ok(())
    }

    /// Gives back what a transaction's file has beyond this length.
    pub(super) async fn cut(&mut self, xid: Xid, length: u64) -> io::Result<()> {
        let Some(spooled) = self.files.get_mut(&xid) else { return Ok(()) };
        if spooled.bytes <= length {
            return Ok(());
        }
        self.bytes -= spooled.bytes - length;
        spooled.bytes = length;
        let file = Arc::clone(&spooled.file);
        blocking(move || file.set_len(length)).await
    }

    /// The file of a transaction, if it has one.
    pub(super) fn file(&self, xid: Xid) -> Option<Arc<File>> {
        self.files.get(&xid).map(|spooled| Arc::clone(&spooled.file))
    }

    /// The transaction is over.
    pub(super) fn remove(&mut self, xid: Xid) {
        if let Some(spooled) = self.files.remove(&xid) {
            self.bytes -= spooled.bytes;
            // Giving back a large file takes the file system a while.
            drop(tokio::task::spawn_blocking(move || drop(spooled.file)));
        }
    }
}

/// Whether files can be made in this directory.
pub(crate) fn probe(directory: &Path) -> io::Result<()> {
    nameless(directory)?.write_all_at(&[0], 0)
}

/// A new file that nobody else can open.
fn nameless(directory: &Path) -> io::Result<File> {
    let path = directory.join(format!("cdc-relay-{}", Uuid::now_v7()));
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Runs what may wait for the disk on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(io::Error::other(error)),
        },
    }
}
