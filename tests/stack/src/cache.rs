//! Files that are fetched once and kept for every later start.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Kind};
use crate::home::{Farewell, Home};
use crate::stack::tell;

/// The longest wait for another process that is filling the same entry, or breaking its servers.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(20 * 60);
/// The longest wait that nobody is told of.
const LOCK_WAIT_SILENT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// The entry of this name, filled first if it is not there.
///
/// `fill` gets a directory of its own and answers with the part of it that becomes the entry. The
/// entry appears at once and whole, by a rename under a lock: test binaries that start together
/// fetch it once, and a start that is killed leaves nothing behind.
pub(crate) fn entry(
    cache: &Path,
    name: &str,
    fill: impl FnOnce(&Home) -> Result<PathBuf, Error>,
) -> Result<PathBuf, Error> {
    let entry = cache.join(name);
    if entry.exists() {
        return Ok(entry);
    }
    let _lock = lock(cache, name)?;
    if entry.exists() {
        return Ok(entry);
    }
    let home = Home::create(cache, &format!("fetch_{name}"), Farewell::Kill, None)?;
    let filled = fill(&home)?;
    fs::rename(filled, &entry).map_err(|error| {
        Error::new(Kind::Download, format!("cannot fill {}", entry.display())).caused_by(error)
    })?;
    Ok(entry)
}

/// Holds the lock of this name until the file is closed, which also happens when we are killed.
pub(crate) fn lock(cache: &Path, name: &str) -> Result<File, Error> {
    let path = cache.join(format!("{name}.lock"));
    let failed = |error| {
        Error::new(Kind::Server, format!("cannot lock {}", path.display())).caused_by(error)
    };
    fs::create_dir_all(cache).map_err(failed)?;
    let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
    let deadline = Instant::now() + LOCK_WAIT_MAX;
    let mut told_after = Some(Instant::now() + LOCK_WAIT_SILENT);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                let text = format!("{} stays locked by another process", path.display());
                return Err(Error::new(Kind::Server, text));
            }
            Err(TryLockError::WouldBlock) => {
                if told_after.take_if(|after| Instant::now() >= *after).is_some() {
                    tell(&format!("waiting for the process that holds {}", path.display()));
                }
                thread::sleep(POLL);
            }
        }
    }
}
