//! `/rates`: how much traffic the targets have, as server-sent events (HTML, section 9.2), and when there are others.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    fmt::Write as _,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::stream;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use warp::{
    Reply as _,
    http::header,
    reply::{self, Response},
};

use super::{Api, refusal::Refusal, targets};
use crate::{
    access::Access,
    discovery::Scan,
    rates::{Rate, Reading, Viewer},
    service::Caller,
};

/// What is known of the rates at one time.
#[derive(Serialize)]
struct Rates<'a> {
    /// Seconds since the host has started, by which ages are told.
    uptime: f64,
    /// By the number of the namespace and the index of the interface.
    rates: BTreeMap<u64, BTreeMap<u32, [f64; 4]>>,
    /// Numbers of namespaces of which that is not known, or not of all their interfaces.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    unseen: &'a [u64],
}

/// What is known of one who looks.
struct Stream {
    api: Arc<Api>,
    viewer: Viewer,
    caller: Caller,
    /// What the targets were that they were told of.
    told: Option<(Arc<Scan>, u64)>,
}

/// All rates that the caller may know of, again and again, until they would not be let in any more, or the service ends.
pub(crate) fn follow(api: &Arc<Api>, caller: &Caller) -> Result<Response, Refusal> {
    caller.may_discover()?;
    let stream = Stream {
        api: Arc::clone(api),
        viewer: api.app.rates.view(),
        caller: caller.clone(),
        told: None,
    };
    let events = stream::unfold(stream, |mut stream| async move {
        let events = stream.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(events)), stream))
    });
    Ok(event_stream(events))
}

/// An answer of server-sent events.
pub(crate) fn event_stream(
    events: impl futures_util::Stream<Item = Result<Bytes, Infallible>> + Send + Sync + 'static,
) -> Response {
    let mut response = reply::stream(events).into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // nginx would keep events until there are more of them.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    response
}

impl Stream {
    async fn next(&mut self) -> Option<String> {
        let app = &self.api.app;
        let (stop, access): (&CancellationToken, &Access) = (&app.stop, &app.access);
        let reading = tokio::select! {
            () = stop.cancelled() => return None,
            reading = self.viewer.next() => reading,
        };
        self.caller = self.caller.renew(access).ok()?;
        self.caller.may_discover().ok()?;
        let mut events = String::new();
        if !self.has_told(&reading.scan) {
            let digest = targets::digest(&reading.scan, &app.config.node_name, &self.caller);
            if self.told.as_ref().is_none_or(|(_, told)| *told != digest) {
                let _ = write!(events, "event: targets\ndata: {digest:016x}\n\n");
            }
            self.told = Some((Arc::clone(&reading.scan), digest));
        }
        let rates = self.visible(&reading);
        let rates = serde_json::to_string(&rates).ok()?;
        let _ = write!(events, "event: rates\ndata: {rates}\n\n");
        Some(events)
    }

    fn has_told(&self, scan: &Arc<Scan>) -> bool {
        self.told
            .as_ref()
            .is_some_and(|(told, _)| Arc::ptr_eq(told, scan))
    }

    /// What the caller may know of a reading.
    fn visible<'a>(&self, reading: &'a Reading) -> Rates<'a> {
        let rights = self.caller.rights();
        let may_know = |inode: u64| {
            let occupants = reading.scan.occupants(inode);
            occupants.is_some_and(|occupants| rights.may_list(occupants))
        };
        let rates = reading.rates.iter().filter(|(inode, _)| may_know(**inode));
        Rates {
            uptime: clock_gettime(ClockId::CLOCK_BOOTTIME)
                .map_or(0.0, |time| std::time::Duration::from(time).as_secs_f64()),
            rates: rates.map(|(inode, links)| (*inode, rounded(links))).collect(),
            // As the gaps of a scan, these are not for those who may know of some targets only.
            unseen: match rights.are_bounded() {
                true => &[],
                false => &reading.unseen,
            },
        }
    }
}

fn rounded(links: &HashMap<u32, Rate>) -> BTreeMap<u32, [f64; 4]> {
    let round = |value: f64| (value * 10.0).round() / 10.0;
    let numbers = |rate: &Rate| {
        let Rate {
            received_packets,
            sent_packets,
            received_bytes,
            sent_bytes,
        } = *rate;
        [received_packets, sent_packets, received_bytes, sent_bytes].map(round)
    };
    links
        .iter()
        .map(|(index, rate)| (*index, numbers(rate)))
        .collect()
}
