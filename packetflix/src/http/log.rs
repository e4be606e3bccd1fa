//! The log of requests, for those who asked for it.

use std::time::Instant;

use warp::http::{HeaderMap, Method, Request, StatusCode};

use crate::config::Frontend;

/// Words in the names of headers whose values are never logged: of tokens and cookies, whatever they are called, and where the
/// address of a page may have one in its query.
const SECRET: [&str; 7] = ["auth", "cookie", "token", "key", "secret", "protocol", "referer"];

/// Most bytes that are logged of the path and of the headers of a request.
const MAX_LEN: usize = 4096;

/// A request that is logged once it is answered.
pub(super) struct RequestLog {
    method: Method,
    path: String,
    headers: Option<String>,
    begun: Instant,
}

impl RequestLog {
    /// Notes the request as it came; `None` when nobody asked for that.
    pub(super) fn begin<B>(config: &Frontend, request: &Request<B>) -> Option<Self> {
        (config.log_requests || config.log_headers).then(|| Self {
            method: request.method().clone(),
            path: request.uri().path().chars().take(MAX_LEN).collect(),
            headers: config.log_headers.then(|| loggable(request.headers())),
            begun: Instant::now(),
        })
    }

    /// Logs the request with the status of its answer.
    pub(super) fn end(self, status: StatusCode) {
        tracing::info!(
            method = %self.method,
            path = self.path,
            status = status.as_u16(),
            elapsed_ms = self.begun.elapsed().as_millis(),
            headers = self.headers,
            "request"
        );
    }
}

fn loggable(headers: &HeaderMap) -> String {
    let mut all = String::new();
    for (name, value) in headers {
        let hidden = SECRET.iter().any(|word| name.as_str().contains(word));
        let value = if hidden {
            "(hidden)".into()
        } else {
            String::from_utf8_lossy(value.as_bytes())
        };
        if all.len() + name.as_str().len() + value.len() > MAX_LEN {
            all += "; (more)";
            break;
        }
        let separator = if all.is_empty() { "" } else { "; " };
        all += &format!("{separator}{name}: {value}");
    }
    all
}

#[cfg(test)]
mod tests {
    use warp::http::HeaderValue;

    use super::*;

    #[test]
    fn secrets_are_not_logged() {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("here"));
        for name in [
            "authorization",
            "cookie",
            "referer",
            "sec-websocket-protocol",
            "x-api-key",
            "x-forwarded-authorization",
        ] {
            headers.insert(name, HeaderValue::from_static("Bearer abc"));
        }
        let logged = loggable(&headers);
        assert!(logged.contains("host: here"), "{logged}");
        assert!(!logged.contains("abc"), "{logged}");
    }

    #[test]
    fn lines_are_bounded() {
        let mut headers = HeaderMap::new();
        for name in ["a", "b", "c"] {
            headers.insert(name, HeaderValue::from_maybe_shared(vec![b'x'; 3000]).unwrap());
        }
        let logged = loggable(&headers);
        assert!(logged.len() < MAX_LEN && logged.ends_with("; (more)"), "{logged}");
    }
}
