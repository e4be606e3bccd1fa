//! The emulator's control socket: <https://www.qemu.org/docs/master/interop/qmp-spec.html>.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

/// Most answers and events that are read until the one that is waited for.
const MOST_MESSAGES: usize = 100;

/// Plugs in another CPU.
///
/// # Errors
/// When all are plugged in, or the emulator does not answer.
pub(crate) fn add_cpu(socket: &Path) -> anyhow::Result<()> {
    let mut control = Control::open(socket)?;
    control.ask(&json!({ "execute": "qmp_capabilities" }))?;
    let slots = control.ask(&json!({ "execute": "query-hotpluggable-cpus" }))?;
    // A slot that is taken says by what. They are listed from the last to the first.
    let free = slots.as_array().into_iter().flatten().rev();
    let slot = free
        .into_iter()
        .find(|slot| slot["qom-path"].is_null())
        .context("no CPU is left to be plugged in")?;
    let mut arguments = slot["props"].clone();
    arguments["driver"] = slot["type"].clone();
    arguments["id"] = json!(format!(
        "cpu-{}",
        slot["props"]["core-id"].to_string() + &slot["props"]["socket-id"].to_string()
    ));
    control.ask(&json!({ "execute": "device_add", "arguments": arguments }))?;
    Ok(())
}

struct Control {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Control {
    fn open(socket: &Path) -> anyhow::Result<Self> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let answers = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, answers })
    }

    fn ask(&mut self, question: &Value) -> anyhow::Result<Value> {
        writeln!(self.stream, "{question}")?;
        for _ in 0..MOST_MESSAGES {
            let mut line = String::new();
            self.answers.read_line(&mut line)?;
            let mut answer: Value = serde_json::from_str(&line).context("not an answer of the emulator")?;
            if !answer["error"].is_null() {
                bail!("the emulator refuses {question}: {}", answer["error"]);
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
        bail!("the emulator does not answer {question}")
    }
}
