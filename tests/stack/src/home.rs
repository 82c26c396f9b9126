//! A directory, and the process in it, that end with the process that made them.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::error::{Error, Kind};
use crate::unique::unique;

/// Outlives us to clean up. Its standard input is a pipe whose other end only we hold: reading
/// from it ends when we end, however that happens.
///
/// Moving the directory away first closes the race with a process that is being started at this
/// moment: either it has written its id before, then we see it, or it no longer can, then it never
/// gets to run (see `LAUNCHER`). The file can be there before its line is, hence the inner loop.
/// The signal goes to the process group, because a tool may have children of its own. A paused
/// server takes it only when it goes on; Postgres then ends those of its children that do not.
/// The waits are bounded: a second for the line, 8 for the process, then SIGKILL.
const WATCHER: &str = r#"
PATH=/usr/bin:/bin
trap '' HUP INT QUIT TERM
while read -r _; do :; done
mv "$1" "$1.gone" 2>/dev/null || exit 0
if [ -e "$1.gone/pid" ]; then
    tries=0
    until read -r pid <"$1.gone/pid" || [ "$tries" -ge 100 ]; do
        sleep 0.01
        tries=$((tries + 1))
    done
    tries=0
    kill -s "$2" -- "-$pid"
    kill -s CONT -- "-$pid"
    while kill -s 0 "$pid" && [ "$tries" -lt 160 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
    kill -s KILL -- "-$pid"
fi
rm -rf "$1.gone"
"#;

/// Leaves its process id where the watcher looks, then becomes the program.
const LAUNCHER: &str = r#"echo $$ >"$0/pid" && exec "$@""#;

const SHELL: &str = "/bin/sh";

/// A directory of ours with at most one process at a time.
///
/// Dropping it, and any other end of this process, ends what runs there and removes the directory.
#[derive(Debug)]
pub(crate) struct Home {
    path: PathBuf,
    watcher: Child,
    user: Option<User>,
}

/// The signal with which a process is told that its owner is gone.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Farewell {
    /// Postgres ends its children and frees its shared memory, without writing anything.
    Quit,
    Kill,
}

impl Home {
    /// Makes `parent/name_…`; the user, if any, owns it.
    pub(crate) fn create(
        parent: &Path,
        name: &str,
        farewell: Farewell,
        user: Option<User>,
    ) -> Result<Self, Error> {
        let path = parent.join(unique(name));
        let failed = |error| {
            Error::new(Kind::Server, format!("cannot make the directory {}", path.display()))
                .caused_by(error)
        };
        let farewell = match farewell {
            Farewell::Quit => "QUIT",
            Farewell::Kill => "KILL",
        };
        // The watcher comes first, so that no moment leaves a directory behind.
        let watcher = Command::new(SHELL)
            .args(["-c", WATCHER, "tailrace-stack-watcher"])
            .args([path.as_os_str(), OsStr::new(farewell)])
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| {
                Error::new(Kind::Server, format!("cannot run {SHELL}")).caused_by(error)
            })?;
        let home = Home { path: path.clone(), watcher, user };
        DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        home.give(&path).map_err(failed)?;
        Ok(home)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Hands a file or directory to the user that the process runs as.
    pub(crate) fn give(&self, path: &Path) -> std::io::Result<()> {
        match &self.user {
            Some(user) => chown(path, Some(user.uid), Some(user.gid)),
            None => Ok(()),
        }
    }

    /// The file that tells the watcher which process lives here.
    pub(crate) fn pid_file(&self) -> PathBuf {
        self.path.join("pid")
    }

    /// A command that will run in this directory, as its user and in a process group of its own,
    /// which the terminal's Ctrl-C does not reach.
    pub(crate) fn command<S: AsRef<OsStr>>(
        &self,
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new(SHELL);
        command
            .args(["-c", LAUNCHER])
            .arg(&self.path)
            .arg(program)
            .args(arguments)
            .current_dir(&self.path)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Closing the pipe is what the watcher waits for.
        drop(self.watcher.stdin.take());
        // It ends within its own bounds; there is nobody to tell if it could not be waited for.
        self.watcher.wait().ok();
    }
}

/// A user of this machine.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl User {
    /// The one that root runs Postgres as.
    pub(crate) fn unprivileged() -> Result<Self, Error> {
        let users = fs::read_to_string("/etc/passwd").map_err(|error| {
            Error::new(Kind::Server, "cannot read /etc/passwd").caused_by(error)
        })?;
        let find = |name: &str| {
            users.lines().find_map(|line| {
                let mut fields = line.split(':');
                let found = fields.next()? == name;
                let mut ids = fields.skip(1).map(str::parse);
                let (uid, gid) = (ids.next()?.ok()?, ids.next()?.ok()?);
                (found && uid != 0).then_some(User { uid, gid })
            })
        };
        find("postgres").or_else(|| find("nobody")).ok_or_else(|| {
            Error::new(
                Kind::Server,
                "Postgres does not run as root, and there is no user postgres or nobody to run it as",
            )
        })
    }

    /// Whether this user may enter the directory, by every step of the way.
    pub(crate) fn reaches(&self, directory: &Path) -> bool {
        directory.ancestors().all(|step| {
            fs::metadata(step).is_ok_and(|metadata| {
                let enter = if metadata.uid() == self.uid {
                    0o100
                } else if metadata.gid() == self.gid {
                    0o010
                } else {
                    0o001
                };
                metadata.mode() & enter != 0
            })
        })
    }
}
