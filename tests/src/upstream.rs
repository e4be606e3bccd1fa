//! A scripted HTTP service, such as a proxy has behind it.

use std::{
    io::{BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use crate::http::Head;

/// A connection of which the head of the request is read already.
pub type Stream = BufReader<TcpStream>;

/// A service on a port of its own. Its threads end with the test.
pub struct Upstream {
    port: u16,
    heads: Arc<Mutex<Vec<Head>>>,
}

impl Upstream {
    /// Starts a service that reads the head of one request per connection and leaves the rest to `script`.
    /// What fails there ends that connection, and the test sees that.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start(
        script: impl Fn(&Head, Stream) -> anyhow::Result<()> + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (kept, script) = (Arc::clone(&heads), Arc::new(script));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (kept, script) = (Arc::clone(&kept), Arc::clone(&script));
                thread::spawn(move || {
                    let mut stream = BufReader::new(stream);
                    let head = Head::read(&mut stream)?;
                    if let Ok(mut kept) = kept.lock() {
                        kept.push(head.clone());
                    }
                    script(&head, stream)
                });
            }
        });
        Ok(Self { port, heads })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Heads of all requests so far.
    pub fn heads(&self) -> Vec<Head> {
        self.heads.lock().map(|heads| heads.clone()).unwrap_or_default()
    }
}

/// Answers with a status line's end, header lines that each end with CRLF, and a body of known length.
///
/// # Errors
/// When the client is gone.
pub fn answer(stream: &Stream, status: &str, headers: &str, body: &str) -> anyhow::Result<()> {
    let length = body.len();
    Ok(write!(
        stream.get_ref(),
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )?)
}
