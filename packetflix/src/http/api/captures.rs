//! `/captures`: who captures what, for those who operate the service, and how they end a capture.

use std::{borrow::Cow, time::UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;
use warp::{
    Reply as _,
    http::{Method, StatusCode, header},
    reply::{self, Response},
};

use super::{capture::Handshake, code::Code, refusal::Refusal};
use crate::{
    captures::{Amount, Capture, FoundNames},
    http::{origin::check_origin, site::Site},
    text::shortened,
};

/// Version of the answer: raised when a program that reads it would have to be altered.
const VERSION: u32 = 1;

/// Most bytes that are shown of a word of a client's, and of its list of interfaces: the words of all captures are repeated with
/// each list.
const MAX_SHOWN: usize = 1024;

/// All captures that run; there are never more than may run.
#[derive(Serialize)]
struct CaptureList<'a> {
    version: u32,
    captures: Vec<ListedCapture<'a>>,
}

/// What is not known is left out.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ListedCapture<'a> {
    id: u64,
    /// Captures with the same number share one in the kernel.
    tap: u64,
    /// Captures with the same number are one stream, which ends with that number, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<u64>,
    client: ListedClient<'a>,
    target: ListedTarget<'a>,
    /// Absent until it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<FoundTarget<'a>>,
    /// Absent when all are captured, also those that come later.
    #[serde(skip_serializing_if = "Option::is_none")]
    network_interfaces: Option<&'a [String]>,
    /// How many more there are than are shown.
    #[serde(skip_serializing_if = "is_none")]
    more_network_interfaces: usize,
    #[serde(skip_serializing_if = "str::is_empty")]
    filter: Cow<'a, str>,
    /// Seconds since 1970, UTC.
    started_at: f64,
    /// Seconds.
    duration: f64,
    /// Packets.
    packets: u64,
    /// Bytes of pcapng.
    bytes: u64,
    packets_per_second: f64,
    bytes_per_second: f64,
    dropped: Dropped,
}

#[derive(Serialize)]
struct ListedClient<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    address: &'a str,
}

#[derive(Serialize)]
struct ListedTarget<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    r#type: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    prefix: Cow<'a, str>,
    netns: u64,
}

/// What the discovery has found in the namespace, whatever the client calls it.
#[derive(Serialize)]
struct FoundTarget<'a> {
    name: Cow<'a, str>,
    r#type: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    prefix: Cow<'a, str>,
    names: Vec<&'a str>,
}

/// Packets that were accepted and are not in the stream.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Dropped {
    kernel: u64,
    slow_client: u64,
}

/// All captures that run.
pub(crate) fn list(site: &Site, handshake: &Handshake) -> Response {
    if let Err(refusal) = check_right(site, handshake) {
        return refusal.into_response();
    }
    let captures = site.frontend().captures.list();
    let list = CaptureList {
        version: VERSION,
        captures: captures
            .iter()
            .map(|capture| ListedCapture::of(capture))
            .collect(),
    };
    reply::json(&list).into_response()
}

/// The captures that run, each as it is listed.
pub(crate) fn listed(site: &Site) -> Vec<Value> {
    let captures = site.frontend().captures.list();
    let listed = captures.iter().map(|capture| ListedCapture::of(capture));
    // What cannot be written is not told.
    listed
        .filter_map(|capture| serde_json::to_value(capture).ok())
        .collect()
}

/// One capture: shown, or ended.
pub(crate) fn one(site: &Site, method: &Method, id: &str, handshake: &Handshake) -> Response {
    if !matches!(*method, Method::GET | Method::HEAD | Method::DELETE) {
        let sentence = format!("a capture is read with GET and ended with DELETE, not with {method}");
        let refusal = Refusal::new(Code::MethodNotAllowed, sentence);
        return reply::with_header(refusal, header::ALLOW, "GET, HEAD, DELETE").into_response();
    }
    if let Err(refusal) = check_right(site, handshake) {
        return refusal.into_response();
    }
    let number = id.parse().ok();
    let answer = if *method == Method::DELETE {
        let is_ended = number.is_some_and(|id| site.frontend().captures.end(id));
        let status = if is_ended {
            tracing::info!(
                id,
                caller = handshake.caller.name(),
                caller_type = handshake.caller.kind(),
                "a capture is ended by the operator"
            );
            StatusCode::NO_CONTENT
        } else {
            StatusCode::NOT_FOUND
        };
        site.frontend()
            .audit
            .end_asked(id, &handshake.caller.facts(), status.as_u16());
        is_ended.then(|| status.into_response())
    } else {
        let captures = site.frontend().captures.list();
        let capture = captures.iter().find(|one| Some(one.facts().id) == number);
        capture.map(|capture| reply::json(&ListedCapture::of(capture)).into_response())
    };
    answer.unwrap_or_else(|| {
        let sentence = format!("no capture {id} is running: see /captures");
        Refusal::new(Code::CaptureUnknown, sentence).into_response()
    })
}

/// Whether whoever asks may see, and end, the captures of others.
pub(crate) fn check_right(site: &Site, handshake: &Handshake) -> Result<(), Refusal> {
    check_origin(&handshake.headers, &site.frontend().config.allowed_origins)?;
    Ok(handshake.caller.may_administer()?)
}

impl<'a> ListedCapture<'a> {
    fn of(capture: &'a Capture) -> Self {
        let facts = capture.facts();
        let Amount {
            packets,
            bytes,
            lost_in_kernel,
            lost_by_client,
        } = capture.amount();
        let rates = capture.rates();
        let names = facts.selection.names();
        let first = names.map_or(0, first_of);
        let since_1970 = capture.begun().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            id: facts.id,
            tap: facts.tap,
            stream: facts.stream,
            client: ListedClient {
                name: &facts.client.name,
                address: &facts.client.address,
            },
            target: ListedTarget {
                name: shown(&facts.target.name),
                r#type: shown(&facts.target.kind),
                prefix: shown(&facts.target.prefix),
                netns: facts.netns,
            },
            found: capture.found().map(FoundTarget::of),
            network_interfaces: names.map(|names| &names[..first]),
            more_network_interfaces: names.map_or(0, |names| names.len() - first),
            filter: shown(&facts.filter),
            started_at: since_1970.as_secs_f64(),
            duration: capture.duration().as_secs_f64(),
            packets,
            bytes,
            packets_per_second: rates.packets,
            bytes_per_second: rates.bytes,
            dropped: Dropped {
                kernel: lost_in_kernel,
                slow_client: lost_by_client,
            },
        }
    }
}

impl<'a> FoundTarget<'a> {
    fn of(found: &'a FoundNames) -> Self {
        Self {
            name: shown(&found.name),
            r#type: shown(&found.kind),
            prefix: shown(&found.prefix),
            names: found.first_names().collect(),
        }
    }
}

/// A word of a client's, or its beginning and an ellipsis.
fn shown(word: &str) -> Cow<'_, str> {
    shortened(word, MAX_SHOWN)
}

/// How many of these names are shown.
fn first_of(names: &[String]) -> usize {
    let mut len = 0;
    let is_shown = |name: &&String| {
        len += name.len();
        len <= MAX_SHOWN
    };
    names.iter().take_while(is_shown).count()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_none(count: &usize) -> bool {
    *count == 0
}
