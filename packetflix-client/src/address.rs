//! Addresses of captures, as web pages and other programs hand them over.

use std::str::FromStr;

use crate::{
    request::{CaptureRequest, Selection, Target},
    server::{Address, ServerError},
};

/// What such an address begins with.
pub(crate) const SCHEME: &str = "packetflix:";

/// Schemes of servers that it may lead to: nothing that runs a program, or that only this host has.
const SERVER_SCHEMES: [&str; 2] = ["ws://", "wss://"];

/// Where a server captures what: `packetflix:ws://HOST:PORT/capture?container=…`, as the buttons of `GhostWire` give it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CaptureAddress {
    pub(crate) server: Address,
    pub(crate) request: CaptureRequest,
}

/// Why an address leads nowhere.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddressError {
    /// It is none.
    #[error("{0} is no address of a capture: write packetflix:ws://HOST:PORT/capture?container=…")]
    Form(String),
    /// It does not say where.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// It does not say what.
    #[error("{0} names no target: container=, netns= or target= is missing")]
    NoTarget(String),
}

impl FromStr for CaptureAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError::Form(text.to_owned());
        // It becomes a preference of Wireshark's, whose file has one in each line.
        if text.contains(char::is_control) {
            return Err(wrong());
        }
        let url = text.strip_prefix(SCHEME).ok_or_else(wrong)?;
        // As pages write it that take the scheme for that of a server.
        let url = match url.strip_prefix("//") {
            Some(rest) => format!("ws://{rest}"),
            None => url.to_owned(),
        };
        if !SERVER_SCHEMES.iter().any(|scheme| url.starts_with(scheme)) {
            return Err(wrong());
        }
        let (place, query) = url.split_once('?').ok_or_else(wrong)?;
        let server = place.strip_suffix("/capture").ok_or_else(wrong)?.parse()?;
        let query: Vec<(String, String)> = serde_urlencoded::from_str(query).map_err(|_| wrong())?;
        let find = |wanted: &str| {
            let found = query.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| &value[..])
        };
        let given = |name| find(name).filter(|value| !value.is_empty());
        let switch = |name| match given(name) {
            None => Ok(None),
            Some("0") => Ok(Some(false)),
            Some("1") => Ok(Some(true)),
            Some(_) => Err(wrong()),
        };
        let words = query
            .iter()
            .filter(|(name, word)| name == "target" && !word.is_empty());
        let words: Vec<String> = words.map(|(_, word)| word.clone()).collect();
        let target = match (given("container"), given("netns")) {
            _ if !words.is_empty() => Target::Selection(Selection {
                words,
                follows: switch("follow")?,
                waits: switch("wait")?.unwrap_or_default(),
            }),
            (Some(description), _) => Target::Description(description.to_owned()),
            (None, Some(inode)) => Target::Netns(inode.parse().map_err(|_| wrong())?),
            (None, None) => return Err(AddressError::NoTarget(text.to_owned())),
        };
        let interfaces = match given("nif") {
            None | Some("all" | "any") => Vec::new(),
            Some(names) => names.split('/').map(str::to_owned).collect(),
        };
        Ok(Self {
            server,
            request: CaptureRequest {
                interfaces,
                filter: given("filter").unwrap_or_default().to_owned(),
                promiscuous: find("chaste").is_none(),
                ..CaptureRequest::new(target)
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_those_of_ghostwire() {
        let address: CaptureAddress =
            "packetflix:ws://[::1]:5001/capture?container=%7B%22name%22%3A%22web%22%7D&nif=eth0/lo&chaste\
             &filter=tcp%20port%2080"
                .parse()
                .unwrap();
        assert_eq!(address.server.to_string(), "http://[::1]:5001");
        let description = Target::Description(r#"{"name":"web"}"#.to_owned());
        let expected = CaptureRequest {
            interfaces: vec!["eth0".to_owned(), "lo".to_owned()],
            filter: "tcp port 80".to_owned(),
            promiscuous: false,
            ..CaptureRequest::new(description)
        };
        assert_eq!(address.request, expected);

        let unescaped: CaptureAddress = r#"packetflix:wss://host/capture?container={"name":"web"}&nif=all"#
            .parse()
            .unwrap();
        assert_eq!(unescaped.server.to_string(), "https://host:443");
        assert_eq!(unescaped.request.interfaces, Vec::<String>::new());
        assert_eq!(unescaped.request.target, expected.target);

        for (text, server) in [
            ("packetflix://host:5001/capture?netns=5", "http://host:5001"),
            (
                "packetflix:wss://host/edge/shark/capture?netns=5",
                "https://host:443/edge/shark",
            ),
        ] {
            let address: CaptureAddress = text.parse().unwrap();
            assert_eq!(address.server.to_string(), server);
            assert_eq!(address.request.target, Target::Netns(5));
        }
    }

    #[test]
    fn addresses_name_several_targets() {
        let address: CaptureAddress =
            "packetflix:ws://host:5001/capture?target=web&target=label:app%3Ddb&target=!c&follow=0&wait=1"
                .parse()
                .unwrap();
        let selection = Selection {
            words: ["web", "label:app=db", "!c"].map(str::to_owned).to_vec(),
            follows: Some(false),
            waits: true,
        };
        assert_eq!(address.request.target, Target::Selection(selection));
        for wrong in ["target=", "target=web&follow=maybe", "target=web&wait=2"] {
            let address = format!("packetflix:ws://host:5001/capture?{wrong}");
            assert!(address.parse::<CaptureAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_run_no_programs() {
        for wrong in [
            "packetflix:ssh://host/capture?netns=5",
            "packetflix:unix:/run/s/capture?netns=5",
            "packetflix:ws://-host x/capture?netns=5",
            "packetflix:ws://host/capture",
            "packetflix:ws://host/a b/capture?netns=5",
            "packetflix:ws://host/capture?netns=5\nextcap.packetflix.server: ssh://other",
            "packetflix:ws://ho\tst/capture?netns=5",
            "packetflix:ws://user@host/capture?netns=5",
            "packetflix:ws://host/?netns=5",
            "packetflix:ws://host/capture?nif=lo",
            "packetflix:ws://host/capture?netns=x",
            "ws://host/capture?netns=5",
            "",
        ] {
            assert!(wrong.parse::<CaptureAddress>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_or_an_error(text in "packetflix:(ws|wss|ssh)://.{0,40}/capture\\?.{0,80}") {
            if let Ok(address) = text.parse::<CaptureAddress>() {
                prop_assert!(matches!(address.server, Address::Tcp { .. }), "{}", address.server);
            }
        }
    }
}
