//! The log of requests, for those who asked for it.

use std::time::Instant;

use warp::http::{HeaderMap, HeaderName, Method, Request, StatusCode, header};

use crate::config::Config;

/// Headers whose values are never logged.
const SECRET: [HeaderName; 3] = [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION];

/// A request that is logged once it is answered.
pub(super) struct RequestLog {
    method: Method,
    path: String,
    headers: Option<String>,
    begun: Instant,
}

impl RequestLog {
    /// Notes the request as it came; `None` when nobody asked for that.
    pub(super) fn begin<B>(config: &Config, request: &Request<B>) -> Option<Self> {
        (config.log_requests || config.log_headers).then(|| Self {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
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
    headers
        .iter()
        .map(|(name, value)| {
            let hidden = SECRET.contains(name);
            let value = if hidden {
                "(hidden)".into()
            } else {
                String::from_utf8_lossy(value.as_bytes())
            };
            format!("{name}: {value}")
        })
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use warp::http::HeaderValue;

    use super::*;

    #[test]
    fn secrets_are_not_logged() {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer abc"));
        headers.insert(header::HOST, HeaderValue::from_static("here"));
        let logged = loggable(&headers);
        assert!(logged.contains("host: here"));
        assert!(!logged.contains("abc"));
    }
}
