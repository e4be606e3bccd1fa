//! Requests as anybody may write them, for the fuzzer.

use bytes::BytesMut;
use packetflix_common::MAX_INTERFACES;
use warp::http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    refusal::Refusal,
    request::{headers_that_count, parse, parse_container},
};
use crate::http::origin::check_origin;
use crate::{
    description::TargetDescription,
    pcapng::{CaptureComment, MAX_SECTION_HEADER_LEN, SectionHeader},
    service::{CaptureRequest, select},
    tap::InterfaceSelection,
};

/// A query in the first line, and values of headers in those that follow.
pub fn request(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let query = String::from_utf8_lossy(lines.next().unwrap_or_default());
    let names: Vec<&str> = headers_that_count().chain(["origin", "host"]).collect();
    let mut headers = HeaderMap::new();
    for (line, name) in lines.zip(names.iter().cycle()).take(20) {
        // An empty line is a header that is not there.
        if let (false, Ok(value)) = (line.is_empty(), HeaderValue::from_bytes(line)) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    let refusals = [
        check_origin(&headers, &[]).err(),
        parse(&query, &headers).map(|request| check(&request)).err(),
    ];
    for refusal in refusals.into_iter().flatten() {
        let refusal: Refusal = refusal.into();
        let (status, sentence) = (refusal.status(), refusal.sentence);
        assert!(
            status.is_client_error() && !sentence.is_empty(),
            "{status} {sentence}"
        );
    }
}

fn check(request: &CaptureRequest) {
    if let Some(InterfaceSelection::Named(names)) = &request.selection {
        assert!((1..=MAX_INTERFACES as usize).contains(&names.len()) && names.is_sorted());
    }
    assert_eq!(request.filter, request.filter.trim());
    let TargetDescription { netns, pid, .. } = request.target;
    assert!(netns != Some(0) && pid != Some(0));
}

/// The JSON of a target, which becomes part of the section header.
pub fn container(data: &[u8]) {
    let Ok(target) = parse_container(&String::from_utf8_lossy(data)) else {
        return;
    };
    let mut header = BytesMut::new();
    SectionHeader {
        hardware: "",
        os: "",
        application: "",
        comment: CaptureComment {
            container_name: &target.full_name(),
            container_type: &target.kind,
            node_name: &target.node_name,
            cluster_uid: &target.cluster.uid,
            filter: &target.prefix,
            chaste: true,
        },
    }
    .encode(&mut header);
    assert!(header.len() <= MAX_SECTION_HEADER_LEN && header.len().is_multiple_of(4));
    let _ = select(target.interfaces);
}
