//! A reverse proxy that has put a path before those of a service, as one address for many services has it.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::Arc,
    thread,
};

/// Listens at a port of its own. Its threads end with the connections and the test.
pub struct ReverseProxy {
    port: u16,
}

impl ReverseProxy {
    /// One to the service at a port of this host, whose paths are found behind `path`; whatever else is asked for is not there.
    ///
    /// # Errors
    /// When there is no port.
    pub fn to(service: u16, path: &str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let path: Arc<str> = path.into();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let path = Arc::clone(&path);
                // What fails ends that connection, and the test sees that.
                thread::spawn(move || hand_on(client, service, &path));
            }
        });
        Ok(Self { port })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Hands on one request and its answer, and whatever is said after an upgrade.
fn hand_on(mut client: TcpStream, service: u16, path: &str) -> io::Result<()> {
    let mut asked = BufReader::new(client.try_clone()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if asked.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let is_header = |line: &str, name: &str| line.to_ascii_lowercase().starts_with(name);
    if !lines.iter().any(|line| is_header(line, "upgrade:")) {
        // The next request would come here with its path.
        lines.retain(|line| !is_header(line, "connection:"));
        lines.push("Connection: close".to_owned());
    }
    let Some((method, rest)) = lines[0].split_once(&format!(" {path}/")) else {
        return client.write_all(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    };
    lines[0] = format!("{method} /{rest}");
    let mut server = TcpStream::connect(("127.0.0.1", service))?;
    server.write_all(format!("{}\r\n\r\n", lines.join("\r\n")).as_bytes())?;
    let mut told = server.try_clone()?;
    thread::spawn(move || {
        let _ = io::copy(&mut asked, &mut server);
        server.shutdown(Shutdown::Write)
    });
    io::copy(&mut told, &mut client)?;
    client.shutdown(Shutdown::Write)
}
