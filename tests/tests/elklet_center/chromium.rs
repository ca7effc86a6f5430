//! A headless Chromium, driven over its debugging protocol.
//!
//! The protocol's messages go over two pipes, so that no port is open and no library is needed. Clicks and text are those of a mouse and a
//! keyboard: what is covered or out of reach cannot be clicked.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long to wait for anything. It is long, because the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// One tab of a browser.
pub(crate) struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    last_id: u64,
    session: String,
    /// What scripts and the network have complained of.
    complaints: Vec<String>,
    profile: tempfile::TempDir,
}

/// Returns the program, if there is one.
pub(crate) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name))).find(|program| program.is_file())
}

impl Browser {
    pub(crate) fn start(program: &Path) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let flags = [
            "--headless=new",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-extensions",
            "--hide-scrollbars",
            "--no-first-run",
            "--remote-debugging-pipe",
        ];
        // It reads messages from descriptor 3 and writes them to 4.
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" 3<&0 4>&1", "sh"]).arg(program).args(flags);
        if rustix::process::geteuid().is_root() {
            // Its own sandbox does not work for root.
            command.arg("--no-sandbox");
        }
        let mut child = command
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (to, out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (send, from) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(out).split(0).map_while(Result::ok) {
                // The test may have ended.
                _ = send.send(serde_json::from_slice(&message).unwrap());
            }
        });
        let mut browser = Self { child, to, from, last_id: 0, session: String::new(), complaints: Vec::new(), profile };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Log", "DOM", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut message = json!({ "id": self.last_id, "method": method, "params": params });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.to.write_all(message.to_string().as_bytes()).unwrap();
        self.to.write_all(&[0]).unwrap();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.from.recv_timeout(left).unwrap_or_else(|error| panic!("{method}: {error}"));
            if message["id"] == self.last_id {
                assert!(message["error"].is_null(), "{method} {params}: {}", message["error"]);
                return message["result"].clone();
            }
            match message["method"].as_str() {
                Some("Runtime.exceptionThrown") => {
                    self.complaints.push(message["params"]["exceptionDetails"].to_string())
                }
                Some("Log.entryAdded") => self.complaints.push(message["params"]["entry"].to_string()),
                _ => {}
            }
        }
    }

    /// Returns what scripts and the network have complained of since this was asked for last.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        std::mem::take(&mut self.complaints)
    }

    pub(crate) fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
    }

    /// Goes to another place of the page that is open.
    pub(crate) fn go(&mut self, place: &str) {
        self.run(&format!("location.hash = {}", json!(place)));
    }

    /// Runs a script and returns its value.
    pub(crate) fn run(&mut self, script: &str) -> Value {
        let params = json!({ "expression": script, "returnByValue": true, "awaitPromise": true });
        let result = self.call("Runtime.evaluate", params);
        assert!(result["exceptionDetails"].is_null(), "{script}: {result}");
        result["result"]["value"].clone()
    }

    /// Waits until a script returns something that is true, and returns it.
    pub(crate) fn wait(&mut self, what: &str, script: &str) -> Value {
        self.wait_and(what, script, || {})
    }

    /// Does the same, and something else meanwhile, every few seconds.
    pub(crate) fn wait_and(&mut self, what: &str, script: &str, meanwhile: impl Fn()) -> Value {
        let (began, mut done, mut said) = (Instant::now(), Instant::now(), Value::Null);
        loop {
            if done.elapsed() > Duration::from_secs(3) {
                meanwhile();
                done = Instant::now();
            }
            // While a page is replaced by another, there is nothing to ask.
            let guarded = format!("(() => {{ try {{ return {script} }} catch (error) {{ return null }} }})()");
            let value = self.run(&guarded);
            if !matches!(value, Value::Null | Value::Bool(false)) {
                return value;
            }
            // What went wrong is shown for some seconds only.
            let toast = self.run("document.querySelector('.toast.bad')?.innerText ?? null");
            said = if toast.is_null() { said } else { toast };
            if began.elapsed() > DEADLINE {
                let text = self.run("document.body.innerText");
                let text = text.as_str().unwrap_or_default();
                panic!("no {what} within {DEADLINE:?}; {script}; the page complained: {said}, and says: {text}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the page says something.
    pub(crate) fn sees(&mut self, text: &str) {
        self.wait(text, &format!("document.body.innerText.includes({})", json!(text)));
    }

    /// Clicks the first control of which the text, or the name for those who see nothing, is this.
    pub(crate) fn click(&mut self, text: &str) {
        let find = format!(
            "[...(document.querySelector('dialog[open]') ?? document).querySelectorAll('a, button, summary, tr.opens')].find((element) => \
             (element.innerText.trim() === {0} || element.getAttribute('aria-label') === {0}) && !element.disabled)",
            json!(text)
        );
        self.click_on(text, &find);
    }

    /// Clicks what a script returns.
    pub(crate) fn click_on(&mut self, what: &str, find: &str) {
        let began = Instant::now();
        while !self.try_click(what, find) {
            assert!(began.elapsed() < DEADLINE, "{what} is replaced again and again");
        }
    }

    /// Presses and lets go. Returns false if what is there was replaced in between, so that nothing was clicked.
    fn try_click(&mut self, what: &str, find: &str) -> bool {
        let place = self.wait(
            what,
            &format!(
                "((element) => {{
                  if (!element) return null;
                  element.scrollIntoView({{ block: 'center', behavior: 'instant' }});
                  const box = element.getBoundingClientRect();
                  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
                  const hit = document.elementFromPoint(x, y);
                  if (!hit || !element.contains(hit)) return null;
                  window.clicked = null;
                  document.addEventListener('click', (event) => {{
                    window.clicked = Boolean(event.target.closest('a, button, summary, tr.opens'));
                  }}, {{ once: true, capture: true }});
                  return [x, y];
                }})({find})"
            ),
        );
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({ "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", event);
        }
        // A click that leads to another page takes this one's memory along.
        self.run("window.clicked === undefined || window.clicked === true") == true
    }

    /// Writes into the control with this label, in place of what it holds.
    pub(crate) fn write(&mut self, label: &str, text: &str) {
        let found = format!(
            "((control) => {{ if (!control) return false; control.focus(); control.select?.(); return document.activeElement === control }})({})",
            control(label)
        );
        self.wait(label, &found);
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// Chooses the first option that has this text in it, of the control with this label.
    pub(crate) fn choose(&mut self, label: &str, option: &str) {
        let script = format!(
            "((control) => {{
              const option = [...control.options].find((option) => option.text.includes({}));
              if (!option) return false;
              control.value = option.value;
              control.dispatchEvent(new Event('change', {{ bubbles: true }}));
              return true;
            }})({})",
            json!(option),
            control(label)
        );
        self.wait(option, &script);
    }

    /// Gives a file to the control with this label.
    pub(crate) fn give_file(&mut self, label: &str, path: &Path) {
        self.wait(label, &format!("Boolean({})", control(label)));
        let params = json!({ "expression": control(label) });
        let object = self.call("Runtime.evaluate", params)["result"]["objectId"].clone();
        self.call("DOM.setFileInputFiles", json!({ "files": [path.to_str().unwrap()], "objectId": object }));
    }

    /// Sets the size of the window and the theme that the system says it has.
    pub(crate) fn looks(&mut self, width: u32, theme: &str) {
        let size = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let features = json!([{ "name": "prefers-color-scheme", "value": theme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// Keeps a picture of what the window shows.
    pub(crate) fn picture(&mut self, path: &Path) {
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        std::fs::write(path, base64(shot["data"].as_str().unwrap())).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends by itself with the pipe; if not, nobody waits for it.
        _ = self.child.kill();
        _ = self.child.wait();
        _ = &self.profile;
    }
}

/// A script that finds a control by its label, in the dialog if one is open.
fn control(label: &str) -> String {
    format!(
        "((root) => {{
          const label = [...root.querySelectorAll('label')].find((label) => label.firstChild.textContent.trim() === {0});
          return label?.querySelector('input, select, textarea') ?? root.querySelector(`[aria-label=${{JSON.stringify({0})}}]`);
        }})(document.querySelector('dialog[open]') ?? document)",
        json!(label)
    )
}

/// Decodes base64, as the protocol has pictures.
fn base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits = group.iter().fold(0u32, |bits, &byte| bits << 6 | u32::from(digit(byte))) << (6 * (4 - group.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    bytes
}
