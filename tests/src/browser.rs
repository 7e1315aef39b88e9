//! A headless Chromium, driven by the Chrome DevTools Protocol over two pipes.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use std::{io, thread};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::fetch;
use crate::{Skip, wait};

/// Time for one call, and for a page to load.
const LIMIT: Duration = Duration::from_secs(30);

/// A running browser. It ends with this value.
pub struct Browser {
    child: Child,
    input: File,
    messages: Receiver<Value>,
    next_id: u64,
    /// Events that no one has taken yet.
    events: Vec<Value>,
    _profile: TempDir,
}

/// How a page is shown.
#[derive(Clone, Copy)]
pub struct View {
    /// Width in pixels.
    pub width: u32,
    /// With dark colours.
    pub is_dark: bool,
    /// With JavaScript.
    pub has_scripts: bool,
}

/// A tab of a browser.
pub struct Tab<'b> {
    browser: &'b mut Browser,
    session: String,
    target: Value,
}

impl Browser {
    /// Starts the browser of this machine.
    pub fn start() -> Result<Self, Skip> {
        let path = fetch("browser", &[])?;
        let profile = tempfile::tempdir().unwrap();
        let (their_input, our_output) = pipe();
        let (our_input, their_output) = pipe();
        let mut command = Command::new(path);
        command
            .args(["--headless", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--hide-scrollbars"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let (input, output) = (their_input.as_raw_fd(), their_output.as_raw_fd());
        // SAFETY: dup2, fcntl and prctl are async-signal-safe and do not access memory.
        unsafe {
            command.pre_exec(move || {
                // The numbers of the pipes may be 3 or 4 themselves: first out of the way.
                let (input, output) = (libc::fcntl(input, libc::F_DUPFD, 10), libc::fcntl(output, libc::F_DUPFD, 10));
                let is_done = libc::dup2(input, 3) == 3
                    && libc::dup2(output, 4) == 4
                    && libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0;
                if is_done { Ok(()) } else { Err(io::Error::last_os_error()) }
            });
        }
        let child = command.spawn().map_err(|error| Skip::new(format!("the browser does not start: {error}")))?;
        drop((their_input, their_output));
        let (sender, messages) = channel();
        thread::spawn(move || {
            let mut reader = BufReader::new(File::from(our_input));
            loop {
                let mut message = Vec::new();
                match reader.read_until(0, &mut message) {
                    Ok(length) if length > 1 => {
                        let message = serde_json::from_slice(&message[..length - 1]).unwrap();
                        if sender.send(message).is_err() {
                            return;
                        }
                    }
                    _ => return,
                }
            }
        });
        Ok(Self { child, input: File::from(our_output), messages, next_id: 0, events: Vec::new(), _profile: profile })
    }

    /// Opens a tab on an address.
    pub fn open(&mut self, address: &str, view: View) -> Tab<'_> {
        let target = self.call(None, "Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = self.call(None, "Target.attachToTarget", attach)["sessionId"].as_str().unwrap().to_owned();
        let mut tab = Tab { browser: self, session, target: target["targetId"].clone() };
        for domain in ["Page", "Runtime", "Network", "Log"] {
            tab.call(&format!("{domain}.enable"), json!({}));
        }
        let metrics = json!({ "width": view.width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        tab.call("Emulation.setDeviceMetricsOverride", metrics);
        let scheme = if view.is_dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        tab.call("Emulation.setEmulatedMedia", features);
        tab.call("Emulation.setScriptExecutionDisabled", json!({ "value": !view.has_scripts }));
        tab.go(address);
        tab
    }

    fn call(&mut self, session: Option<&str>, method: &str, parameters: Value) -> Value {
        self.next_id += 1;
        let mut message = json!({ "id": self.next_id, "method": method, "params": parameters });
        if let Some(session) = session {
            message["sessionId"] = json!(session);
        }
        self.input.write_all(&[message.to_string().as_bytes(), &[0]].concat()).unwrap();
        let until = Instant::now() + LIMIT;
        loop {
            let message = self.next(until).unwrap_or_else(|| panic!("the browser does not answer {method}"));
            if message["id"] == self.next_id {
                assert!(message.get("error").is_none(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    fn next(&mut self, until: Instant) -> Option<Value> {
        match self.messages.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the browser has ended"),
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Tab<'_> {
    fn drop(&mut self) {
        self.browser.next_id += 1;
        let message = json!({
            "id": self.browser.next_id, "method": "Target.closeTarget", "params": { "targetId": self.target },
        });
        // The browser may have ended.
        let _ = self.browser.input.write_all(&[message.to_string().as_bytes(), &[0]].concat());
    }
}

impl Tab<'_> {
    /// Loads an address.
    pub fn go(&mut self, address: &str) {
        self.events(&["Page.loadEventFired"]);
        self.call("Page.navigate", json!({ "url": address }));
        self.wait_for_load();
    }

    /// Waits for the next page, after a click on a link.
    pub fn wait_for_load(&mut self) {
        let until = Instant::now() + LIMIT;
        while self.events(&["Page.loadEventFired"]).is_empty() {
            let message = self.browser.next(until).expect("the page is not loaded in time");
            self.browser.events.push(message);
        }
    }

    /// The value of an expression in JavaScript.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", parameters);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub fn wait_until(&mut self, what: &str, expression: &str) {
        wait::until(what, LIMIT, || (self.evaluate(expression) == true).then_some(()));
    }

    /// Presses and releases a key.
    pub fn press(&mut self, key: &str, code: u32) {
        for kind in ["keyDown", "keyUp"] {
            let text = if key == "Enter" && kind == "keyDown" { "\r" } else { "" };
            let event = json!({
                "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text,
            });
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// The addresses of all requests so far.
    pub fn requests(&mut self) -> Vec<String> {
        let events = self.events(&["Network.requestWillBeSent"]);
        events.iter().map(|event| event["request"]["url"].as_str().unwrap().to_owned()).collect()
    }

    /// Errors and warnings of the page and the browser so far, and violations of its policy.
    pub fn complaints(&mut self) -> Vec<String> {
        let events = self.events(&["Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"]);
        let is_bad = |event: &&Value| match event["entry"]["level"].as_str() {
            Some(level) => level == "error" || level == "warning",
            None => event.get("exceptionDetails").is_some() || event["type"] == "error",
        };
        events.iter().filter(is_bad).map(Value::to_string).collect()
    }

    /// Takes the events of these kinds out of those that have arrived. Returns their contents.
    fn events(&mut self, methods: &[&str]) -> Vec<Value> {
        let session = json!(self.session);
        let is_wanted = |event: &Value| {
            event["sessionId"] == session && event["method"].as_str().is_some_and(|method| methods.contains(&method))
        };
        self.browser.events.extend(self.browser.messages.try_iter());
        let (wanted, rest): (Vec<Value>, Vec<Value>) = self.browser.events.drain(..).partition(is_wanted);
        self.browser.events = rest;
        wanted.into_iter().map(|mut event| event["params"].take()).collect()
    }

    fn call(&mut self, method: &str, parameters: Value) -> Value {
        let session = self.session.clone();
        self.browser.call(Some(&session), method, parameters)
    }
}

/// A pipe: the end to read and the end to write. Other children do not inherit them.
fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: the call writes two numbers, each of a new file that nobody else owns.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}
