//! What a client asks for, taken from the query and the headers. Touches nothing of the system.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use warp::http::HeaderMap;

use crate::{
    description::TargetDescription,
    nearest::nearest,
    pcapng::SNAPLEN as MAX_SNAPLEN,
    resolve::Selection,
    service::{CaptureRequest, Several, TooManyInterfaces, select},
    session::{Limits, StatisticsPace},
    tap::InterfaceSelection,
    units::{parse_duration, parse_size},
};

const CONTAINER: Parameter = Parameter {
    name: "container",
    header: Some("clustershark-container"),
};
const NETNS: Parameter = Parameter {
    name: "netns",
    header: None,
};
/// A word of a selection, which may come several times.
const TARGET: &str = "target";
const FOLLOW: Parameter = Parameter {
    name: "follow",
    header: None,
};
const WAIT: Parameter = Parameter {
    name: "wait",
    header: None,
};
const NIF: Parameter = Parameter {
    name: "nif",
    header: Some("clustershark-nif"),
};
const FILTER: Parameter = Parameter {
    name: "filter",
    header: Some("clustershark-filter"),
};
const NAMES: Parameter = Parameter {
    name: "names",
    header: None,
};
const SELF: Parameter = Parameter {
    name: "self",
    header: None,
};
const CHASTE: Parameter = Parameter {
    name: "chaste",
    header: Some("clustershark-chaste"),
};
const SNAPLEN: Parameter = Parameter {
    name: "snaplen",
    header: None,
};
const PACKETS: Parameter = Parameter {
    name: "packets",
    header: None,
};
const BYTES: Parameter = Parameter {
    name: "bytes",
    header: None,
};
const DURATION: Parameter = Parameter {
    name: "duration",
    header: None,
};

const STATISTICS: Parameter = Parameter {
    name: "statistics",
    header: None,
};

/// All of them. No other is read.
const PARAMETERS: [Parameter; 15] = [
    CONTAINER,
    NETNS,
    Parameter {
        name: TARGET,
        header: None,
    },
    FOLLOW,
    WAIT,
    NIF,
    FILTER,
    NAMES,
    SELF,
    CHASTE,
    SNAPLEN,
    PACKETS,
    BYTES,
    DURATION,
    STATISTICS,
];

/// Most targets that a request describes.
const MAX_DESCRIBED: usize = 256;

/// Statistics are known anew after this time, and no sooner.
const MIN_STATISTICS_INTERVAL: Duration = Duration::from_secs(1);

/// A parameter of the query, and the header that wins over it.
struct Parameter {
    name: &'static str,
    header: Option<&'static str>,
}

/// Why a request cannot be served.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum RequestError {
    #[error("a page of {origin} may not capture here: its origin is not {host}")]
    ForeignOrigin { origin: String, host: String },
    #[error(
        "{host} is no name of this service: a page of a name that its owner lets lead here would ask like that; ask by an \
         address, or name it with --allow-host"
    )]
    ForeignHost { host: String },
    #[error("a page of another site may not ask for this")]
    CrossSite,
    #[error("the header {0} comes more than once")]
    RepeatedHeader(&'static str),
    #[error(
        "this is a WebSocket endpoint: please ask for an upgrade, with a client such as csharg or Wireshark's \
         cshargextcap, at ws://HOST:PORT/capture?netns=NUMBER"
    )]
    NoUpgrade,
    #[error("the WebSocket protocol is spoken here in its version 13 only")]
    WebSocketVersion,
    #[error("the WebSocket handshake lacks its Sec-WebSocket-Key")]
    NoWebSocketKey,
    #[error("the query cannot be read: {0}")]
    Query(String),
    #[error("the header {0} is not readable text")]
    Header(&'static str),
    #[error("the parameter {0} is given more than once")]
    Repeated(&'static str),
    #[error("there is no parameter {name}{}", or_meant(*nearest))]
    Unknown {
        name: String,
        /// One that there is, and that may have been meant.
        nearest: Option<&'static str>,
    },
    #[error(
        "no target is given: name a container with container={{\"name\":\"NAME\"}}, or a network namespace with netns=NUMBER"
    )]
    NoTarget,
    #[error("{0} and {1} are given: they exclude each other")]
    TwoTargets(&'static str, &'static str),
    #[error("{0}= goes with targets that are named with target=")]
    OfOneTarget(&'static str),
    #[error("container= describes {0} targets, and {MAX_DESCRIBED} is the most")]
    TooManyDescribed(usize),
    #[error("container= is no JSON object that describes a target: {0}")]
    Container(String),
    #[error("netns={0} is not the inode number of a network namespace")]
    Netns(String),
    #[error(transparent)]
    TooManyInterfaces(#[from] TooManyInterfaces),
    #[error("{0}={1} is neither 0 nor 1")]
    Switch(&'static str, String),
    #[error("{name}={value} cannot be used: {hint}")]
    Limit {
        name: &'static str,
        value: String,
        hint: String,
    },
}

/// Reads the request for a capture. Headers that we do not know are ignored; parameters are not.
pub(crate) fn parse(query: &str, headers: &HeaderMap) -> Result<CaptureRequest, RequestError> {
    let parameters = Parameters::parse(query, headers)?;
    let container = parameters.get(&CONTAINER)?.filter(|text| !text.is_empty());
    let netns = parameters.get(&NETNS)?.filter(|text| !text.is_empty());
    let words = parameters.words();
    let described = match (container, netns, &words[..]) {
        (None, None, []) => return Err(RequestError::NoTarget),
        (Some(_), Some(_), _) => return Err(RequestError::TwoTargets("container", "netns")),
        (Some(_), None, [_, ..]) => return Err(RequestError::TwoTargets("container", TARGET)),
        (None, Some(_), [_, ..]) => return Err(RequestError::TwoTargets("netns", TARGET)),
        (Some(container), None, []) => parse_containers(container)?,
        (None, Some(netns), []) => vec![TargetDescription::namespace(parse_netns(netns)?)],
        (None, None, [_, ..]) => Vec::new(),
    };
    let several = Several {
        words,
        described,
        follow: parameters.choice(&FOLLOW)?,
        wait: parameters.switch(&WAIT, false)?,
    };
    let (target, several) = one_or_several(several)?;
    let selection = parameters.get(&NIF)?.map(parse_interfaces).transpose()?;
    // Presence alone counts: existing clients rely on it, whatever the value.
    let chaste = parameters.get(&CHASTE)?.is_some();
    let limits = Limits {
        packets: parameters.limit(&PACKETS, parse_packets)?,
        bytes: parameters.limit(&BYTES, parse_size)?,
        duration: parameters.limit(&DURATION, parse_duration)?,
        max_duration: None,
    };
    Ok(CaptureRequest {
        target,
        several,
        selection,
        filter: parameters.get(&FILTER)?.unwrap_or_default().trim().to_owned(),
        with_own: parameters.switch(&SELF, false)?,
        chaste,
        names: parameters.switch(&NAMES, true)?,
        // None is asked for by 0, as of tcpdump.
        snaplen: match parameters.limit(&SNAPLEN, parse_snaplen)? {
            None | Some(0) => MAX_SNAPLEN,
            Some(snaplen) => snaplen,
        },
        statistics: parameters
            .limit(&STATISTICS, parse_statistics)?
            .unwrap_or_else(|| limits.usual_statistics()),
        limits,
    })
}

/// A target that is asked for as always has been, or several.
fn one_or_several(mut several: Several) -> Result<(TargetDescription, Option<Several>), RequestError> {
    let is_alone = several.follow != Some(true) && !several.wait;
    match (&several.words[..], &several.described[..]) {
        ([word], []) if is_alone && Selection::is_single(word) => {
            let target = TargetDescription {
                name: word.clone(),
                ..TargetDescription::default()
            };
            Ok((target, None))
        }
        // What is described is one target each: nothing else can come to be meant.
        ([], [_, _, ..]) if several.follow == Some(true) => Err(RequestError::OfOneTarget(FOLLOW.name)),
        ([], [_, _, ..]) if several.wait => Err(RequestError::OfOneTarget(WAIT.name)),
        ([], [_]) => match (several.follow, several.wait, several.described.pop()) {
            (None, false, Some(target)) => Ok((target, None)),
            (Some(_), ..) => Err(RequestError::OfOneTarget(FOLLOW.name)),
            _ => Err(RequestError::OfOneTarget(WAIT.name)),
        },
        _ => Ok((TargetDescription::default(), Some(several))),
    }
}

/// Names of the headers that are read.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn headers_that_count() -> impl Iterator<Item = &'static str> {
    PARAMETERS.iter().filter_map(|parameter| parameter.header)
}

/// The end of a sentence that names what may have been meant.
fn or_meant(nearest: Option<&str>) -> String {
    nearest.map_or_else(
        || format!("; there are {}", PARAMETERS.map(|known| known.name).join(", ")),
        |nearest| format!(": {nearest} is the nearest"),
    )
}

fn parse_netns(text: &str) -> Result<u64, RequestError> {
    text.parse()
        .ok()
        .filter(|number| *number != 0)
        .ok_or_else(|| RequestError::Netns(text.to_owned()))
}

fn parse_snaplen(text: &str) -> Result<u32, String> {
    let snaplen = text.parse().ok().filter(|bytes| *bytes <= MAX_SNAPLEN);
    snaplen.ok_or_else(|| format!("give a number of bytes from 1 to {MAX_SNAPLEN}, or 0 for all of them"))
}

fn parse_packets(text: &str) -> Result<u64, String> {
    let packets = text.parse().ok().filter(|packets| *packets > 0);
    packets.ok_or_else(|| "give a whole number of at least 1".to_owned())
}

fn parse_statistics(text: &str) -> Result<StatisticsPace, String> {
    if text == "end" {
        return Ok(StatisticsPace::AtEnd);
    }
    match parse_duration(text) {
        Ok(interval) if interval >= MIN_STATISTICS_INTERVAL => Ok(StatisticsPace::Every(interval)),
        _ => Err("give a time of at least 1s, such as `10s`, or `end` for none before the end".to_owned()),
    }
}

pub(crate) fn parse_container(text: &str) -> Result<TargetDescription, RequestError> {
    // A list would be taken for the members in their order.
    if text.trim_start().starts_with('[') {
        return Err(RequestError::Container("it is a list".to_owned()));
    }
    serde_json::from_str(text).map_err(|error| RequestError::Container(error.to_string()))
}

/// One description of a target, or a list of them.
fn parse_containers(text: &str) -> Result<Vec<TargetDescription>, RequestError> {
    if !text.trim_start().starts_with('[') {
        return Ok(vec![parse_container(text)?]);
    }
    let unreadable = |error: serde_json::Error| RequestError::Container(error.to_string());
    let parts: Vec<Value> = serde_json::from_str(text).map_err(unreadable)?;
    let described = |part: Value| match part {
        Value::Object(_) => serde_json::from_value(part).map_err(unreadable),
        _ => Err(RequestError::Container(format!("{part} is no object"))),
    };
    match parts.len() {
        0 => Err(RequestError::NoTarget),
        1..=MAX_DESCRIBED => parts.into_iter().map(described).collect(),
        count => Err(RequestError::TooManyDescribed(count)),
    }
}

fn parse_interfaces(text: &str) -> Result<InterfaceSelection, RequestError> {
    Ok(select(text.split('/').map(str::to_owned).collect())?)
}

/// The parameters of a query, beside the headers.
struct Parameters<'a> {
    query: BTreeMap<String, Vec<String>>,
    headers: &'a HeaderMap,
}

impl<'a> Parameters<'a> {
    fn parse(query: &str, headers: &'a HeaderMap) -> Result<Self, RequestError> {
        let pairs: Vec<(String, String)> =
            serde_urlencoded::from_str(query).map_err(|error| RequestError::Query(error.to_string()))?;
        let mut query: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in pairs {
            if !PARAMETERS.iter().any(|known| known.name == name) {
                let names = PARAMETERS.iter().map(|known| known.name);
                let nearest = nearest(&name, names, 1).first().copied();
                return Err(RequestError::Unknown { name, nearest });
            }
            query.entry(name).or_default().push(value);
        }
        Ok(Self { query, headers })
    }

    fn get(&self, parameter: &Parameter) -> Result<Option<&str>, RequestError> {
        if let Some(name) = parameter.header {
            let mut values = self.headers.get_all(name).iter();
            if let Some(value) = values.next() {
                if values.next().is_some() {
                    return Err(RequestError::Repeated(name));
                }
                let value = std::str::from_utf8(value.as_bytes()).map_err(|_| RequestError::Header(name))?;
                return Ok(Some(value));
            }
        }
        match self.query.get(parameter.name).map(Vec::as_slice) {
            None | Some([]) => Ok(None),
            Some([value]) => Ok(Some(value)),
            Some(_) => Err(RequestError::Repeated(parameter.name)),
        }
    }

    /// A parameter that bounds something; nothing where it is empty.
    fn limit<T>(
        &self,
        parameter: &Parameter,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, RequestError> {
        let Some(value) = self.get(parameter)?.filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        parse(value).map(Some).map_err(|hint| RequestError::Limit {
            name: parameter.name,
            value: value.to_owned(),
            hint,
        })
    }

    /// The words of a selection.
    fn words(&self) -> Vec<String> {
        self.query.get(TARGET).cloned().unwrap_or_default()
    }

    /// A parameter that is on or off.
    fn switch(&self, parameter: &Parameter, default: bool) -> Result<bool, RequestError> {
        Ok(self.choice(parameter)?.unwrap_or(default))
    }

    /// A parameter that is on or off, if it is given.
    fn choice(&self, parameter: &Parameter) -> Result<Option<bool>, RequestError> {
        match self.get(parameter)? {
            None | Some("") => Ok(None),
            Some("1") => Ok(Some(true)),
            Some("0") => Ok(Some(false)),
            Some(other) => Err(RequestError::Switch(parameter.name, other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use packetflix_common::MAX_INTERFACES;
    use proptest::prelude::*;
    use warp::http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    fn parse(query: &str) -> Result<CaptureRequest, RequestError> {
        super::parse(query, &HeaderMap::new())
    }

    fn named(names: &[&str]) -> Option<InterfaceSelection> {
        Some(InterfaceSelection::Named(
            names.iter().map(|name| (*name).to_owned()).collect(),
        ))
    }

    #[test]
    fn every_way_to_say_all_interfaces() {
        assert_eq!(parse("netns=5").unwrap().selection, None);
        for query in [
            "netns=5&nif=",
            "netns=5&nif=all",
            "netns=5&nif=any",
            "netns=5&nif=%2F",
        ] {
            let request = parse(query).unwrap();
            assert_eq!(
                request,
                CaptureRequest {
                    target: TargetDescription::namespace(5),
                    several: None,
                    selection: Some(InterfaceSelection::All),
                    filter: String::new(),
                    with_own: false,
                    chaste: false,
                    names: true,
                    snaplen: MAX_SNAPLEN,
                    limits: Limits::default(),
                    statistics: StatisticsPace::OnLoss,
                }
            );
        }
    }

    #[test]
    fn names_are_joined_by_slashes() {
        assert_eq!(parse("netns=5&nif=eth0").unwrap().selection, named(&["eth0"]));
        assert_eq!(parse("netns=5&nif=any/any").unwrap().selection, named(&["any"]));
        assert_eq!(
            parse("netns=5&nif=lo%2Feth0%2Flo").unwrap().selection,
            named(&["eth0", "lo"])
        );
        assert_eq!(
            parse("netns=5&nif=all/eth0").unwrap().selection,
            named(&["all", "eth0"])
        );
    }

    #[test]
    fn one_target_is_asked_for_as_ever_and_several_are_a_selection() {
        let word = |name: &str| TargetDescription {
            name: name.to_owned(),
            ..TargetDescription::default()
        };
        let alone = [
            ("target=web", "web"),
            ("target=pid:7", "pid:7"),
            ("target=kind:web&follow=0", "kind:web"),
            ("target=host&wait=", "host"),
            ("container=[{\"name\":\"web\"}]", "web"),
        ];
        for (query, name) in alone {
            let request = parse(query).unwrap();
            assert_eq!((request.target, request.several), (word(name), None), "{query}");
        }
        let several = |words: &[&str], described: &[&str], follow, wait| Several {
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            described: described.iter().map(|name| word(name)).collect(),
            follow,
            wait,
        };
        for (query, expected) in [
            ("target=web&target=db", several(&["web", "db"], &[], None, false)),
            ("target=w*", several(&["w*"], &[], None, false)),
            ("target=!w", several(&["!w"], &[], None, false)),
            (
                "target=label:a=b&follow=0",
                several(&["label:a=b"], &[], Some(false), false),
            ),
            ("target=web&follow=1", several(&["web"], &[], Some(true), false)),
            ("target=web&wait=1", several(&["web"], &[], None, true)),
            (
                "container=[{\"name\":\"web\"},{\"name\":\"db\"}]",
                several(&[], &["web", "db"], None, false),
            ),
        ] {
            let request = parse(query).unwrap();
            assert_eq!(
                (request.target, request.several),
                (word(""), Some(expected)),
                "{query}"
            );
        }
        for (query, error) in [
            (
                "target=web&container={}",
                RequestError::TwoTargets("container", "target"),
            ),
            ("target=web&netns=5", RequestError::TwoTargets("netns", "target")),
            ("netns=5&follow=0", RequestError::OfOneTarget("follow")),
            ("container={}&wait=1", RequestError::OfOneTarget("wait")),
            ("container=[{},{}]&wait=1", RequestError::OfOneTarget("wait")),
            ("container=[{},{}]&follow=1", RequestError::OfOneTarget("follow")),
            ("container=[]", RequestError::NoTarget),
        ] {
            assert_eq!(parse(query), Err(error), "{query}");
        }
        let many = format!("container=[{}{{}}]", "{},".repeat(MAX_DESCRIBED));
        assert_eq!(
            parse(&many),
            Err(RequestError::TooManyDescribed(MAX_DESCRIBED + 1))
        );
    }

    #[test]
    fn chaste_is_a_matter_of_presence() {
        for query in ["netns=5&chaste", "netns=5&chaste=", "netns=5&chaste=false"] {
            assert!(parse(query).unwrap().chaste, "{query}");
        }
        assert!(
            super::parse("netns=5", &headers(&[("clustershark-chaste", "")]))
                .unwrap()
                .chaste
        );
    }

    #[test]
    fn headers_win_over_the_query() {
        let headers = headers(&[("clustershark-nif", "eth1")]);
        assert_eq!(
            super::parse("netns=5&nif=eth0", &headers).unwrap().selection,
            named(&["eth1"])
        );
    }

    #[test]
    fn says_what_cannot_be_used() {
        use RequestError::*;
        for (query, error) in [
            ("", NoTarget),
            ("netns=", NoTarget),
            ("container=", NoTarget),
            ("netns=0", Netns("0".into())),
            ("netns=-1", Netns("-1".into())),
            ("netns=4026531840x", Netns("4026531840x".into())),
            ("netns=99999999999999999999", Netns("99999999999999999999".into())),
            ("netns=5&container={}", TwoTargets("container", "netns")),
            ("netns=5&names=no", Switch("names", "no".into())),
            ("netns=5&self=2", Switch("self", "2".into())),
            ("netns=5&netns=6", Repeated("netns")),
            (
                "netns=5&fliter=icmp",
                Unknown {
                    name: "fliter".into(),
                    nearest: Some("filter"),
                },
            ),
            (
                "netns=5&Netns=5",
                Unknown {
                    name: "Netns".into(),
                    nearest: Some("netns"),
                },
            ),
            (
                "netns=5&zzz",
                Unknown {
                    name: "zzz".into(),
                    nearest: None,
                },
            ),
        ] {
            assert_eq!(parse(query), Err(error), "{query}");
        }
        let filter = headers(&[("clustershark-filter", " udp ")]);
        let request = super::parse("netns=5&filter=tcp&self=1", &filter).unwrap();
        assert_eq!((&request.filter[..], request.with_own), ("udp", true));
        let many = (0..=MAX_INTERFACES)
            .map(|n| format!("i{n}"))
            .collect::<Vec<_>>()
            .join("/");
        assert_eq!(
            parse(&format!("netns=5&nif={many}")).map_err(|error| error.to_string()),
            Err("4097 interfaces are named, and 4096 is the most".to_owned())
        );
    }

    #[test]
    fn limits_are_read_or_named() {
        let request = parse("netns=5&snaplen=96&packets=100&bytes=10MiB&duration=500ms").unwrap();
        let limits = Limits {
            packets: Some(100),
            bytes: Some(10 << 20),
            duration: Some(Duration::from_millis(500)),
            max_duration: None,
        };
        assert_eq!((request.snaplen, request.limits), (96, limits));
        for (text, pace) in [
            ("", StatisticsPace::OnLoss),
            ("end", StatisticsPace::AtEnd),
            ("1s", StatisticsPace::Every(Duration::from_secs(1))),
            ("2m", StatisticsPace::Every(Duration::from_secs(120))),
        ] {
            assert_eq!(
                parse(&format!("netns=5&statistics={text}")).unwrap().statistics,
                pace
            );
        }
        for limit in ["packets=1", "bytes=1MiB", "duration=1s"] {
            let statistics = |more| parse(&format!("netns=5&{limit}{more}")).unwrap().statistics;
            assert_eq!(statistics(""), StatisticsPace::AtEnd, "{limit}");
            let each = StatisticsPace::Every(Duration::from_secs(1));
            assert_eq!(statistics("&statistics=1s"), each, "{limit}");
        }
        for query in [
            "netns=5&snaplen=0",
            "netns=5&snaplen=",
            "netns=5&packets=&bytes=&duration=",
        ] {
            let request = parse(query).unwrap();
            assert_eq!(
                (request.snaplen, request.limits),
                (MAX_SNAPLEN, Limits::default())
            );
        }
        assert_eq!(parse("netns=5&snaplen=262144").unwrap().snaplen, MAX_SNAPLEN);
        for (name, wrong) in [
            ("snaplen", "262145"),
            ("snaplen", "-1"),
            ("snaplen", "1KiB"),
            ("packets", "0"),
            ("packets", "-5"),
            ("packets", "18446744073709551616"),
            ("packets", "ten"),
            ("bytes", "10MB"),
            ("bytes", "18446744073709551615KiB"),
            ("duration", "10"),
            ("duration", "0s"),
            ("duration", "9999999999999999h"),
            ("statistics", "0s"),
            ("statistics", "999ms"),
            ("statistics", "1"),
            ("statistics", "never"),
        ] {
            let error = parse(&format!("netns=5&{name}={wrong}")).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{name}={wrong} cannot be used: ")),
                "{error}"
            );
        }
    }

    #[test]
    fn targets_are_described_in_json() {
        let request = parse("container=%7B%22name%22%3A%22web%22%2C%22netns%22%3A0%7D&names=0").unwrap();
        assert_eq!(request.target.name, "web");
        assert_eq!((request.target.netns, request.names), (None, false));
        let header = headers(&[("clustershark-container", r#"{"name":"db"}"#)]);
        let request = super::parse("container=%7B%7D", &header).unwrap();
        assert_eq!(request.target.name, "db");
        for (text, words) in [
            ("web", "line 1 column 1"),
            (
                "%7B%22pid%22%3A%22x%22%7D",
                "invalid type: string \"x\", expected u32 at line 1 column 10",
            ),
        ] {
            let error = parse(&format!("container={text}")).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    /// Names of the described parameters of `/capture` that are in the query, or in the header.
    fn described(place: &str) -> BTreeSet<String> {
        let description: Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
        let parameters = description["paths"]["/capture"]["get"]["parameters"]
            .as_array()
            .unwrap();
        parameters
            .iter()
            .filter(|parameter| parameter["in"] == place)
            .map(|parameter| parameter["name"].as_str().unwrap().to_lowercase())
            .collect()
    }

    #[test]
    fn parameters_that_are_read_are_those_that_are_described() {
        let (query, header) = (described("query"), described("header"));
        let names = PARAMETERS.iter().map(|parameter| parameter.name.to_owned());
        assert_eq!(query, names.collect());
        let names = PARAMETERS.iter().filter_map(|parameter| parameter.header);
        assert_eq!(header, names.map(str::to_owned).collect());
        // What is read is not taken twice.
        for name in query.into_iter().filter(|name| name != TARGET) {
            let query = format!("netns=5&{name}=1&{name}=1");
            assert!(matches!(parse(&query), Err(RequestError::Repeated(found)) if found == name));
        }
        for name in header {
            let mut headers = HeaderMap::new();
            for _ in 0..2 {
                let name: HeaderName = name.parse().unwrap();
                headers.append(name, HeaderValue::from_static("1"));
            }
            let parsed = super::parse("netns=5", &headers);
            assert!(matches!(parsed, Err(RequestError::Repeated(found)) if found == name));
        }
    }

    proptest! {
        #[test]
        fn takes_any_query(query in any::<String>(), nif in any::<Vec<u8>>()) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&nif) {
                headers.insert("clustershark-nif", value);
            }
            let _ = super::parse(&query, &headers);
        }

        #[test]
        fn reads_back_what_was_encoded(
            netns in 1u64.., names in proptest::collection::btree_set("[a-z0-9.@:%&=+-]{4,15}", 0..5), chaste in any::<bool>(),
        ) {
            let names: Vec<String> = names.into_iter().collect();
            let mut pairs = vec![("netns", netns.to_string()), ("nif", names.join("/"))];
            if chaste {
                pairs.push(("chaste", String::new()));
            }
            let query = serde_urlencoded::to_string(&pairs).unwrap();
            let selection = if names.is_empty() { InterfaceSelection::All } else { InterfaceSelection::Named(names) };
            let (target, selection) = (TargetDescription::namespace(netns), Some(selection));
            let parsed = parse(&query).unwrap();
            prop_assert_eq!((parsed.target, parsed.selection, parsed.chaste), (target, selection, chaste));
        }
    }
}
