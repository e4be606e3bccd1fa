//! A slow connection to a service on this host.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use socket2::{Domain, Socket, Type};

/// Bytes that are handed on at once.
const AT_ONCE: usize = 16 << 10;

/// Listens at a port of its own, and hands what the service says to whoever connects no faster than told. Its threads end with
/// the connections and the test.
pub struct SlowLink {
    port: u16,
}

impl SlowLink {
    /// A link to the service at a port, with so many bytes in a second from there.
    ///
    /// # Errors
    /// When there is no port.
    pub fn to(service: u16, bytes_per_second: u32) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // What fails ends that connection, and the test sees that.
                let _ = link(client, service, bytes_per_second);
            }
        });
        Ok(Self { port })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

fn link(mut client: TcpStream, service: u16, bytes_per_second: u32) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // What waits is to wait at the service.
    socket.set_recv_buffer_size(AT_ONCE)?;
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], service)).into())?;
    let server = TcpStream::from(socket);
    let (mut asked, mut told, mut into) = (server.try_clone()?, server, client.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut client, &mut asked);
        asked.shutdown(Shutdown::Write)
    });
    thread::spawn(move || -> io::Result<()> {
        let mut buffer = [0; AT_ONCE];
        loop {
            let len = told.read(&mut buffer)?;
            if len == 0 {
                return into.shutdown(Shutdown::Write);
            }
            into.write_all(&buffer[..len])?;
            thread::sleep(Duration::from_secs_f64(len as f64 / f64::from(bytes_per_second)));
        }
    });
    Ok(())
}
