//! A real browser, driven by WebDriver, in which pages are looked at as people do.
//!
//! Chromium and its driver are two Debian packages. The driver speaks JSON over HTTP
//! (<https://www.w3.org/TR/webdriver2/>), of which a test needs so little that a client library
//! would be more to keep than these requests.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tailrace_stack::unique;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::{Instant, interval, timeout};

use crate::endpoint::Endpoint;

/// Names of the program, in the order in which they are looked for.
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];
const DRIVER: &str = "chromedriver";

/// A browser starts by then, on a machine that has much else to do.
const START_MAX: Duration = Duration::from_secs(60);
/// A command is done by then.
const ANSWER_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// An element that moves is looked for so often.
const LOOKS_MAX: u32 = 5;

/// Ends driver and browser, whose process ids it reads, when the pipe to it is closed: when the
/// [`Browser`] is dropped, or when the process that had it is killed.
const WATCHER: &str = r#"
trap '' HUP INT QUIT TERM
pids=
while read -r pid; do pids="$pids $pid"; done
# A browser whose start was not answered is known as a child of the driver alone.
for pid in $pids; do pids="$pids $(cat /proc/$pid/task/*/children 2>/dev/null)"; done
[ -z "$pids" ] || kill -9 $pids 2>/dev/null
# What the browser's own children still write is gone with them in a moment.
for again in $(seq 50); do rm -rf "$1" 2>/dev/null && break; done
"#;

/// What is not about the page: updates, reports, a profile of a person.
const SWITCHES: [&str; 13] = [
    "--headless=new",
    // Nothing but our own pages is opened; and root, as in a container, has no sandbox.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    // What it would ask of other hosts comes to nothing.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
];

/// Finds what keeps people from reading a page, and no rule of axe-core covers.
const FAULTS: &str = include_str!("browser/faults.js");
/// Finds what breaks a rule of axe-core.
const BROKEN_RULES: &str = include_str!("browser/axe.js");

/// Roles that mean nothing to a listener without a name, of which axe-core knows most.
const NAMED_ROLES: [&str; 12] = [
    "button", "link", "image", "img", "textbox", "combobox", "slider", "heading", "checkbox",
    "radio", "switch", "article",
];

/// A window with one page. Dropping it ends the browser and removes its profile.
#[derive(Debug)]
pub struct Browser {
    driver: Endpoint,
    session: String,
    /// The script of axe-core.
    axe: String,
    /// Ends it.
    _watcher: Watcher,
}

/// What a page is looked at with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// `light` or `dark`.
    pub scheme: &'static str,
    /// Width and height in pixels, of a phone or of a desk.
    pub size: (u32, u32),
}

impl View {
    /// On a narrow phone and on a desk, each in light and in dark.
    pub const ALL: [View; 4] = [
        View { scheme: "light", size: (1280, 900) },
        View { scheme: "dark", size: (1280, 900) },
        View { scheme: "light", size: (360, 740) },
        View { scheme: "dark", size: (360, 740) },
    ];
}

impl Browser {
    /// Starts one with an empty profile. Where none is installed, or axe-core is not to be had, it
    /// says so in one line and answers with nothing; but not in CI, where such a test must not be
    /// left out.
    ///
    /// # Panics
    ///
    /// When it does not start; in CI, which sets `CI`, also when one of the two is missing.
    pub async fn start() -> Option<Browser> {
        let (Some(program), Some(driver)) =
            (BROWSERS.iter().find_map(|name| find(name)), find(DRIVER))
        else {
            is_missing("no browser: install Debian's chromium and chromium-driver to test pages");
            return None;
        };
        let axe = tailrace_stack::axe().await;
        let axe = axe.inspect_err(|error| is_missing(&error.to_string())).ok()?;
        let mut watcher = Watcher::start();
        let address = watcher.driver(&driver).await;
        let mut switches: Vec<String> = SWITCHES.map(str::to_owned).to_vec();
        switches.push(format!("--user-data-dir={}", watcher.profile.join("profile").display()));
        let wish = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": program, "args": switches},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let driver = Endpoint::at(address);
        let made = command(&driver, "POST", "/session", &wish, START_MAX).await;
        let session = text(&made, "/sessionId").to_owned();
        let pid = made.pointer("/capabilities/goog:processID").and_then(Value::as_u64);
        watcher.take(pid.expect("the browser has a process id"));
        let browser = Browser { driver, session, axe, _watcher: watcher };
        // The page that it begins with has asked for parts of the browser itself.
        browser.open("about:blank").await;
        browser.requests().await;
        Some(browser)
    }

    /// Opens a page and waits until it is loaded.
    pub async fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url })).await;
    }

    /// Runs the body of a function in the page, and answers with what it returns.
    pub async fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({"script": script, "args": []})).await
    }

    /// The text of an element, as it is seen.
    pub async fn text(&self, selector: &str) -> String {
        let shown =
            self.run(&format!("return document.querySelector({selector:?}).innerText")).await;
        shown.as_str().unwrap_or_default().to_owned()
    }

    /// Clicks on the middle of an element as a mouse does, so many times in a row. What appears above it may move it away
    /// just then: like a person, it looks and clicks again.
    ///
    /// # Panics
    ///
    /// When it is not there, something else lies upon it, or it never stays where it is.
    pub async fn click(&self, selector: &str, times: u32) {
        for _ in 0..LOOKS_MAX {
            self.click_where_it_is(selector, times).await;
            if self.run("return window.hit ?? null").await != false {
                return;
            }
        }
        panic!("{selector} moves away from each of {LOOKS_MAX} clicks");
    }

    async fn click_where_it_is(&self, selector: &str, times: u32) {
        let look = format!(
            "const one = document.querySelector({selector:?});
             if (!one) return 'it is not there';
             one.scrollIntoView({{ block: 'center', behavior: 'instant' }});
             const {{ x, y, width, height }} = one.getBoundingClientRect();
             const at = [x + width / 2, y + height / 2], top = document.elementFromPoint(...at);
             const is = (it) => one.contains(it) || it?.closest('label')?.contains(one);
             window.hit = null;
             document.addEventListener('click', (event) => {{ window.hit = Boolean(is(event.target)); }}, {{ capture: true, once: true }});
             return is(top) ? at : `it lies under ${{top?.outerHTML}}`"
        );
        let place = self.run(&look).await;
        let at = |index| place.get(index).and_then(Value::as_f64);
        let (Some(x), Some(y)) = (at(0), at(1)) else { panic!("{selector}: {place}") };
        for count in 1..=times {
            for kind in ["mousePressed", "mouseReleased"] {
                let event =
                    json!({"type": kind, "x": x, "y": y, "button": "left", "clickCount": count});
                self.devtools("Input.dispatchMouseEvent", &event).await;
            }
        }
    }

    /// Presses a key: `Tab`, `Enter`, or a space.
    pub async fn press(&self, key: &str) {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            _ => (32, " "),
        };
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            let event =
                json!({"type": kind, "key": key, "windowsVirtualKeyCode": code, "text": text});
            self.devtools("Input.dispatchKeyEvent", &event).await;
        }
    }

    /// Waits until an expression is true in the page.
    ///
    /// # Panics
    ///
    /// When it is not within `limit`, with what the page shows.
    #[track_caller]
    pub fn until(&self, expression: &str, limit: Duration) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let from = Instant::now();
            let mut look = interval(LOOK_EVERY);
            loop {
                look.tick().await;
                if self.run(&format!("return Boolean({expression})")).await == true {
                    return;
                }
                if from.elapsed() >= limit {
                    let shown = self.text("body").await;
                    panic!("{caller}: not so after {limit:?}: {expression}\n{shown}");
                }
            }
        }
    }

    /// Looks at the page in another way.
    pub async fn view(&self, View { scheme, size: (width, height) }: View) {
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", &media).await;
        let is_phone = width < 600;
        let metrics = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone,
        });
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics).await;
    }

    /// What keeps people from reading the page as it is looked at now, a sentence for each fault:
    /// by the rules of axe-core, by our own, and by the tree that a screen reader is given.
    pub async fn faults(&self) -> Vec<String> {
        let mut faults = sentences(self.run(FAULTS).await);
        if self.run("return typeof axe").await == "undefined" {
            self.run(&self.axe).await;
        }
        faults.extend(sentences(self.run(BROKEN_RULES).await));
        let tree = self.devtools("Accessibility.getFullAXTree", &json!({})).await;
        let nodes = tree.get("nodes").and_then(Value::as_array);
        for node in nodes.expect("a page has a tree") {
            let (role, name) = (text(node, "/role/value"), text(node, "/name/value"));
            let is_shown = node.get("ignored") == Some(&Value::Bool(false));
            if is_shown && NAMED_ROLES.contains(&role) && name.trim().is_empty() {
                faults.push(format!("a {role} has no name"));
            }
        }
        faults
    }

    /// What the page has complained of since this was last asked.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.log("browser").await;
        let bad = entries.iter().filter(|entry| text(entry, "/level") != "INFO");
        bad.map(|entry| text(entry, "/message").to_owned()).collect()
    }

    /// The addresses that the page has asked for since this was last asked.
    pub async fn requests(&self) -> Vec<String> {
        let entries = self.log("performance").await;
        let messages = entries.iter().filter_map(|entry| {
            let message: Value = serde_json::from_str(text(entry, "/message")).ok()?;
            let sent = text(&message, "/message/method") == "Network.requestWillBeSent";
            sent.then(|| text(&message, "/message/params/request/url").to_owned())
        });
        messages.collect()
    }

    /// Leaves a picture of the whole page in this file.
    pub async fn picture(&self, path: &Path) {
        self.capture(path, &json!({"captureBeyondViewport": true})).await;
    }

    /// Leaves a small picture of the page's beginning, so wide and high, in this file.
    pub async fn small_picture(&self, path: &Path, (width, height): (u32, u32)) {
        let clip = json!({"x": 0, "y": 0, "width": width, "height": height, "scale": 1});
        let small = json!({
            "captureBeyondViewport": true, "format": "webp", "quality": 85, "clip": clip,
        });
        self.capture(path, &small).await;
    }

    async fn capture(&self, path: &Path, wish: &Value) {
        let shot = self.devtools("Page.captureScreenshot", wish).await;
        let bytes = from_base64(text(&shot, "/data"));
        fs::write(path, bytes).expect("the picture is written");
    }

    async fn log(&self, of: &str) -> Vec<Value> {
        let entries = self.post("/se/log", &json!({ "type": of })).await;
        entries.as_array().cloned().unwrap_or_default()
    }

    async fn devtools(&self, name: &str, parameters: &Value) -> Value {
        self.post("/goog/cdp/execute", &json!({"cmd": name, "params": parameters})).await
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let path = format!("/session/{}{path}", self.session);
        command(&self.driver, "POST", &path, body, ANSWER_MAX).await
    }
}

/// Says in one line why a test of pages is left out; in CI, which sets `CI`, none may be.
fn is_missing(text: &str) {
    assert!(std::env::var_os("CI").is_none(), "{text}");
    // Not captured, as what a passing test prints would be.
    writeln!(std::io::stderr(), "{text}").ok();
}

fn sentences(found: Value) -> Vec<String> {
    serde_json::from_value(found).expect("faults are sentences")
}

/// The value of a command's answer.
async fn command(at: &Endpoint, method: &str, path: &str, body: &Value, limit: Duration) -> Value {
    let sent = body.to_string();
    let asked = at.send(method, path, "content-type: application/json\r\n", &sent);
    let answer = timeout(limit, asked).await;
    let answer = answer.unwrap_or_else(|_| panic!("the browser did not do {path} in {limit:?}"));
    let mut json: Value = serde_json::from_str(&answer.body).expect("the driver answers in json");
    assert_eq!(answer.code, 200, "{path} {body}: {json:#}");
    json.get_mut("value").map(Value::take).expect("an answer has a value")
}

/// The text at this place of an answer; empty if there is none.
fn text<'v>(value: &'v Value, place: &str) -> &'v str {
    value.pointer(place).and_then(Value::as_str).unwrap_or_default()
}

/// The program of this name in the search path.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Sees to it that driver and browser end when we do.
#[derive(Debug)]
struct Watcher {
    process: Child,
    pids: Option<ChildStdin>,
    /// A folder of the browser's own.
    profile: PathBuf,
}

impl Watcher {
    fn start() -> Self {
        let profile = std::env::temp_dir().join(unique("tailrace_browser"));
        fs::create_dir(&profile).expect("a folder for the profile is made");
        let mut process = Command::new("/bin/sh")
            .args(["-c", WATCHER, "tailrace-browser-watcher"])
            .arg(&profile)
            .current_dir("/")
            .stdin(Stdio::piped())
            .spawn()
            .expect("the shell starts");
        let pids = process.stdin.take();
        Watcher { process, pids, profile }
    }

    fn take(&mut self, pid: u64) {
        let pids = self.pids.as_mut().expect("it is open until it is dropped");
        writeln!(pids, "{pid}").expect("the watcher reads");
    }

    /// Starts the driver at a port of its choice, and answers with its address.
    async fn driver(&mut self, program: &Path) -> String {
        let mut driver = tokio::process::Command::new(program)
            .arg("--port=0")
            .env("HOME", &self.profile)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the driver starts");
        self.take(u64::from(driver.id().expect("it runs")));
        let mut lines = BufReader::new(driver.stdout.take().expect("it is piped")).lines();
        let port = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some((_, port)) = line.split_once("successfully on port ") {
                    return port.trim_end_matches('.').to_owned();
                }
            }
            panic!("the driver ended")
        };
        let port = timeout(START_MAX, port).await.expect("the driver says where it serves");
        // What it says later goes nowhere, but the pipe must not break.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        format!("127.0.0.1:{port}")
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.pids.take());
        self.process.wait().ok();
    }
}

/// The bytes of a text in base64 (RFC 4648), which a driver makes without faults.
fn from_base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    let digits = text.bytes().filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte));
    for digit in digits {
        bits = bits << 6 | digit as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}
