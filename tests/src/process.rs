//! A process under test, with everything it has written.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

/// The program whose roles the processes under test play (see [`crate::node`]).
#[derive(Clone, Debug)]
pub struct Node {
    program: PathBuf,
    /// What makes the program play a role at all, where it is more than `node`.
    switch: Option<&'static str>,
}

impl Node {
    /// The first argument that makes `prove` a `node`: it is one program, so that one command
    /// builds all that it needs.
    pub const SWITCH: &str = "--node";

    /// The `node` program at this path.
    pub fn at(program: impl Into<PathBuf>) -> Self {
        Node { program: program.into(), switch: None }
    }

    /// Another program that was built with this one.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.program.with_file_name(name)
    }

    /// The program that runs now, started again with [`Node::SWITCH`].
    ///
    /// # Panics
    ///
    /// When it has no path.
    pub fn this_program() -> Self {
        let program = std::env::current_exe().expect("a running program has a path");
        Node { program, switch: Some(Node::SWITCH) }
    }
}

/// A process of the [`Node`] program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: watch::Receiver<String>,
}

impl Process {
    /// Starts the program with these arguments, and with nothing of our environment but where to find things.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn start<A: AsRef<std::ffi::OsStr>>(
        node: &Node,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        let mut command = Command::new(&node.program);
        command.args(node.switch).args(arguments).env_clear();
        if let Some(level) = std::env::var_os("RUST_LOG") {
            command.env("RUST_LOG", level);
        }
        // The process ends when its standard input does.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().expect("the node program starts");
        let stderr = child.stderr.take().expect("standard error is piped");
        let stdout = child.stdout.take().expect("standard output is piped");
        let (append, log) = watch::channel(String::new());
        let append = Arc::new(append);
        tokio::spawn(keep(stderr, Arc::clone(&append)));
        tokio::spawn(keep(stdout, append));
        Process { child, log }
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        self.log.borrow().clone()
    }

    /// Waits until it has written this text, or has written it before.
    ///
    /// # Panics
    ///
    /// When it does not within `limit`, with all that it has written.
    #[track_caller]
    pub fn says(&mut self, text: &str, limit: Duration) -> impl Future<Output = ()> {
        self.says_times(text, 1, limit)
    }

    /// Waits until it has written this text so many times.
    ///
    /// # Panics
    ///
    /// When it does not within `limit`, with all that it has written.
    #[track_caller]
    pub fn says_times(
        &mut self,
        text: &str,
        times: usize,
        limit: Duration,
    ) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let said = self.log.wait_for(|log| log.matches(text).count() >= times);
            if !matches!(timeout(limit, said).await, Ok(Ok(_))) {
                let log = self.log();
                panic!("{caller}: {text:?} was not said {times} times in {limit:?}:\n{log}");
            }
        }
    }

    /// Waits for its end, and for the last of what it wrote.
    ///
    /// # Panics
    ///
    /// When it does not end within `limit`, with all that it has written.
    #[track_caller]
    pub fn ends(&mut self, limit: Duration) -> impl Future<Output = ExitStatus> {
        let caller = std::panic::Location::caller();
        async move {
            let end = async {
                // Tokio's wait closes standard input first, which would end the process.
                let input = self.child.stdin.take();
                let status = self.child.wait().await.expect("a child can be waited for");
                drop(input);
                while self.log.changed().await.is_ok() {}
                status
            };
            match timeout(limit, end).await {
                Ok(status) => status,
                Err(_) => panic!("{caller}: no end within {limit:?}:\n{}", self.log()),
            }
        }
    }

    /// The most memory that it has had resident, where the system tells.
    pub fn resident_bytes_max(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kilobytes * 1024)
    }

    /// The memory that it has now: what `ps` calls its resident set.
    ///
    /// # Panics
    ///
    /// When it has ended and was waited for, or nobody tells.
    pub fn resident_bytes(&self) -> u64 {
        let pid = self.child.id().expect("the process was not waited for").to_string();
        let asked = std::process::Command::new("ps").args(["-o", "rss=", "-p", &pid]).output();
        let answer = asked.expect("ps is installed").stdout;
        let kilobytes = String::from_utf8_lossy(&answer).trim().parse::<u64>();
        kilobytes.expect("ps answers with a number") * 1024
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// When it has ended and was waited for.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(pid.expect("the process was not waited for"), signal)
            .expect("a child can be signalled");
    }
}

/// Appends each line to what the process has written.
async fn keep(output: impl AsyncRead + Unpin, append: Arc<watch::Sender<String>>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        append.send_modify(|log| {
            log.push_str(&line);
            log.push('\n');
        });
    }
}

impl Drop for Process {
    /// A test that fails shows what its processes said.
    #[expect(clippy::print_stderr, reason = "a failing test shows what was printed")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("a process had written:\n{}", self.log());
        }
    }
}
