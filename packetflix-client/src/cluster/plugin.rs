//! The plugin by which a kubeconfig has its user log in: it is waited for aloud, and within bounds of time and output.
//!
//! Source: the API `client.authentication.k8s.io` (ExecCredential) of the public documentation.

use std::{
    fmt,
    io::{self, IsTerminal as _},
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use kube::config::{ExecConfig, ExecInteractiveMode};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    time::{Instant, sleep_until, timeout_at},
};

use crate::terminal::{aloud, say, shown};

/// How a plugin is bounded. Those that have people log in by a browser take a minute, and a forgotten one takes forever.
pub(super) const BOUNDS: Bounds = Bounds {
    patience: Duration::from_secs(180),
    len: 1 << 20,
};

/// How long those may go on to print that a plugin has left behind.
const GRACE: Duration = Duration::from_secs(1);

/// Most lines of a plugin's that people are shown.
const MAX_LINES: usize = 50;

/// Variable that tells the plugin what it is asked for.
const INFO: &str = "KUBERNETES_EXEC_INFO";

/// What a plugin may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Until it has ended.
    pub(super) patience: Duration,
    /// Bytes that it prints.
    pub(super) len: usize,
}

/// What a plugin gives.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Credential {
    #[serde(default)]
    pub(super) token: Option<String>,
    #[serde(default)]
    pub(super) client_certificate_data: Option<String>,
    #[serde(default)]
    pub(super) client_key_data: Option<String>,
}

/// A plugin, for people: by its program's name, and without its arguments, which may be secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    program: String,
    user: String,
}

impl fmt::Display for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the plugin {}, by which the user {} of the kubeconfig logs in",
            self.program, self.user
        )
    }
}

/// Why a plugin gives nothing.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// It is not named.
    #[error("the user {0} of the kubeconfig logs in by a plugin (exec), of which no command is told")]
    Unnamed(String),
    /// It is not there.
    #[error("{0}, cannot be started{1}")]
    Start(Plugin, String, #[source] io::Error),
    /// It wants to ask people.
    #[error("{0}, wants a terminal (interactiveMode: Always), and standard input is none")]
    NoTerminal(Plugin),
    /// It does not end.
    #[error("{0}, has not ended within {1} s, and was ended: run it alone to see what it waits for")]
    Late(Plugin, u64),
    /// It prints and prints.
    #[error("{0}, has printed more than {1} bytes, and was ended: a credential has a few thousand")]
    TooMuch(Plugin, usize),
    /// It fails.
    #[error("{0}, has failed ({1}){2}")]
    Failed(Plugin, ExitStatus, String),
    /// It cannot be read or waited for.
    #[error("{0}, cannot be read")]
    Read(Plugin, #[source] io::Error),
    /// What it prints is something else.
    #[error("{0}, prints no ExecCredential with a status: {1}")]
    Unreadable(Plugin, String),
}

/// What is printed, as far as it is read.
#[derive(Deserialize)]
struct Printed {
    status: Option<Credential>,
}

/// Runs the plugin of a user, and tells what it gives.
pub(super) async fn run(exec: &ExecConfig, user: &str, bounds: &Bounds) -> Result<Credential, PluginError> {
    let unnamed = || PluginError::Unnamed(user.to_owned());
    let command = exec.command.as_deref().ok_or_else(unnamed)?;
    let name = Path::new(command).file_name().unwrap_or(command.as_ref());
    let plugin = Plugin {
        program: name.to_string_lossy().into_owned(),
        user: user.to_owned(),
    };
    let is_terminal = io::stdin().is_terminal();
    let interactive = match exec.interactive_mode {
        Some(ExecInteractiveMode::Never) => false,
        Some(ExecInteractiveMode::Always) if !is_terminal => return Err(PluginError::NoTerminal(plugin)),
        _ => is_terminal,
    };
    let mut process = spawn(exec, command, interactive).map_err(|error| {
        let hint = exec.install_hint.as_deref().unwrap_or_default().trim();
        let hint = match hint {
            "" => String::new(),
            hint => format!(" ({hint})"),
        };
        PluginError::Start(plugin.clone(), hint, error)
    })?;
    let mut output = Output::default();
    let until = Instant::now() + bounds.patience;
    let reading = output.read(&mut process, bounds.len);
    let ended = timeout_at(until, aloud(&plugin, bounds.patience, reading)).await;
    let status = match ended {
        Ok(Ok(Some(status))) => status,
        broken => {
            end(&mut process).await;
            return Err(match broken {
                Ok(Ok(_)) => PluginError::TooMuch(plugin, bounds.len),
                Ok(Err(error)) => PluginError::Read(plugin, error),
                Err(_) => PluginError::Late(plugin, bounds.patience.as_secs()),
            });
        }
    };
    if !status.success() {
        let last = output.last_line();
        return Err(PluginError::Failed(plugin, status, last));
    }
    let printed: Result<Printed, _> = serde_saphyr::from_slice(&output.printed);
    match printed {
        Ok(Printed { status: Some(status) }) => Ok(status),
        Ok(_) => Err(PluginError::Unreadable(plugin, "it has none".to_owned())),
        // More lines of it may show what was printed, which is a secret.
        Err(error) => {
            let why = error.to_string();
            let why = why.lines().next().unwrap_or_default().to_owned();
            Err(PluginError::Unreadable(plugin, why))
        }
    }
}

fn spawn(exec: &ExecConfig, program: &str, interactive: bool) -> io::Result<Child> {
    let mut command = Command::new(program);
    let mut about = json!({
        "kind": "ExecCredential",
        "apiVersion": exec.api_version,
        "spec": { "interactive": interactive },
    });
    if exec.provide_cluster_info {
        about["spec"]["cluster"] = serde_json::to_value(&exec.cluster).unwrap_or_default();
    }
    let variables = exec.env.iter().flatten();
    let variables = variables.filter_map(|one| Some((one.get("name")?, one.get("value")?)));
    command
        .args(exec.args.iter().flatten())
        .envs(variables)
        .env(INFO, about.to_string())
        .stdin(if interactive {
            Stdio::inherit()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        // What it asks, people see as it is.
        .stderr(if interactive {
            Stdio::inherit()
        } else {
            Stdio::piped()
        })
        .kill_on_drop(true)
        .spawn()
}

/// What a plugin prints.
#[derive(Default)]
struct Output {
    printed: Vec<u8>,
    /// Of what it says to people, what has not been said yet.
    unsaid: Vec<u8>,
    lines: usize,
    last: String,
}

impl Output {
    /// Reads until the plugin has ended; tells nothing where it prints too much.
    async fn read(&mut self, process: &mut Child, len: usize) -> io::Result<Option<ExitStatus>> {
        let mut stdout = process.stdout.take();
        let mut stderr = process.stderr.take();
        let mut status = None;
        let mut said = 0;
        let mut until = Instant::now();
        loop {
            let is_over = stdout.is_none() && stderr.is_none();
            if let Some(status) = status
                && (is_over || Instant::now() >= until)
            {
                self.say(true);
                return Ok(Some(status));
            }
            tokio::select! {
                ended = process.wait(), if status.is_none() => {
                    status = Some(ended?);
                    until = Instant::now() + GRACE;
                }
                read = some(&mut stdout, &mut self.printed) => if read? == 0 {
                    stdout = None;
                },
                read = some(&mut stderr, &mut self.unsaid) => match read? {
                    0 => stderr = None,
                    read => {
                        said += read;
                        self.say(false);
                    }
                },
                () = sleep_until(until), if status.is_some() => {}
            }
            if self.printed.len() > len || said > len {
                return Ok(None);
            }
        }
    }

    /// Says the lines that are whole, and what is left of one at the end.
    fn say(&mut self, is_end: bool) {
        let whole = match self.unsaid.iter().rposition(|byte| *byte == b'\n') {
            _ if is_end => self.unsaid.len(),
            Some(end) => end + 1,
            None => 0,
        };
        let lines: Vec<u8> = self.unsaid.drain(..whole).collect();
        for line in String::from_utf8_lossy(&lines).lines() {
            if !line.trim().is_empty() {
                self.lines += 1;
                if self.lines <= MAX_LINES {
                    say(line);
                }
                self.last = line.trim().to_owned();
            }
        }
    }

    /// The last that it has said to people.
    fn last_line(&self) -> String {
        const MOST: usize = 300;
        let line: String = shown(&self.last).chars().take(MOST).collect();
        match &line[..] {
            "" => String::new(),
            line => format!(": {line}"),
        }
    }
}

/// Reads some more; waits for ever where there is nothing to read.
async fn some(from: &mut Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) -> io::Result<usize> {
    match from {
        Some(from) => from.read_buf(into).await,
        None => std::future::pending().await,
    }
}

/// Ends the plugin, and what it has started.
async fn end(process: &mut Child) {
    #[cfg(target_os = "linux")]
    if let Some(pid) = process.id().and_then(|pid| i32::try_from(pid).ok()) {
        family::kill(pid);
    }
    // It has ended by itself, where that fails.
    let _ = process.kill().await;
}

#[cfg(target_os = "linux")]
mod family {
    //! A process and those below it. They are in the group of processes of this one, so that they have the terminal, and Ctrl-C
    //! is theirs, too.

    use std::fs;

    use rustix::process::{Pid, Signal, kill_process};

    /// Most processes that are looked for.
    const MOST: usize = 4096;

    /// Kills a child of ours that was not waited for, and all below it. They are stopped first, so that none starts another.
    pub(super) fn kill(child: i32) {
        let mut family = vec![child];
        let mut seen = 0;
        while let Some(&pid) = family.get(seen)
            && seen < MOST
        {
            signal(pid, Signal::STOP);
            family.extend(children(pid));
            seen += 1;
        }
        for pid in family {
            signal(pid, Signal::KILL);
        }
    }

    fn signal(pid: i32, signal: Signal) {
        if let Some(pid) = Pid::from_raw(pid) {
            // It may be gone.
            let _ = kill_process(pid, signal);
        }
    }

    fn children(pid: i32) -> Vec<i32> {
        let threads = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten();
        let of_thread = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children")).ok();
        let children: Vec<String> = threads.filter_map(of_thread).collect();
        let children = children.iter().flat_map(|line| line.split_whitespace());
        children.filter_map(|pid| pid.parse().ok()).collect()
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::{fs, process};

    use super::*;

    /// What a shell prints.
    fn shell(script: &str) -> ExecConfig {
        let config = json!({ "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
            "command": "sh", "args": ["-c", script], "installHint": "install it" });
        serde_json::from_value(config).expect("it is one")
    }

    async fn said(exec: &ExecConfig, patience: Duration) -> String {
        let bounds = Bounds {
            patience,
            len: 64 << 10,
        };
        match run(exec, "ann", &bounds).await {
            Ok(credential) => credential.token.unwrap_or_default(),
            Err(error) => crate::error::chain(&error),
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn plugins_give_tokens_or_say_why_not() {
        let json = r#"{"kind": "ExecCredential", "status": {"token": "abc"}}"#;
        let yaml = "kind: ExecCredential\nstatus:\n  token: abc";
        for (script, expected) in [
            (format!("echo '{json}'"), "abc"),
            (format!("echo '{yaml}'"), "abc"),
            // What it has left behind is not waited for.
            (format!("sleep 5 & echo '{json}'"), "abc"),
            (
                "echo $KUBERNETES_EXEC_INFO | grep -q '\"interactive\":false' && echo '{\"status\": {\"token\": \"asked\"}}'".to_owned(),
                "asked",
            ),
            (
                "echo a >&2; echo 'log in first' >&2; exit 3".to_owned(),
                "the plugin sh, by which the user ann of the kubeconfig logs in, has failed (exit status: 3): log in first",
            ),
            (
                "exit 1".to_owned(),
                "the plugin sh, by which the user ann of the kubeconfig logs in, has failed (exit status: 1)",
            ),
            (
                "echo '{}'".to_owned(),
                "the plugin sh, by which the user ann of the kubeconfig logs in, prints no ExecCredential with a status: it has none",
            ),
            (
                "yes".to_owned(),
                "the plugin sh, by which the user ann of the kubeconfig logs in, has printed more than 65536 bytes, and was ended: a \
                 credential has a few thousand",
            ),
            (
                "yes >&2".to_owned(),
                "the plugin sh, by which the user ann of the kubeconfig logs in, has printed more than 65536 bytes, and was ended: a \
                 credential has a few thousand",
            ),
        ] {
            assert_eq!(said(&shell(&script), LONG).await, expected, "{script}");
        }
        let mut missing = shell("");
        missing.command = Some("/nowhere/login".to_owned());
        assert_eq!(
            said(&missing, LONG).await,
            "the plugin login, by which the user ann of the kubeconfig logs in, cannot be started (install it): No such file or \
             directory (os error 2)"
        );
        missing.command = None;
        assert_eq!(
            said(&missing, LONG).await,
            "the user ann of the kubeconfig logs in by a plugin (exec), of which no command is told"
        );
        missing.command = Some("sh".to_owned());
        missing.interactive_mode = Some(ExecInteractiveMode::Always);
        if !io::stdin().is_terminal() {
            assert!(said(&missing, LONG).await.contains("wants a terminal"));
        }
    }

    #[tokio::test]
    async fn plugin_that_hangs_is_ended_with_all_that_it_has_started() {
        let file = std::env::temp_dir().join(format!("packetflix-plugin-{}", process::id()));
        // The one below waits for yet another, and both for ever.
        let script = format!(
            "sh -c 'sleep 1000 & echo $$ $! > {0}; wait' & wait",
            file.display()
        );
        let told = said(&shell(&script), Duration::from_secs(2)).await;
        let pids = fs::read_to_string(&file).unwrap_or_default();
        fs::remove_file(&file).unwrap();
        assert_eq!(
            told,
            "the plugin sh, by which the user ann of the kubeconfig logs in, has not ended within 2 s, and was ended: run it alone to \
             see what it waits for"
        );
        assert_eq!(pids.split_whitespace().count(), 2, "{pids}");
        if cfg!(target_os = "linux") {
            for pid in pids.split_whitespace() {
                has_ended(pid).await;
            }
        }
    }

    /// Waits for the end of a process that was killed: it takes a moment, and whoever has inherited it may not have noticed.
    async fn has_ended(pid: &str) {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let about = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if about.is_empty() || about.contains(") Z ") {
                return;
            }
            assert!(Instant::now() < until, "{about}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
