//! The page, of a service that tells what a test has it tell.

use std::{io::Write as _, net::TcpStream, process::Command};

use packetflix_tests::{
    namespace::output_of,
    server::Server,
    upstream::{Upstream, answer},
};

/// A service whose page is the real one's. It ends with the test.
pub(crate) struct Scripted {
    _server: Server,
    front: Upstream,
}

impl Scripted {
    /// One that tells of the targets that `targets` gives each time that somebody asks, and of traffic what `rates` writes, for as
    /// long as that takes.
    pub(crate) fn start(
        targets: impl Fn() -> String + Send + Sync + 'static,
        rates: impl Fn(&mut TcpStream) -> anyhow::Result<()> + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let server = Server::start(&[])?;
        let port = server.port();
        let front = Upstream::start(move |head, mut stream| {
            let path = head.line.split(' ').nth(1).unwrap_or_default();
            let (kind, body) = match path {
                "/rates" => {
                    stream
                        .get_mut()
                        .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
                    return rates(stream.get_mut());
                }
                "/targets" => ("application/json", targets()),
                path => {
                    let at = format!("http://127.0.0.1:{port}{path}");
                    let body = output_of(Command::new("curl").args(["--silent", "--max-time", "3", &at]));
                    let kind = match path.rsplit('.').next() {
                        Some("js") => "text/javascript",
                        Some("css") => "text/css",
                        _ => "text/html",
                    };
                    (kind, body.unwrap_or_default())
                }
            };
            answer(&stream, "200 OK", &format!("Content-Type: {kind}\r\n"), &body)
        })?;
        Ok(Self {
            _server: server,
            front,
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.front.port())
    }
}
