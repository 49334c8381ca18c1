//! A headless Chromium, driven by the WebDriver protocol (https://www.w3.org/TR/webdriver2/) through chromedriver.

use libtest_mimic::Failed;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a page may take for what a key asks.
const PATIENCE: Duration = Duration::from_secs(20);

/// Keys without a character, as WebDriver names them.
pub const LEFT: char = '\u{e012}';
pub const RIGHT: char = '\u{e014}';
pub const ENTER: char = '\u{e007}';
pub const ESCAPE: char = '\u{e00c}';

/// A chromedriver that ends with its trial.
pub struct Driver {
    child: Child,
    address: String,
}

/// Where a program is, by PATH.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|place| place.is_file())
}

impl Driver {
    pub fn start() -> Result<Driver, Failed> {
        let program = find("chromedriver").ok_or(
            "there is no chromedriver: on Debian and Ubuntu apt-get install chromium chromium-driver",
        )?;
        let mut child = Command::new(program).arg("--port=0").stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let port = lines.find_map(|line| {
            let line = line.ok()?;
            line.split_once("started successfully on port ")?.1.trim_end_matches('.').parse::<u16>().ok()
        });
        let Some(port) = port else {
            let _ = child.kill();
            return Err("chromedriver ended before it named its port".into());
        };
        // Who writes to a pipe that nobody reads waits for ever.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Driver { child, address: format!("http://127.0.0.1:{port}") })
    }

    /// A browser of its own, with nothing in it.
    pub fn open(&self) -> Result<Browser, Failed> {
        // Root may not use the sandbox, and a container's shared memory is small.
        let mut options =
            json!({ "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"] });
        if let Some(chromium) = find("chromium") {
            options["binary"] = json!(chromium);
        }
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": { "performance": "ALL" },
        } } });
        let value = call("POST", &format!("{}/session", self.address), &wanted)?;
        let id = value["sessionId"].as_str().ok_or("chromedriver gave no session")?;
        Ok(Browser { session: format!("{}/session/{id}", self.address) })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a command and gives the value of its reply.
fn call(method: &str, url: &str, body: &Value) -> Result<Value, Failed> {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut reply = match method {
        "GET" => agent.get(url).call()?,
        "DELETE" => agent.delete(url).call()?,
        _ => agent.post(url).send_json(body)?,
    };
    let mut answer: Value = reply.body_mut().read_json()?;
    match reply.status().is_success() {
        true => Ok(answer["value"].take()),
        false => Err(format!("{method} {url}: {}", answer["value"]).into()),
    }
}

/// One browser.
pub struct Browser {
    session: String,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = call("DELETE", &self.session, &Value::Null);
    }
}

impl Browser {
    fn post(&self, command: &str, body: Value) -> Result<Value, Failed> {
        call("POST", &format!("{}/{command}", self.session), &body)
    }

    pub fn go(&self, url: &str) -> Result<(), Failed> {
        self.post("url", json!({ "url": url })).map(drop)
    }

    pub fn reload(&self) -> Result<(), Failed> {
        self.post("refresh", json!({})).map(drop)
    }

    pub fn title(&self) -> Result<Value, Failed> {
        call("GET", &format!("{}/title", self.session), &Value::Null)
    }

    /// What an expression is in the page.
    pub fn value(&self, expression: &str) -> Result<Value, Failed> {
        self.post("execute/sync", json!({ "script": format!("return {expression};"), "args": [] }))
    }

    /// The text of an element, as it is in the document.
    pub fn text(&self, id: &str) -> Result<String, Failed> {
        let text = self.value(&format!("document.getElementById({id:?}).textContent"))?;
        Ok(text.as_str().unwrap_or_default().to_string())
    }

    /// Waits until an expression is true in the page.
    pub fn until(&self, expression: &str) -> Result<(), Failed> {
        let end = Instant::now() + PATIENCE;
        while self.value(expression)? != Value::Bool(true) {
            if Instant::now() > end {
                let body = self.value("document.body.innerText")?;
                return Err(format!("never true: {expression}; the page says {body}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Presses keys, one after the other, as a keyboard does.
    pub fn press(&self, keys: impl IntoIterator<Item = char>) -> Result<(), Failed> {
        let stroke =
            |key: char| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }));
        let actions: Vec<Value> = keys.into_iter().flat_map(stroke).collect();
        self.post("actions", json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] }))
            .map(drop)
    }

    /// Clicks an element.
    pub fn click(&self, id: &str) -> Result<(), Failed> {
        self.value(&format!("document.getElementById({id:?}).click()")).map(drop)
    }

    /// Addresses that the pages have asked for since the last time.
    pub fn requests(&self) -> Result<Vec<String>, Failed> {
        let log = self.post("se/log", json!({ "type": "performance" }))?;
        let mut urls = vec![];
        for entry in log.as_array().ok_or("the log is a list")? {
            let message: Value = serde_json::from_str(entry["message"].as_str().unwrap_or("{}"))?;
            let message = &message["message"];
            if message["method"] == "Network.requestWillBeSent" {
                urls.extend(message["params"]["request"]["url"].as_str().map(String::from));
            }
        }
        Ok(urls)
    }
}
