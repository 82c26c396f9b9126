//! The shop with its page, as a person has it who runs the program, asked over HTTP.

use std::fs;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, interval, timeout};
use uuid::Uuid;

use crate::endpoint::{Answer, Endpoint};

/// It is open so long after it got its servers, on a busy machine and without optimisation. Those who break servers take
/// turns before that, for which the stack has a bound of its own, and ends the shop.
const OPEN_MAX: Duration = Duration::from_secs(300);
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// A server is stopped, or started again, by then.
const SWITCH_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A shop that is open. It ends when this is dropped, or when this process does.
#[derive(Debug)]
pub struct Shop {
    child: Child,
    log: watch::Receiver<String>,
    front: Endpoint,
}

impl Shop {
    /// Opens one, with this program and more environment.
    ///
    /// # Panics
    ///
    /// When it does not open.
    pub async fn open(program: &Path, environment: &[(&str, &str)]) -> Self {
        assert!(
            program.is_file(),
            "{} is missing: `cargo test --workspace` builds it, and so does `cargo build -p shop`",
            program.display()
        );
        let mut child = Command::new(program)
            .args(["--http", "127.0.0.1:0"])
            .envs(environment.iter().copied())
            // It ends with its standard input.
            .env("SHOP_CHILD", "test")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the shop starts");
        let (append, mut log) = watch::channel(String::new());
        let append = Arc::new(append);
        tokio::spawn(keep(child.stdout.take().expect("it is piped"), Arc::clone(&append)));
        tokio::spawn(keep(child.stderr.take().expect("it is piped"), append));
        let open = "the shop is open: http://";
        let has_turn = log.wait_for(|log| log.contains("stack: Postgres")).await.is_ok();
        let is_open = |log: &String| log.contains(open);
        let opened =
            has_turn && matches!(timeout(OPEN_MAX, log.wait_for(is_open)).await, Ok(Ok(_)));
        let said = log.borrow().clone();
        assert!(opened, "the shop has not opened within {OPEN_MAX:?}:\n{said}");
        let (_, address) = said.split_once(open).expect("it says so");
        let front = Endpoint::at(address.lines().next().unwrap_or_default().trim());
        Shop { child, log, front }
    }

    /// The storefront.
    pub fn front(&self) -> &Endpoint {
        &self.front
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        self.log.borrow().clone()
    }

    /// Where a process of the shop serves, by the line in which the shop has said so.
    ///
    /// # Panics
    ///
    /// When there is no such process.
    pub fn process(&self, name: &str) -> Endpoint {
        Endpoint::at(self.word(name, 1))
    }

    /// The number of a process of the shop, as it was started first.
    ///
    /// # Panics
    ///
    /// When there is no such process.
    pub fn pid(&self, name: &str) -> Pid {
        Pid::from_raw(self.word(name, 3).parse().expect("it is a number")).expect("it is one")
    }

    /// The broker that it has started.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn broker(&self) -> Pid {
        let broker = self.descendants().into_iter().find(|pid| name_of(*pid) == "java");
        broker.expect("it has started a broker")
    }

    /// Every process that it has started, and those that these have started.
    ///
    /// # Panics
    ///
    /// When it has ended.
    pub fn descendants(&self) -> Vec<Pid> {
        let mut found = vec![self.own_pid()];
        let mut at = 0;
        while let Some(parent) = found.get(at) {
            let children = children_of(*parent);
            found.extend(children);
            at += 1;
        }
        found.split_off(1)
    }

    fn own_pid(&self) -> Pid {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        pid.expect("it runs")
    }

    fn word(&self, name: &str, place: usize) -> String {
        let log = self.log();
        let line = log.lines().find(|line| line.split_whitespace().next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("{name} was not started:\n{log}"));
        line.split_whitespace().nth(place).expect("the line has so many words").to_owned()
    }

    /// Sends a request with a body to the storefront.
    ///
    /// # Panics
    ///
    /// When there is no answer.
    pub async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let headers = format!("content-type: application/json\r\n{headers}");
        let sent = timeout(ANSWER_MAX, self.front.send(method, path, &headers, body));
        sent.await.expect("the storefront answers in time")
    }

    /// Places an order with this key.
    ///
    /// # Panics
    ///
    /// When there is no answer.
    pub async fn place(&self, key: Uuid, wish: &Value) -> Answer {
        let headers = format!("idempotency-key: {key}\r\n");
        self.ask("POST", "/api/orders", &headers, &wish.to_string()).await
    }

    /// What the storefront answers as JSON.
    ///
    /// # Panics
    ///
    /// When it is none.
    pub async fn json(&self, path: &str) -> Value {
        let answer = self.front.get(path).await;
        serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("{path}: {answer:?}"))
    }

    /// Switches a trouble on or off, and waits until it is.
    ///
    /// # Panics
    ///
    /// When that is refused, or fails.
    pub async fn trouble(&self, name: &str, on: bool) {
        let body = serde_json::json!({ "on": on }).to_string();
        let answer = self.ask("POST", &format!("/api/troubles/{name}"), "", &body).await;
        assert!([202, 204].contains(&answer.code), "{name}: {answer:?}");
        let switched = |state: &Value| {
            let troubles = state.pointer("/stage/troubles").and_then(Value::as_array);
            let is = |of: &Value, key: &str, value: Value| of.get(key) == Some(&value);
            troubles.into_iter().flatten().any(|it| {
                is(it, "name", name.into())
                    && is(it, "changing", false.into())
                    && is(it, "on", on.into())
            })
        };
        self.until("/api/state", SWITCH_MAX, switched).await;
    }

    /// Waits until what the storefront answers is as it should be.
    ///
    /// # Panics
    ///
    /// When it is not within `limit`.
    #[track_caller]
    pub fn until(
        &self,
        path: &str,
        limit: Duration,
        enough: impl Fn(&Value) -> bool,
    ) -> impl Future<Output = Value> {
        let caller = std::panic::Location::caller();
        async move {
            let since = Instant::now();
            let mut look = interval(LOOK_EVERY);
            loop {
                look.tick().await;
                let answer = self.front.get(path).await;
                if let Ok(value) = serde_json::from_str(&answer.body)
                    && enough(&value)
                {
                    return value;
                }
                assert!(
                    since.elapsed() < limit,
                    "{caller}: after {limit:?} {path} says {answer:?}\n{}",
                    self.log()
                );
            }
        }
    }

    /// Waits until an order stands so.
    ///
    /// # Panics
    ///
    /// When it does not within `limit`.
    #[track_caller]
    pub fn order_is(
        &self,
        order: Uuid,
        state: &str,
        limit: Duration,
    ) -> impl Future<Output = Value> {
        let (order, state) = (order.to_string(), state.to_owned());
        let stands = move |orders: &Value| {
            let mut orders = orders.as_array().into_iter().flatten();
            orders.any(|it| it["id"] == order.as_str() && it["state"] == state.as_str())
        };
        self.until("/api/orders", limit, stands)
    }

    /// SIGTERM.
    ///
    /// # Panics
    ///
    /// When it has ended before.
    pub fn ask_to_stop(&self) {
        kill_process(self.own_pid(), Signal::TERM).expect("it can be told");
    }

    /// Has it close, by SIGTERM, and waits until nothing of it is left.
    ///
    /// # Panics
    ///
    /// When it does not end well within `limit`, or leaves a process behind.
    pub async fn closes(&mut self, limit: Duration) {
        let started = self.descendants();
        self.ask_to_stop();
        let status = self.ends(limit).await;
        assert!(status.success(), "{status}: {}", self.log());
        let left = || started.iter().copied().filter(|pid| runs(*pid)).collect::<Vec<_>>();
        let since = Instant::now();
        let mut look = interval(LOOK_EVERY);
        while !left().is_empty() {
            look.tick().await;
            let names: Vec<String> = left().into_iter().map(name_of).collect();
            assert!(since.elapsed() < limit, "still there after {limit:?}: {names:?}");
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// When it does not end within `limit`.
    pub async fn ends(&mut self, limit: Duration) -> ExitStatus {
        let input = self.child.stdin.take();
        let ended = timeout(limit, self.child.wait()).await;
        drop(input);
        let ended = ended.unwrap_or_else(|_| panic!("no end within {limit:?}:\n{}", self.log()));
        ended.expect("a child can be waited for")
    }
}

/// The processes that one has started and that run, by what Linux tells of each of its threads.
fn children_of(pid: Pid) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
    let threads = threads.into_iter().flatten().flatten();
    let lists = threads.filter_map(|it| fs::read_to_string(it.path().join("children")).ok());
    let lists: Vec<String> = lists.collect();
    let pids = lists.iter().flat_map(|list| list.split_whitespace());
    pids.filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// The name of its program.
fn name_of(pid: Pid) -> String {
    let name = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
    name.unwrap_or_default().trim_end().to_owned()
}

/// Whether it has not ended. Who is only waited for by nobody has.
fn runs(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

async fn keep(from: impl AsyncRead + Unpin, to: Arc<watch::Sender<String>>) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        to.send_modify(|log| {
            log.push_str(&line);
            log.push('\n');
        });
    }
}
