//! A child process that is waited for with a bound, and its children.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::error::{Error, Kind};
use crate::home::Home;

const POLL: Duration = Duration::from_millis(5);

/// How much of a log an error carries.
const LOG_END_BYTES: u64 = 2_000;

/// A process in a [`Home`].
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pid: Pid,
    pid_file: PathBuf,
}

impl Process {
    pub(crate) fn spawn(home: &Home, command: &mut Command) -> Result<Self, Error> {
        let child = command
            .spawn()
            .map_err(|error| Error::new(Kind::Server, "cannot start a process").caused_by(error))?;
        let pid = Pid::from_child(&child);
        Ok(Process { child, pid, pid_file: home.pid_file() })
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // Fails only when the process has ended, which is what the caller finds out next.
        kill_process(self.pid, signal).ok();
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>, Error> {
        let status = self.child.try_wait().map_err(|error| {
            Error::new(Kind::Server, "cannot wait for a process").caused_by(error)
        })?;
        if status.is_some() {
            // The id may soon be somebody else's. The file can be gone with its directory.
            fs::remove_file(&self.pid_file).ok();
        }
        Ok(status)
    }

    /// How it ended, if it does within the bound.
    pub(crate) fn wait(&mut self, bound: Duration) -> Result<Option<ExitStatus>, Error> {
        let deadline = Instant::now() + bound;
        loop {
            let status = self.ended()?;
            if status.is_some() || Instant::now() >= deadline {
                return Ok(status);
            }
            thread::sleep(POLL);
        }
    }

    /// Halts it and all its children, by SIGSTOP. Answers when none of them runs any more.
    ///
    /// The parent comes first, so that it starts no child that is not seen here.
    pub(crate) fn pause(&self, bound: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + bound;
        self.signal(Signal::STOP);
        wait_until_halted(&[self.pid], deadline)?;
        let children = children(self.pid);
        for child in &children {
            kill_process(*child, Signal::STOP).ok();
        }
        wait_until_halted(&children, deadline)
    }

    /// Lets it and its children go on; changes nothing when they were not halted.
    pub(crate) fn resume(&self) {
        for child in children(self.pid) {
            kill_process(child, Signal::CONT).ok();
        }
        self.signal(Signal::CONT);
    }

    /// Ends it and all its children without a chance to write anything, and waits until they are
    /// gone.
    ///
    /// Postgres's children each lead a process group of their own, so that a signal to the group
    /// does not reach them. The parent is halted first: it can no longer start new ones, and while
    /// it does not collect the ended ones their ids stay theirs.
    pub(crate) fn kill(&mut self, bound: Duration) -> Result<(), Error> {
        self.signal(Signal::STOP);
        let children = children(self.pid);
        for child in &children {
            kill_process(*child, Signal::KILL).ok();
        }
        self.signal(Signal::KILL);
        let deadline = Instant::now() + bound;
        while self.ended()?.is_none() || children.iter().any(|child| alive(*child)) {
            if Instant::now() >= deadline {
                return Err(Error::new(Kind::Server, "a process outlives SIGKILL"));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

/// Runs a tool to its end, its output in `NAME.log` of the home.
pub(crate) fn run(
    home: &Home,
    name: &str,
    command: &mut Command,
    bound: Duration,
) -> Result<(), Error> {
    let log = home.path().join(format!("{name}.log"));
    log_to(command, &log)?;
    let mut process = Process::spawn(home, command)?;
    match process.wait(bound)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => {
            let end = log_end(&log);
            Err(Error::new(Kind::Server, format!("{name} failed ({status}):\n{end}")))
        }
        None => {
            process.kill(bound)?;
            let end = log_end(&log);
            Err(Error::new(Kind::Server, format!("{name} ran into its bound of {bound:?}:\n{end}")))
        }
    }
}

/// Sends both outputs to a file, at its end.
pub(crate) fn log_to(command: &mut Command, log: &Path) -> Result<(), Error> {
    let failed = |error| {
        Error::new(Kind::Server, format!("cannot write {}", log.display())).caused_by(error)
    };
    let file = File::options().create(true).append(true).open(log).map_err(failed)?;
    command.stdout(file.try_clone().map_err(failed)?).stderr(file);
    Ok(())
}

/// The last lines of a log, for an error; empty when there is none.
pub(crate) fn log_end(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_END_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    };
    read().unwrap_or_default()
}

/// The processes that this one started.
pub(crate) fn children(parent: Pid) -> Vec<Pid> {
    table()
        .into_iter()
        .filter(|row| row.parent == parent.as_raw_nonzero().get())
        .filter_map(|row| Pid::from_raw(row.pid))
        .collect()
}

/// Whether it has not ended. One that ended and that nobody collects, as in a container without
/// an init process, does not run.
pub(crate) fn alive(pid: Pid) -> bool {
    test_kill_process(pid).is_ok()
        && table()
            .iter()
            .any(|row| row.pid == pid.as_raw_nonzero().get() && row.state != State::Ended)
}

/// One that ends instead of halting does not run either.
fn wait_until_halted(pids: &[Pid], deadline: Instant) -> Result<(), Error> {
    loop {
        let table = table();
        let runs = |pid: &Pid| {
            let row = table.iter().find(|row| row.pid == pid.as_raw_nonzero().get());
            row.is_some_and(|row| row.state == State::Runs)
        };
        if !pids.iter().any(runs) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::new(Kind::Server, "a process does not halt at SIGSTOP"));
        }
        thread::sleep(POLL);
    }
}

pub(crate) struct Row {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Runs,
    Halted,
    Ended,
}

impl State {
    /// From the letter that /proc and `ps` show.
    fn of(letter: &str) -> Self {
        match letter.chars().next() {
            Some('Z' | 'X') => State::Ended,
            Some('T' | 't') => State::Halted,
            _ => State::Runs,
        }
    }
}

/// All processes of this machine, from /proc where there is one (slim images have no `ps`), else
/// from `ps`.
fn table() -> Vec<Row> {
    let Ok(entries) = fs::read_dir("/proc") else {
        let output = Command::new("/bin/ps").args(["-A", "-o", "pid=,ppid=,state="]).output();
        let text = output.map(|output| output.stdout).unwrap_or_default();
        return String::from_utf8_lossy(&text).lines().filter_map(row_of_ps).collect();
    };
    entries
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok())
        .filter_map(|stat| row_of_stat(&stat))
        .collect()
}

fn row_of_ps(line: &str) -> Option<Row> {
    let mut fields = line.split_whitespace();
    let pid = fields.next()?.parse().ok()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Row { pid, parent, state: State::of(fields.next()?) })
}

/// `PID (NAME) STATE PARENT …`, where the name can hold anything, spaces and brackets too.
pub(crate) fn row_of_stat(stat: &str) -> Option<Row> {
    let (pid, _) = stat.split_once(' ')?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = State::of(fields.next()?);
    Some(Row { pid: pid.parse().ok()?, parent: fields.next()?.parse().ok()?, state })
}
