//! Copies a directory with all that is in it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::home::Home;

/// Makes `to` a copy of `from`, owned by the user of the home.
///
/// Only those names are copied, at any depth, that `keeps` agrees to; it sees their paths below
/// `from`. A file that goes away in the meantime is none.
pub(crate) fn copy(
    from: &Path,
    to: &Path,
    home: &Home,
    keeps: &dyn Fn(&Path) -> bool,
) -> std::io::Result<()> {
    copy_below(from, Path::new(""), to, home, keeps)
}

fn copy_below(
    root: &Path,
    below: &Path,
    to: &Path,
    home: &Home,
    keeps: &dyn Fn(&Path) -> bool,
) -> std::io::Result<()> {
    let from = root.join(below);
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::metadata(&from)?.permissions())?;
    home.give(to)?;
    for entry in fs::read_dir(&from)? {
        let name = entry?.file_name();
        let (below, to) = (below.join(&name), to.join(&name));
        if keeps(&below) {
            match copy_entry(root, &below, &to, home, keeps) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                result => result?,
            }
        }
    }
    Ok(())
}

fn copy_entry(
    root: &Path,
    below: &Path,
    to: &Path,
    home: &Home,
    keeps: &dyn Fn(&Path) -> bool,
) -> std::io::Result<()> {
    let from = root.join(below);
    let kind = fs::symlink_metadata(&from)?.file_type();
    if kind.is_dir() {
        copy_below(root, below, to, home, keeps)
    } else if kind.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(&from)?, to)
    } else {
        fs::copy(&from, to)?;
        home.give(to)
    }
}
