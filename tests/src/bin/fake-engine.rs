//! Speaks Docker's API at a socket, and says that it runs what it is told to say: `fake-engine SOCKET [NAME PID]…`.
//! Says nothing at all when it is told of nothing. Dies when it has said so many bytes as the variable
//! `FAKE_ENGINE_DIES_AFTER` tells, headers and all. Other variables: it is silent about the process of the container
//! `FAKE_ENGINE_HANGS_FOR`, and fails when it is asked for that of `FAKE_ENGINE_FAILS_FOR`; all containers have the labels
//! `FAKE_ENGINE_LABELS`, as JSON; with `FAKE_ENGINE_HANDS_OVER`, who begins to listen ends, and another process goes on.
//! With `FAKE_ENGINE_SOCKETS` it listens at as many more, `SOCKET.NUMBER`, and says nothing there.
//! With `FAKE_ENGINE_LIST` it lists what that file has, and the process of each container is the number in its identifier.

use std::{
    io::{BufReader, Write as _},
    os::fd::AsFd as _,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use packetflix_tests::http::Head;
use serde_json::{Value, json};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().context("no socket")?;
    let listener = match std::env::var("FAKE_ENGINE_INHERITS") {
        Ok(starter) => {
            // Nobody else would end it.
            thread::spawn(move || {
                while Path::new("/proc").join(&starter).exists() {
                    thread::sleep(Duration::from_millis(100));
                }
                std::process::exit(0);
            });
            UnixListener::from(std::io::stdin().as_fd().try_clone_to_owned()?)
        }
        Err(_) => UnixListener::bind(&path)?,
    };
    let more = std::env::var("FAKE_ENGINE_SOCKETS").map_or(Ok(0), |number| number.parse::<u32>())?;
    let more = (0..more).map(|number| UnixListener::bind(format!("{path}.{number}")));
    let _more = more.collect::<Result<Vec<_>, _>>()?;
    if std::env::var("FAKE_ENGINE_HANDS_OVER").is_ok() {
        std::process::Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env_remove("FAKE_ENGINE_HANDS_OVER")
            .env(
                "FAKE_ENGINE_INHERITS",
                std::os::unix::process::parent_id().to_string(),
            )
            .stdin(std::os::fd::OwnedFd::from(listener))
            .spawn()?;
        return Ok(());
    }
    let mut containers = Vec::new();
    while let (Some(name), Some(pid)) = (arguments.next(), arguments.next()) {
        containers.push((name, pid.parse::<i64>()?));
    }
    let dies_after = std::env::var("FAKE_ENGINE_DIES_AFTER").ok();
    let left = dies_after.map(|bytes| bytes.parse()).transpose()?;
    let left = Arc::new(Mutex::new(left));
    println!("ready");
    for stream in listener.incoming() {
        let (stream, containers, left) = (stream?, containers.clone(), Arc::clone(&left));
        thread::spawn(move || answer(stream, &containers, &left));
    }
    Ok(())
}

/// Answers one request.
fn answer(
    stream: UnixStream,
    containers: &[(String, i64)],
    left: &Mutex<Option<usize>>,
) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    let head = Head::read(&mut stream)?;
    if let Some(list) = std::env::var_os("FAKE_ENGINE_LIST") {
        let body = if head.line.contains(" /containers/json ") {
            std::fs::read(list)?
        } else {
            let digits: String = head.line.chars().filter(char::is_ascii_digit).collect();
            // The last two are of HTTP.
            let pid = digits.get(..digits.len() - 2).and_then(|pid| pid.parse().ok());
            json!({ "State": { "Pid": pid.unwrap_or(1) } })
                .to_string()
                .into_bytes()
        };
        let stream = stream.get_mut();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )?;
        return Ok(stream.write_all(&body)?);
    }
    if containers.is_empty() {
        // Whoever waits has to be the first to lose patience.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
        return Ok(());
    }
    let path = head.line.split(' ').nth(1).context("no path")?;
    let named = |id: &str| containers.iter().find(|(name, _)| id_of(name) == id);
    let is_asked_for = |variable: &str| {
        let name = std::env::var(variable).ok();
        name.is_some_and(|name| path.contains(&format!("/{}/", id_of(&name))))
    };
    if is_asked_for("FAKE_ENGINE_HANGS_FOR") {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
        return Ok(());
    }
    let body = match path.split('/').collect::<Vec<_>>()[..] {
        ["", "containers", "json"] => containers.iter().map(|(name, _)| summary(name)).collect(),
        ["", "containers", id, "json"] => {
            named(id).map_or(Value::Null, |(_, pid)| json!({ "State": { "Pid": pid } }))
        }
        _ => Value::Null,
    };
    let status = match body.is_null() {
        _ if is_asked_for("FAKE_ENGINE_FAILS_FOR") => "500 Internal Server Error",
        true => "404 Not Found",
        false => "200 OK",
    };
    let body = body.to_string();
    let answer = format!(
        "HTTP/1.1 {status}\r\nServer: Docker/0 (fake)\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(left) = &mut *left {
        let said = answer.as_bytes().get(..*left).unwrap_or(answer.as_bytes());
        stream.get_mut().write_all(said)?;
        *left -= said.len();
        if *left == 0 {
            std::process::exit(1);
        }
        return Ok(());
    }
    drop(left);
    stream.get_mut().write_all(answer.as_bytes())?;
    Ok(())
}

/// The identifier of a container of this name.
fn id_of(name: &str) -> String {
    let letters: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{letters}0id")
}

fn summary(name: &str) -> Value {
    let labels = std::env::var("FAKE_ENGINE_LABELS").ok();
    let labels: Option<Value> = labels.and_then(|labels| serde_json::from_str(&labels).ok());
    json!({ "Id": id_of(name), "Names": [format!("/{name}")], "Image": "fake", "Labels": labels, "State": "running" })
}
