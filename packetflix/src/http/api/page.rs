//! `/` and `/ui/`: the page for browsers. Everyone may have it; what it asks for takes a right.

use warp::{
    Reply as _,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    reply::Response,
};

use crate::page::{File, POLICY};

/// Headers of each answer: what the page may do, and that others may do nothing with it.
const GUARDS: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

/// A file of the page, compressed for those who take that, or that it is what the client has already.
pub(crate) fn show(file: &'static File, asked: &HeaderMap) -> Response {
    let takes_gzip = lists(asked, &header::ACCEPT_ENCODING, |one| {
        let (coding, weight) = one.split_once(';').unwrap_or((one, ""));
        coding.trim().eq_ignore_ascii_case("gzip") && !is_none(weight)
    });
    let tag = match takes_gzip {
        true => format!("\"{}-gzip\"", *file.tag),
        false => format!("\"{}\"", *file.tag),
    };
    let is_known = lists(asked, &header::IF_NONE_MATCH, |one| {
        one == "*" || one.trim_start_matches("W/") == tag
    });
    let mut response = match (is_known, takes_gzip) {
        (true, _) => StatusCode::NOT_MODIFIED.into_response(),
        (false, true) => file.gzip.into_response(),
        (false, false) => file.plain.into_response(),
    };
    let headers = response.headers_mut();
    if !is_known {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(file.media_type));
        if takes_gzip {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
    }
    // It may be kept, and is asked for each time whether it is still this.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    for (name, value) in GUARDS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Leads from `/ui` to `/ui/`, also where a proxy has put a path before that.
pub(crate) fn lead_into_folder() -> Response {
    let mut response = StatusCode::PERMANENT_REDIRECT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, HeaderValue::from_static("ui/"));
    response
}

/// Whether one of the elements of a header is meant.
fn lists(headers: &HeaderMap, name: &HeaderName, is_meant: impl Fn(&str) -> bool) -> bool {
    let values = headers.get_all(name).iter();
    let mut elements = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    elements.any(|element| is_meant(element.trim()))
}

/// Whether a weight says that something is not wanted (RFC 9110, section 12.4.2).
fn is_none(weight: &str) -> bool {
    let value = weight.trim().strip_prefix("q=").map(str::parse::<f32>);
    value.is_some_and(|value| value == Ok(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page;

    fn ask(lines: &[(HeaderName, &str)]) -> Response {
        let headers = lines
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        show(page::file("/").unwrap(), &headers.collect())
    }

    #[test]
    fn compressed_for_those_who_take_that() {
        for (accepted, encoding) in [
            ("gzip", Some("gzip")),
            ("br, GZIP;q=0.5", Some("gzip")),
            ("gzip;q=0", None),
            ("gzip; q=0.000", None),
            ("br", None),
            ("", None),
        ] {
            let answer = ask(&[(header::ACCEPT_ENCODING, accepted)]);
            let found = answer.headers().get(header::CONTENT_ENCODING);
            assert_eq!(found.map(|value| value.to_str().unwrap()), encoding, "{accepted}");
        }
    }

    #[test]
    fn not_sent_again_to_those_who_have_it() {
        let gzip = (header::ACCEPT_ENCODING, "gzip");
        let tag = ask(std::slice::from_ref(&gzip)).headers()[header::ETAG]
            .to_str()
            .unwrap()
            .to_owned();
        let plain = ask(&[]).headers()[header::ETAG].to_str().unwrap().to_owned();
        assert_ne!(tag, plain);
        for (known, status) in [
            (format!("\"x\", {tag}"), 304),
            (format!("W/{tag}"), 304),
            (plain, 200),
            ("\"x\"".to_owned(), 200),
        ] {
            let answer = ask(&[gzip.clone(), (header::IF_NONE_MATCH, &known)]);
            assert_eq!(answer.status(), status, "{known}");
            assert!(answer.headers().contains_key(header::CONTENT_SECURITY_POLICY));
        }
    }
}
