//! Pages of which origins may use the service from within a browser.

use warp::http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{self, HeaderName},
};

use super::api::request::RequestError;
use crate::config::Origin;

/// What browsers say of where the page is that a request comes from (Fetch Metadata, section 2).
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Most seconds that a browser may remember what a page of an allowed origin may do.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// Headers that pages may send.
const ALLOWED_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, clustershark-container, clustershark-nif, clustershark-filter, clustershark-chaste",
);

/// Lets a browser's page capture only where it came from, or if its origin is among `allowed`: `Origin` tells the page's
/// host and port, `Host` ours. Programs send no `Origin`.
pub(super) fn check_origin(headers: &HeaderMap, allowed: &[Origin]) -> Result<(), RequestError> {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    if allowed_origin(headers, allowed).is_some() || is_same_origin(headers) {
        return Ok(());
    }
    let host = headers.get(header::HOST);
    Err(RequestError::ForeignOrigin {
        origin: String::from_utf8_lossy(origin.as_bytes()).into_owned(),
        host: host
            .map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned())
            .unwrap_or_default(),
    })
}

/// Refuses what a page of another site makes a browser ask, with `<img>` or the like, for which it sends no `Origin`;
/// unless that origin is among `allowed`, or somebody follows a link to what `is_page`. Another port of our host is another
/// site here: another service, with pages of its own.
pub(super) fn check_site(headers: &HeaderMap, allowed: &[Origin], is_page: bool) -> Result<(), RequestError> {
    let has = |name: HeaderName, value: &str| headers.get_all(name).iter().any(|found| found == value);
    let is_foreign = has(FETCH_SITE, "cross-site") || has(FETCH_SITE, "same-site");
    let is_followed = is_page && has(FETCH_MODE, "navigate") && has(FETCH_DEST, "document");
    if is_foreign && !is_followed && allowed_origin(headers, allowed).is_none() {
        return Err(RequestError::CrossSite);
    }
    Ok(())
}

/// Refuses a request that could mean one thing to whoever is in front of us and another to us.
pub(super) fn check_single(headers: &HeaderMap) -> Result<(), RequestError> {
    for (name, known) in [
        (header::HOST, "Host"),
        (header::AUTHORIZATION, "Authorization"),
        (header::ORIGIN, "Origin"),
    ] {
        if headers.get_all(name).iter().nth(1).is_some() {
            return Err(RequestError::RepeatedHeader(known));
        }
    }
    Ok(())
}

fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok();
    let origin: Option<Origin> = text(header::ORIGIN).and_then(|origin| origin.parse().ok());
    let (Some(origin), Some(host)) = (origin, text(header::HOST)) else {
        return false;
    };
    origin.is_at(host)
}

/// The origin of the page that sends this, as it wrote it, if it is among `allowed`.
pub(super) fn allowed_origin<'a>(headers: &'a HeaderMap, allowed: &[Origin]) -> Option<&'a HeaderValue> {
    let value = headers.get(header::ORIGIN)?;
    let origin: Origin = value.to_str().ok()?.parse().ok()?;
    allowed.contains(&origin).then_some(value)
}

/// The answer to a browser that asks whether a page of an allowed origin may send this request (Fetch, section 3.2.2);
/// `None` where it does not ask, or may not.
pub(super) fn answer_preflight<B, A: Default>(
    request: &Request<B>,
    allowed: &[Origin],
) -> Option<Response<A>> {
    let headers = request.headers();
    let asks =
        *request.method() == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let origin = allowed_origin(headers, allowed).filter(|_| asks)?;
    let mut response = Response::new(A::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, HEAD"),
    );
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED_HEADERS);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    let_read(&mut response, origin.clone());
    Some(response)
}

/// Lets a page of an allowed origin read this answer.
pub(super) fn let_read<B>(response: &mut Response<B>, origin: HeaderValue) {
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(origin: &str, host: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        headers
    }

    #[test]
    fn pages_capture_only_where_they_came_from() {
        for (origin, host, same) in [
            ("http://host:5001", "host:5001", true),
            ("http://HOST:5001", "host:5001", true),
            ("http://host", "host:80", true),
            ("https://host", "host", true),
            ("http://[::1]:5001", "[::1]:5001", true),
            ("http://host:8080", "host:5001", false),
            ("http://host", "host:443", false),
            ("http://evil", "host:5001", false),
            ("http://host:5001.evil", "host:5001", false),
            ("http://x@host:5001", "host:5001", false),
            ("http://host:5001", "x@host:5001", false),
            ("http://host:5001/", "host:5001", false),
            ("http://host:5001", "", false),
            ("http://:5001", ":5001", false),
            ("file://host", "host", false),
            ("null", "host:5001", false),
            ("", "host:5001", false),
        ] {
            let headers = headers(origin, host);
            assert_eq!(is_same_origin(&headers), same, "{origin} {host}");
            assert_eq!(check_origin(&headers, &[]).is_ok(), same, "{origin} {host}");
        }
        assert_eq!(check_origin(&HeaderMap::new(), &[]), Ok(()));
    }

    #[test]
    fn allowed_pages_capture_too() {
        let allowed: Vec<Origin> = ["https://Tools.example:443", "http://tools.example:8080"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        assert_eq!(allowed[0].to_string(), "https://tools.example");
        assert_eq!(allowed[1].to_string(), "http://tools.example:8080");
        for (origin, is_allowed) in [
            ("https://tools.example", true),
            ("http://tools.example:8080", true),
            ("http://tools.example", false),
            ("https://tools.example:8080", false),
            ("https://x.tools.example", false),
            ("https://tools.example.evil", false),
            ("null", false),
        ] {
            let headers = headers(origin, "host:5001");
            assert_eq!(check_origin(&headers, &allowed).is_ok(), is_allowed, "{origin}");
        }
    }

    #[test]
    fn pages_of_other_sites_make_a_browser_ask_for_nothing() {
        let allowed = ["http://tools.example".parse().unwrap()];
        let check = |lines: &[(&'static str, &'static str)], is_page| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_static(value));
            }
            check_site(&headers, &allowed, is_page).is_ok()
        };
        for site in ["cross-site", "same-site"] {
            assert!(!check(&[("sec-fetch-site", site)], false));
            assert!(!check(&[("sec-fetch-site", site)], true));
            assert!(!check(
                &[("sec-fetch-site", "none"), ("sec-fetch-site", site)],
                false
            ));
            assert!(check(
                &[("sec-fetch-site", site), ("origin", "http://tools.example")],
                false
            ));
            assert!(!check(
                &[("sec-fetch-site", site), ("origin", "http://evil.example")],
                false
            ));
            let link = [
                ("sec-fetch-site", site),
                ("sec-fetch-mode", "navigate"),
                ("sec-fetch-dest", "document"),
            ];
            assert!(check(&link, true) && !check(&link, false));
            let frame = [link[0], link[1], ("sec-fetch-dest", "iframe")];
            assert!(!check(&frame, true));
        }
        for site in ["same-origin", "none"] {
            assert!(check(&[("sec-fetch-site", site)], false));
        }
        assert!(check(&[], false));
    }

    #[test]
    fn what_decides_comes_once() {
        for name in ["host", "authorization", "origin"] {
            let mut headers = HeaderMap::new();
            headers.append(name, HeaderValue::from_static("x"));
            assert_eq!(check_single(&headers), Ok(()));
            headers.append(name, HeaderValue::from_static("x"));
            let error = check_single(&headers).unwrap_err().to_string();
            assert!(
                error.to_lowercase().contains(&format!("the header {name} comes")),
                "{error}"
            );
        }
    }

    #[test]
    fn browsers_ask_before_they_send() {
        let allowed = ["http://tools.example".parse().unwrap()];
        let ask = |method: &str, origin: &str, asks: bool| {
            let mut request = Request::builder().method(method).header("origin", origin);
            if asks {
                request = request.header("access-control-request-method", "GET");
            }
            answer_preflight::<_, ()>(&request.body(()).unwrap(), &allowed)
        };
        let answer = ask("OPTIONS", "http://tools.example", true).unwrap();
        assert_eq!(
            answer.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN],
            "http://tools.example"
        );
        assert!(ask("OPTIONS", "http://evil.example", true).is_none());
        assert!(ask("OPTIONS", "http://tools.example", false).is_none());
        assert!(ask("GET", "http://tools.example", true).is_none());
    }

    proptest! {
        #[test]
        fn takes_any_origin(origin in any::<Vec<u8>>(), host in any::<Vec<u8>>()) {
            let mut headers = HeaderMap::new();
            if let (Ok(origin), Ok(host)) = (HeaderValue::from_bytes(&origin), HeaderValue::from_bytes(&host)) {
                headers.insert(header::ORIGIN, origin);
                headers.insert(header::HOST, host);
            }
            let _ = check_origin(&headers, &[]);
        }
    }
}
