//! One run of the program, in an environment of its own.

use std::process::Stdio;
use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection};
use tailrace_stack::{Database, Needs, Stack};
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// No run takes longer.
const END_MAX: Duration = Duration::from_secs(60);

/// What a run answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    /// Standard output of a run that succeeded.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!((self.code, &*self.stderr), (Some(0), ""), "{self:?}");
        self.stdout
    }

    /// One error with this exit code, which names these things, and one way to mend it.
    #[track_caller]
    pub(crate) fn refuses(&self, code: i32, named: &[&str]) {
        let begins = |with: &str| self.stderr.lines().filter(|line| line.starts_with(with)).count();
        assert_eq!((self.code, &*self.stdout), (Some(code), ""), "{self:?}");
        assert_eq!((begins("error: "), begins("  mend: ")), (1, 1), "{self:?}");
        let mend = self.stderr.lines().find_map(|line| line.strip_prefix("  mend: "));
        assert_eq!(mend.map(|mend| self.stderr.matches(mend).count()), Some(1), "{self:?}");
        for name in named {
            assert!(self.stderr.contains(name), "{name:?} is not in {self:?}");
        }
    }
}

/// Runs the program with nothing in its environment but this `DATABASE_URL`.
pub(crate) async fn tailrace(database_url: &str, arguments: &[&str]) -> Answer {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailrace"));
    command.args(arguments).env_clear().env("DATABASE_URL", database_url);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ended = timeout(END_MAX, command.output()).await;
    let output = ended.unwrap_or_else(|_| panic!("{arguments:?} does not end"));
    let output = output.expect("the program starts");
    Answer {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("an answer is text"),
        stderr: String::from_utf8(output.stderr).expect("an error is text"),
    }
}

/// A database of its own on the server that all tests of this binary share.
pub(crate) async fn fresh(name: &str) -> (Database, PgConnection) {
    static STACK: OnceCell<Stack> = OnceCell::const_new();
    let stack =
        STACK.get_or_init(async || Stack::start(Needs::POSTGRES).await.expect("a stack")).await;
    let database = stack.postgres().fresh_database(name).await.expect("a database");
    let connecting = PgConnection::connect(database.url());
    let connection = timeout(END_MAX, connecting).await.expect("Postgres answers in time");
    let mut connection = connection.expect("the url is good");
    connection.execute("SET statement_timeout = '20s'").await.expect("a setting");
    (database, connection)
}

/// The URL for another role.
pub(crate) fn url_of_role(url: &str, role: &str, password: &str) -> String {
    let (_, place) = url.split_once('@').expect("the stack's url has a login");
    format!("postgres://{role}:{password}@{place}")
}
