//! A real browser: Chromium, told what to do by its driver (WebDriver, W3C).

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::{
    folder::Folder,
    http::{Body, Head},
    root,
    server::wait_until,
};

/// Of a window, unless told otherwise.
const SIZE: (u32, u32) = (1400, 900);

/// How long the driver may take for one thing.
const PATIENCE: Duration = Duration::from_secs(60);

/// Under which name the driver gives an element (WebDriver, section 12.1).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// What a key is called that is none of a sign (WebDriver, section 17.4.2).
pub const ENTER: &str = "\u{e007}";
/// See [`ENTER`].
pub const DOWN: &str = "\u{e015}";
/// See [`ENTER`].
pub const UP: &str = "\u{e013}";
/// See [`ENTER`].
pub const TAB: &str = "\u{e004}";

/// Most browsers that wait for the next who wants one.
const MOST_IDLE: usize = 2;

/// Those that wait: to start one takes longer than most tests do with it.
static IDLE: Mutex<Vec<Running>> = Mutex::new(Vec::new());

/// Starts the driver, and ends it and takes its folder away once nobody holds the other end of the shell's input: when we are done,
/// and however we end. The browser, which ends after it, writes to the folder until then.
const DRIVER: &str = "chromedriver --port=0 --allowed-ips= & read -r _; kill -KILL $!; \
                      for _ in 1 2 3 4 5 6 7 8 9; do rm -rf \"$1\"; sleep 0.2; done";

/// A driver with its browser, which ends with it.
struct Running {
    driver: Child,
    port: u16,
    session: String,
    folder: Folder,
}

/// A browser with one tab, which knows nothing of what others have done in it; handed on when dropped.
pub struct Browser {
    running: Option<Running>,
}

impl Running {
    fn start() -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        let mut driver = Command::new("sh")
            .args(["-c", DRIVER, "sh"])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("chromedriver cannot be started")?;
        let mut lines = BufReader::new(driver.stdout.take().context("no output")?).lines();
        let port = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, rest) = line.split_once("successfully on port ")?;
            rest.trim_end_matches('.').parse().ok()
        });
        thread::spawn(move || lines.for_each(drop));
        let mut running = Self {
            driver,
            port: port.context("the driver tells no port")?,
            session: String::new(),
            folder,
        };
        let profile = running.folder.file("profile");
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            // It ends with its driver.
            "--remote-debugging-pipe",
            &format!("--user-data-dir={}", profile.display()),
        ];
        let preferences = json!({ "download.default_directory": running.downloads(), "download.prompt_for_download": false });
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments, "prefs": preferences },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let session = running.ask("POST", "/session", &capabilities)?;
        session["sessionId"]
            .as_str()
            .context("no session")?
            .clone_into(&mut running.session);
        running.tell("window/rect", &json!({ "width": SIZE.0, "height": SIZE.1 }))?;
        Ok(running)
    }

    fn downloads(&self) -> PathBuf {
        self.folder.file("downloads")
    }

    /// Leaves nothing of what was done in it: what a tab has for its session goes with the tab, and what else a page keeps is of
    /// its server's port.
    fn forget(&self) -> anyhow::Result<()> {
        let old = self.ask("GET", &self.path("window/handles"), &Value::Null)?;
        let new = self.tell("window/new", &json!({ "type": "tab" }))?;
        for handle in old.as_array().context("no list")? {
            self.tell("window", &json!({ "handle": handle }))?;
            self.ask("DELETE", &self.path("window"), &Value::Null)?;
        }
        self.tell("window", &json!({ "handle": new["handle"] }))?;
        self.tell("window/rect", &json!({ "width": SIZE.0, "height": SIZE.1 }))?;
        self.tell("se/log", &json!({ "type": "browser" }))?;
        match fs::remove_dir_all(self.downloads()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn path(&self, command: &str) -> String {
        format!("/session/{}/{command}", self.session)
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let body = if method == "POST" {
            body.to_string()
        } else {
            String::new()
        };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut stream = BufReader::new(stream);
        let head = Head::read(&mut stream)?;
        let answer = Body::of_answer(&head, &mut stream)?.read_all()?;
        let mut answer: Value = serde_json::from_slice(&answer)?;
        let value = answer["value"].take();
        ensure!(head.status()? == 200, "{path}: {}", value["message"]);
        Ok(value)
    }

    fn tell(&self, command: &str, body: &Value) -> anyhow::Result<Value> {
        self.ask("POST", &self.path(command), body)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.driver.stdin.take());
        let _ = self.driver.wait();
    }
}

impl Browser {
    /// Takes one that waits, or starts one.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start() -> anyhow::Result<Self> {
        let idle = IDLE.lock().ok().and_then(|mut idle| idle.pop());
        let running = match idle {
            Some(running) => running,
            None => Running::start()?,
        };
        Ok(Self {
            running: Some(running),
        })
    }

    fn running(&self) -> anyhow::Result<&Running> {
        self.running.as_ref().context("the browser is gone")
    }

    fn tell(&self, command: &str, body: &Value) -> anyhow::Result<Value> {
        self.running()?.tell(command, body)
    }

    /// Tells the tab itself (Chrome DevTools Protocol).
    fn devtools(&self, command: &str, parameters: &Value) -> anyhow::Result<Value> {
        let body = json!({ "cmd": command, "params": parameters });
        self.tell("goog/cdp/execute", &body)
    }

    /// The only file that was downloaded, once it is whole.
    ///
    /// # Errors
    /// When there is none, or are several.
    pub fn downloaded(&self) -> anyhow::Result<PathBuf> {
        let mut files = Vec::new();
        wait_until(Duration::from_secs(20), || {
            let entries = fs::read_dir(self.running()?.downloads()).into_iter().flatten();
            files = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            let is_whole = |file: &PathBuf| file.extension().is_some_and(|end| end == "pcapng");
            Ok(!files.is_empty() && files.iter().all(is_whole))
        })?;
        ensure!(files.len() == 1, "{files:?}");
        files.pop().context("nothing")
    }

    /// Goes to a page, and waits until it is loaded.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn go(&self, url: &str) -> anyhow::Result<()> {
        self.tell("url", &json!({ "url": url })).map(drop)
    }

    /// What a function of this body gives, in the page.
    ///
    /// # Errors
    /// When it throws.
    pub fn script(&self, body: &str) -> anyhow::Result<Value> {
        self.tell("execute/sync", &json!({ "script": body, "args": [] }))
    }

    /// Waits until a function of this body gives something that is true, and tells what.
    ///
    /// # Errors
    /// When it does not within twenty seconds; tells what the page shows then.
    pub fn wait_for(&self, body: &str) -> anyhow::Result<Value> {
        let mut found = Value::Null;
        let waited = wait_until(Duration::from_secs(20), || {
            found = self.script(body)?;
            Ok(!matches!(found, Value::Null | Value::Bool(false)) && found != json!(""))
        });
        waited.with_context(|| {
            let shown = self.script("return document.body.innerText");
            format!(
                "{body}: {found}; the page shows {shown:?}, and says {:?}",
                self.log()
            )
        })?;
        Ok(found)
    }

    /// Waits until the page shows a text.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_for_text(&self, text: &str) -> anyhow::Result<()> {
        let text = json!(text);
        self.wait_for(&format!("return document.body.innerText.includes({text})"))
            .map(drop)
    }

    fn element(&self, xpath: &str) -> anyhow::Result<String> {
        let mut found = String::new();
        wait_until(Duration::from_secs(20), || {
            let elements = self.tell("elements", &json!({ "using": "xpath", "value": xpath }))?;
            if let Some(element) = elements[0][ELEMENT].as_str() {
                element.clone_into(&mut found);
            }
            Ok(!found.is_empty())
        })
        .with_context(|| format!("no {xpath}: {:?}", self.script("return document.body.innerText")))?;
        Ok(found)
    }

    /// Clicks at what an XPath leads to.
    ///
    /// # Errors
    /// When it is not there, or something covers it.
    pub fn click(&self, xpath: &str) -> anyhow::Result<()> {
        self.at_element(xpath, "click", &json!({}))
    }

    /// Types keys into what an XPath leads to.
    ///
    /// # Errors
    /// When it is not there.
    pub fn type_into(&self, xpath: &str, keys: &str) -> anyhow::Result<()> {
        self.at_element(xpath, "value", &json!({ "text": keys }))
    }

    /// Does something with what an XPath leads to; again, where that has been drawn anew meanwhile.
    fn at_element(&self, xpath: &str, command: &str, body: &Value) -> anyhow::Result<()> {
        let mut last = None;
        for _ in 0..5 {
            let element = self.element(xpath)?;
            match self.tell(&format!("element/{element}/{command}"), body) {
                Err(error) if error.to_string().contains("stale element") => last = Some(error),
                done => return done.map(drop).with_context(|| xpath.to_owned()),
            }
        }
        last.map_or(Ok(()), Err)
    }

    /// Clicks at a button of this name.
    ///
    /// # Errors
    /// As [`Self::click`].
    pub fn press(&self, name: &str) -> anyhow::Result<()> {
        self.click(&format!("//button[normalize-space()='{name}']"))
    }

    /// Sets the size of the window.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn resize(&self, width: u32, height: u32) -> anyhow::Result<()> {
        self.tell("window/rect", &json!({ "width": width, "height": height }))
            .map(drop)
    }

    /// Has pages take the user for one who wants dark colours, or light ones.
    ///
    /// # Errors
    /// When the browser does not know that.
    pub fn set_dark(&self, is_dark: bool) -> anyhow::Result<()> {
        self.set_feature("prefers-color-scheme", if is_dark { "dark" } else { "light" })
    }

    /// Has pages have no colours but those of the user.
    ///
    /// # Errors
    /// When the browser does not know that.
    pub fn force_colours(&self) -> anyhow::Result<()> {
        self.set_feature("forced-colors", "active")
    }

    /// Sets a feature of CSS media, and no other.
    fn set_feature(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let parameters = json!({ "features": [{ "name": name, "value": value }] });
        self.devtools("Emulation.setEmulatedMedia", &parameters).map(drop)
    }

    /// Has pages have a window of this size, which may be smaller than any that the browser opens.
    ///
    /// # Errors
    /// When the browser does not know that.
    pub fn shrink(&self, width: u32, height: u32) -> anyhow::Result<()> {
        let parameters = json!({ "width": width, "height": height, "deviceScaleFactor": 0, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", &parameters)
            .map(drop)
    }

    /// Has pages take the computer for one in a time zone, such as `Asia/Kolkata`.
    ///
    /// # Errors
    /// When the browser does not know it.
    pub fn set_time_zone(&self, name: &str) -> anyhow::Result<()> {
        self.devtools("Emulation.setTimezoneOverride", &json!({ "timezoneId": name }))
            .map(drop)
    }

    /// Has a script run in each page before its own.
    ///
    /// # Errors
    /// When the browser does not know that.
    pub fn run_before(&self, script: &str) -> anyhow::Result<()> {
        self.devtools(
            "Page.addScriptToEvaluateOnNewDocument",
            &json!({ "source": script }),
        )
        .map(drop)
    }

    /// Has the browser have nothing of any page.
    ///
    /// # Errors
    /// When the browser does not know that.
    pub fn forget_cache(&self) -> anyhow::Result<()> {
        self.devtools("Network.clearBrowserCache", &json!({})).map(drop)
    }

    /// Presses the mouse at what an XPath leads to, and does not let go.
    ///
    /// # Errors
    /// When it is not there.
    pub fn hold(&self, xpath: &str) -> anyhow::Result<()> {
        let origin = json!({ ELEMENT: self.element(xpath)? });
        let there = json!({ "type": "pointerMove", "origin": origin, "x": 0, "y": 0 });
        self.mouse(&[there, json!({ "type": "pointerDown", "button": 0 })])
    }

    /// Lets go of the mouse, where it is.
    ///
    /// # Errors
    /// When the driver does not.
    pub fn let_go(&self) -> anyhow::Result<()> {
        self.mouse(&[json!({ "type": "pointerUp", "button": 0 })])
    }

    fn mouse(&self, actions: &[Value]) -> anyhow::Result<()> {
        let source = json!({ "type": "pointer", "id": "mouse", "actions": actions });
        self.tell("actions", &json!({ "actions": [source] })).map(drop)
    }

    /// Presses keys, one after the other, whatever they reach.
    ///
    /// # Errors
    /// When the browser does not know one.
    pub fn keys(&self, keys: &str) -> anyhow::Result<()> {
        let strokes = keys.chars().flat_map(|key| {
            ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }))
        });
        let source = json!({ "type": "key", "id": "keys", "actions": strokes.collect::<Vec<_>>() });
        self.tell("actions", &json!({ "actions": [source] })).map(drop)
    }

    /// What the console has had to say since the last time.
    ///
    /// # Errors
    /// When the driver does not tell.
    pub fn log(&self) -> anyhow::Result<Vec<String>> {
        let entries = self.tell("se/log", &json!({ "type": "browser" }))?;
        let entries = entries.as_array().context("no list")?.iter();
        let text = |entry: &Value| format!("{}: {}", entry["level"], entry["message"]);
        Ok(entries.map(text).collect())
    }

    /// Puts what the window shows into a file.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn screenshot(&self, file: &Path) -> anyhow::Result<()> {
        let running = self.running()?;
        let image = running.ask("GET", &running.path("screenshot"), &Value::Null)?;
        let mut decode = Command::new("base64")
            .arg("--decode")
            .stdin(Stdio::piped())
            .stdout(fs::File::create(file)?)
            .spawn()?;
        decode
            .stdin
            .take()
            .context("no input")?
            .write_all(image.as_str().context("no image")?.as_bytes())?;
        ensure!(decode.wait()?.success(), "base64");
        Ok(())
    }

    /// What axe finds that keeps people from using the page who do not see, or use no mouse (WCAG 2.2, A and AA, and its own best
    /// practices); a line for each.
    ///
    /// # Errors
    /// When `cargo xtask test` has not got it, or it fails.
    pub fn barriers(&self) -> anyhow::Result<Vec<String>> {
        let file = root().join("target/tools/axe-core/package/axe.min.js");
        let axe = fs::read_to_string(&file)
            .with_context(|| format!("{}: use `cargo xtask test`", file.display()))?;
        self.script(&format!("{axe}; window.axe = axe"))?;
        let run = "const done = arguments[0]; axe.run(document).then(found => done(found.violations.map(one => \
                   one.id + ': ' + one.help + ': ' + one.nodes.map(node => node.html + ' ' + node.failureSummary).join(' | '))), \
                   error => done(['axe failed: ' + error]))";
        let found = self.tell("execute/async", &json!({ "script": run, "args": [] }))?;
        let lines = found.as_array().context("no list")?.iter();
        Ok(lines
            .map(|line| line.as_str().unwrap_or_default().to_owned())
            .collect())
    }

    /// Fails if the page broke its policy, or threw.
    ///
    /// # Errors
    /// With what the console says.
    pub fn check_console(&self) -> anyhow::Result<()> {
        let log = self.log()?;
        let is_bad = |line: &&String| line.contains("Content Security Policy") || line.contains("Uncaught");
        if let Some(line) = log.iter().find(is_bad) {
            bail!("{line}");
        }
        Ok(())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // One that cannot forget ends here.
        let Some(running) = self.running.take().filter(|running| running.forget().is_ok()) else {
            return;
        };
        if let Ok(mut idle) = IDLE.lock()
            && idle.len() < MOST_IDLE
        {
            idle.push(running);
        }
    }
}
