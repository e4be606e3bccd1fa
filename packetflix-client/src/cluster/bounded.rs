//! What an API server may answer, and how often it is asked: it is not ours, and kube bounds neither.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Request, Response,
    body::{Body, Frame, SizeHint},
};
use tokio::time::{Instant, Sleep, sleep_until};
use tower_layer::Layer;
use tower_service::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Bounds of what a client of an API server asks and reads.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Most bytes of an answer, and of what a watch tells at once.
    pub len: usize,
    /// So many requests may follow each other at once.
    pub burst: u32,
    /// More take a place that comes again after this time.
    pub pause: Duration,
}

/// The API server answers with more than is read.
#[derive(Debug, thiserror::Error)]
#[error("the API server sends more than {0} bytes at once, which is more than is read")]
pub struct TooLong(usize);

impl<S> Layer<S> for Bounds {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded {
            inner,
            bounds: Arc::new(self.clone()),
            free: Instant::now(),
            waits: None,
        }
    }
}

/// What asks, within bounds.
#[derive(Debug)]
pub struct Bounded<S> {
    inner: S,
    bounds: Arc<Bounds>,
    /// When all places are free again.
    free: Instant,
    waits: Option<Pin<Box<Sleep>>>,
}

impl<S, A, B> Service<Request<A>> for Bounded<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<BoundedBody<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        if self.waits.is_none() {
            let full = self.bounds.pause * self.bounds.burst.saturating_sub(1);
            if let Some(until) = self.free.checked_sub(full)
                && until > Instant::now()
            {
                self.waits = Some(Box::pin(sleep_until(until)));
            }
        }
        if let Some(waits) = &mut self.waits {
            ready!(waits.as_mut().poll(context));
            self.waits = None;
        }
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        self.free = self.free.max(Instant::now()) + self.bounds.pause;
        let query = request.uri().query().unwrap_or_default();
        let is_watch = query.split('&').any(|pair| pair == "watch=true");
        let most = self.bounds.len;
        let answering = self.inner.call(request);
        Box::pin(async move {
            let body = |inner| BoundedBody {
                inner,
                most,
                left: most,
                is_watch,
            };
            Ok(answering.await?.map(body))
        })
    }
}

/// The body of an answer, up to a bound.
#[derive(Debug)]
pub struct BoundedBody<B> {
    inner: B,
    most: usize,
    left: usize,
    /// Then each line has the bound.
    is_watch: bool,
}

impl<B> BoundedBody<B> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        let mut pieces = bytes.split(|byte| self.is_watch && *byte == b'\n');
        let first = pieces.next().unwrap_or_default();
        for (place, piece) in std::iter::once(first).chain(pieces).enumerate() {
            if place > 0 {
                self.left = self.most;
            }
            self.left = self.left.checked_sub(piece.len()).ok_or(TooLong(self.most))?;
        }
        Ok(())
    }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin> Body for BoundedBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        let taken = frame.data_ref().map_or(Ok(()), |bytes| self.take(bytes));
        Poll::Ready(Some(taken.map(|()| frame).map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(is_watch: bool) -> BoundedBody<()> {
        BoundedBody {
            inner: (),
            most: 4,
            left: 4,
            is_watch,
        }
    }

    #[test]
    fn answers_are_bounded_and_lines_of_watches() {
        let mut answer = body(false);
        assert!(answer.take(b"ab\n").is_ok());
        assert!(answer.take(b"c").is_ok());
        let told = answer.take(b"d").unwrap_err().to_string();
        assert_eq!(
            told,
            "the API server sends more than 4 bytes at once, which is more than is read"
        );
        let mut watch = body(true);
        for lines in [&b"abcd\nabcd\nab"[..], b"cd", b"\n\n\nabcd", b"\n"] {
            assert!(watch.take(lines).is_ok(), "{lines:?}");
        }
        assert!(watch.take(b"a\nabcde").is_err());
    }

    #[tokio::test]
    async fn requests_have_a_rate() {
        struct Yes;
        impl Service<Request<()>> for Yes {
            type Response = Response<()>;
            type Error = BoxError;
            type Future = std::future::Ready<Result<Response<()>, BoxError>>;
            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
                Poll::Ready(Ok(()))
            }
            fn call(&mut self, _: Request<()>) -> Self::Future {
                std::future::ready(Ok(Response::new(())))
            }
        }
        let pause = Duration::from_millis(200);
        let bounds = Bounds {
            len: 4,
            burst: 3,
            pause,
        };
        let mut service = bounds.layer(Yes);
        let begun = Instant::now();
        let mut at = Vec::new();
        for _ in 0..5 {
            std::future::poll_fn(|context| service.poll_ready(context))
                .await
                .unwrap();
            service.call(Request::new(())).await.unwrap();
            at.push(begun.elapsed());
        }
        // The first three are asked as they come.
        assert!(at[3] >= pause && at[4] >= pause * 2, "{at:?}");
        assert!(at[2] < at[3] - pause / 2, "{at:?}");
    }
}
