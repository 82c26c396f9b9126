//! Where the password comes from, each time that it is asked for.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::error::{Error, Kind};
use crate::native::process::kill_group;

/// No password is longer; a file of another kind, named by mistake, may be.
const PASSWORD_BYTES_MAX: u64 = 64 * 1024;

/// A source of the password. Passwords of managed servers expire within minutes, so a file and a
/// command are read anew at each log-in.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Password {
    Text(String),
    /// A file that holds it and nothing else.
    File(PathBuf),
    /// A command for `sh` that prints it.
    Command(String),
}

impl Password {
    /// The password, without the end of its line. A command may take so long; of a file the caller
    /// bounds the time.
    pub(super) async fn read(&self, limit: Duration) -> Result<Vec<u8>, Error> {
        match self {
            Password::Text(text) => Ok(text.clone().into_bytes()),
            Password::File(path) => {
                let failed = || {
                    Error::new(
                        Kind::Config,
                        format!("cannot read password_file {}", path.display()),
                    )
                };
                let path = path.clone();
                tokio::task::spawn_blocking(move || {
                    use std::io::Read;
                    let mut bytes = Vec::new();
                    std::fs::File::open(path)?
                        .take(PASSWORD_BYTES_MAX + 1)
                        .read_to_end(&mut bytes)?;
                    Ok(bytes)
                })
                .await
                .map_err(|error| failed().caused_by(error))?
                .map_err(|error: std::io::Error| failed().caused_by(error))
                .and_then(|bytes| checked(bytes, "password_file"))
            }
            Password::Command(command) => run_within(command, limit).await,
        }
    }
}

async fn run_within(command: &str, limit: Duration) -> Result<Vec<u8>, Error> {
    timeout(limit, run(command)).await.unwrap_or_else(|_| {
        let text = format!("password_command has not ended within {limit:?}");
        Err(Error::new(Kind::Unavailable, text).hint(
            "run it by hand as the relay's user: it must print the password and end; \
             connect_timeout in the database url gives it more time",
        ))
    })
}

/// A command's process and all that it has started; they end with this.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0
            && let Err(error) = kill_group(leader)
        {
            tracing::debug!(%error, "password_command may still run");
        }
    }
}

/// What the command prints; dropping the future kills it and what it has started. Neither its output nor what it says on
/// standard error, which goes to ours, comes into an error's text.
async fn run(command: &str) -> Result<Vec<u8>, Error> {
    let failed = |text: String| Error::new(Kind::Unavailable, format!("password_command {text}"));
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let mut child = Command::from(shell)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed("cannot be started".into()).caused_by(error))?;
    // Dropped before the child, which stands for the group's number as long as it is not waited for.
    let mut group = Group(child.id());
    let output = child.stdout.take().expect("standard output is piped");
    let mut bytes = Vec::new();
    output
        .take(PASSWORD_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .await
        .map_err(|error| failed("cannot be read from".into()).caused_by(error))?;
    let bytes = checked(bytes, "password_command")?;
    let status = child
        .wait()
        .await
        .map_err(|error| failed("is not there to wait for".into()).caused_by(error))?;
    group.0 = None;
    if !status.success() {
        return Err(failed(format!("failed: {status}")).hint(
            "run it by hand as the relay's user; what it complains of is in the relay's log",
        ));
    }
    // A command that fails prints nothing: its status is the better reason.
    if bytes.is_empty() { Err(failed("prints nothing".into())) } else { Ok(bytes) }
}

fn checked(mut bytes: Vec<u8>, what: &str) -> Result<Vec<u8>, Error> {
    let fault = |text: &str| Error::new(Kind::Config, format!("{what} {text}"));
    if bytes.len() as u64 > PASSWORD_BYTES_MAX {
        return Err(fault("gives more than 64 KiB, which is no password"));
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    // The protocol ends the password with a zero byte.
    if bytes.contains(&0) {
        return Err(fault("gives bytes that are no text"));
    }
    if bytes.is_empty() && what == "password_file" {
        return Err(fault("is empty"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Password, run, run_within};
    use crate::error::{Error, Kind};

    const DEADLINE: Duration = Duration::from_secs(30);

    async fn read(password: Password) -> Result<String, Error> {
        password.read(DEADLINE).await.map(|bytes| String::from_utf8(bytes).unwrap())
    }

    async fn command(text: &str) -> Result<String, Error> {
        read(Password::Command(text.to_owned())).await
    }

    #[tokio::test]
    async fn a_command_prints_the_password() {
        assert_eq!(command("echo se cret").await.unwrap(), "se cret");
        assert_eq!(command("printf 'a\\r\\n'").await.unwrap(), "a");
        assert_eq!(command("printf 'a\\n\\n'").await.unwrap(), "a\n");
    }

    #[tokio::test]
    async fn a_command_that_fails_is_named_without_its_output() {
        for (text, kind, expected) in [
            ("echo secret; exit 3", Kind::Unavailable, "exit status: 3"),
            ("true", Kind::Unavailable, "prints nothing"),
            ("yes secret", Kind::Config, "64 KiB"),
            ("printf 'secret\\0'", Kind::Config, "no text"),
        ] {
            let error = command(text).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(expected), "{error}");
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_named() {
        let error = run_within("exec sleep 778", Duration::from_millis(50)).await.unwrap_err();

        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(
            error.to_string().contains("password_command has not ended within 50ms"),
            "{error}"
        );
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn a_command_that_is_given_up_ends_with_all_that_it_has_started() {
        let path = std::env::temp_dir().join(tailrace_stack::unique("password_command"));
        let command = format!("sh -c 'echo $$ > {}; exec sleep 778'; true", path.display());
        let deadline = Instant::now() + DEADLINE;
        let mut running = Box::pin(run(&command));
        let pid = loop {
            tokio::select! {
                biased;
                ended = &mut running => panic!("{ended:?}"),
                () = tokio::task::yield_now() => {}
            }
            match std::fs::read_to_string(&path) {
                Ok(text) if text.ends_with('\n') => break text.trim_end().to_owned(),
                _ => assert!(Instant::now() < deadline, "the command does not start"),
            }
        };

        drop(running);

        // Nobody may have waited for it yet.
        let is_alive = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        while is_alive() {
            assert!(Instant::now() < deadline, "{pid} is still there");
            tokio::task::yield_now().await;
        }
        std::fs::remove_file(path).unwrap();
    }

    #[tokio::test]
    async fn a_file_is_read_anew_each_time() {
        let folder = std::env::temp_dir().join(tailrace_stack::unique("password_file"));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("password");
        let password = Password::File(path.clone());

        let missing = read(password.clone()).await.unwrap_err();
        std::fs::write(&path, "one\n").unwrap();
        let first = read(password.clone()).await.unwrap();
        std::fs::write(&path, "two").unwrap();
        let second = read(password.clone()).await.unwrap();
        std::fs::write(&path, "\n").unwrap();
        let empty = read(password).await.unwrap_err();

        std::fs::remove_dir_all(folder).unwrap();
        assert_eq!((first.as_str(), second.as_str()), ("one", "two"));
        assert_eq!((missing.kind(), empty.kind()), (Kind::Config, Kind::Config));
        assert!(missing.to_string().contains("password_file"), "{missing}");
    }
}
