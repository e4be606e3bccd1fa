//! Several hosts behind one address. Their servers run on this one, each with a name and a port of its own.

mod apart;
mod desk;
mod endpoints;
mod hostile;
mod kubernetes;
mod lists;
mod memory;
mod misbehaving;
mod obstacles;
mod page;
mod scripted;
mod streams;
mod wireshark;

use std::{
    io::Read as _,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    process::Command,
    thread,
};

use packetflix_tests::{
    folder::Folder,
    server::{Server, program},
};

/// The token that the nodes know.
const TOKEN: &str = "gateway-0123456789abcdef";

/// Nodes, and what a gateway has to know of them.
struct Cluster {
    folder: Folder,
    nodes: Vec<(String, Server)>,
}

impl Cluster {
    /// Starts a server for each of these names.
    fn start(names: &[&str]) -> anyhow::Result<Self> {
        let names: Vec<(&str, Vec<String>)> = names.iter().map(|name| (*name, Vec::new())).collect();
        Self::start_with(&names)
    }

    /// The same, each with more flags.
    fn start_with(names: &[(&str, Vec<String>)]) -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        for (file, text) in [
            ("tokens", format!("gateway {TOKEN} discover capture admin\n")),
            ("token", TOKEN.to_owned()),
        ] {
            let path = folder.path().join(file);
            std::fs::write(&path, text)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        }
        let tokens = folder.path().join("tokens").display().to_string();
        let node = |(name, more): &(&str, Vec<String>)| {
            let flags: Vec<&str> = node_flags(name, &tokens)
                .into_iter()
                .chain(more.iter().map(String::as_str))
                .collect();
            anyhow::Ok(((*name).to_owned(), Server::start(&flags)?))
        };
        let nodes = names.iter().map(node).collect::<anyhow::Result<_>>()?;
        Ok(Self { folder, nodes })
    }

    /// Starts a node of this name again, where it was.
    fn start_at(&self, port: u16, name: &str) -> anyhow::Result<Server> {
        let tokens = self.folder.path().join("tokens").display().to_string();
        Server::start_at(port, &node_flags(name, &tokens))
    }

    /// The flags that make a gateway to these nodes.
    fn flags(&self) -> Vec<String> {
        let nodes = self.nodes.iter();
        let nodes = nodes.map(|(name, server)| format!("--node={name}=http://127.0.0.1:{}", server.port()));
        let token = self.folder.path().join("token");
        nodes
            .chain([format!("--node-token-file={}", token.display())])
            .collect()
    }

    /// A gateway to these nodes, and with more flags.
    fn gateway(&self, more: &[&str]) -> anyhow::Result<Server> {
        let flags = self.flags();
        // A busy machine is no node that hangs.
        let patient = match more.iter().any(|flag| flag.starts_with("--node-timeout")) {
            true => None,
            false => Some("--node-timeout=30"),
        };
        let flags = flags.iter().map(String::as_str).chain(patient);
        let flags: Vec<&str> = flags.chain(more.iter().copied()).collect();
        gateway(&flags)
    }

    fn node(&self, name: &str) -> &Server {
        let named = self.nodes.iter().find(|(node, _)| node == name);
        named.map(|(_, server)| server).expect("there is one")
    }
}

fn node_flags<'a>(name: &'a str, tokens: &'a str) -> [&'a str; 6] {
    ["--node-name", name, "--token-file", tokens, "--ring-size", "1MiB"]
}

fn gateway(flags: &[&str]) -> anyhow::Result<Server> {
    Server::start_by(Command::new(program("packetflix")?).arg("gateway"), flags)
}

/// A port at which connections are taken and nothing is said, for as long as the process lives.
fn silent_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    say_nothing(listener);
    Ok(port)
}

fn say_nothing(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming().take(100).flatten() {
            thread::spawn(move || {
                let mut stream = stream;
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
}

/// A port at which nobody listens.
fn closed_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
