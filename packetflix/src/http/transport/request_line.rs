//! Addresses as real clients send them: some leave characters as they are that a URI may not hold, which the HTTP library
//! refuses without a word.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

/// Most bytes of a line that are looked at; longer ones are refused in any case.
const MAX_LEN: usize = 64 * 1024;

/// What is read at once while a line lasts.
const PIECE: usize = 4 * 1024;

/// The first line of a request, in which `"`, `<` and `>` are escaped, as they should have been.
#[derive(Debug, Default)]
pub(crate) struct RequestLine {
    /// How many bytes of it have come.
    len: usize,
    has_ended: bool,
    /// What has come, and has not been taken.
    rest: Vec<u8>,
}

impl RequestLine {
    /// Another request is awaited. What has come of it already stays as it came.
    pub(crate) fn begin_anew(&mut self) {
        if self.rest.is_empty() {
            *self = Self::default();
        }
    }

    /// Reads from a stream: the line as it should be, and what follows as it is.
    pub(crate) fn poll_read(
        &mut self,
        stream: Pin<&mut (impl AsyncRead + ?Sized)>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            if self.has_ended {
                return stream.poll_read(context, into);
            }
            let mut piece = [0; PIECE];
            let mut piece = ReadBuf::new(&mut piece);
            ready!(stream.poll_read(context, &mut piece))?;
            self.take_in(piece.filled());
        }
        let len = self.rest.len().min(into.remaining());
        into.put_slice(&self.rest[..len]);
        self.rest.drain(..len);
        if self.rest.is_empty() {
            // What is not needed any more is no memory of an idle connection.
            self.rest = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    fn take_in(&mut self, piece: &[u8]) {
        let end = piece.iter().position(|byte| *byte == b'\n');
        let (line, after) = piece.split_at(end.unwrap_or(piece.len()));
        for byte in line {
            match byte {
                b'"' => self.rest.extend(b"%22"),
                b'<' => self.rest.extend(b"%3C"),
                b'>' => self.rest.extend(b"%3E"),
                byte => self.rest.push(*byte),
            }
        }
        self.rest.extend(after);
        self.len += line.len();
        self.has_ended = end.is_some() || self.len > MAX_LEN;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    struct Through<'a>(RequestLine, &'a [u8]);

    impl AsyncRead for Through<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let Self(line, stream) = &mut *self;
            line.poll_read(Pin::new(stream), context, into)
        }
    }

    async fn read(stream: &[u8], at_once: usize) -> Vec<u8> {
        let mut through = Through(RequestLine::default(), stream);
        let mut all = Vec::new();
        let mut piece = vec![0; at_once];
        loop {
            match through.read(&mut piece).await.unwrap() {
                0 => return all,
                len => all.extend_from_slice(&piece[..len]),
            }
        }
    }

    #[tokio::test]
    async fn only_the_first_line_is_escaped() {
        let stream = b"GET /capture?container={\"netns\":1}&filter=len<5 HTTP/1.1\r\nX: <\"a\">\r\n\r\n<\">";
        let escaped =
            b"GET /capture?container={%22netns%22:1}&filter=len%3C5 HTTP/1.1\r\nX: <\"a\">\r\n\r\n<\">";
        for at_once in [1, 2, 7, 10_000] {
            assert_eq!(read(stream, at_once).await, escaped);
        }
    }

    #[tokio::test]
    async fn what_came_of_the_next_request_is_kept() {
        let first = format!("GET /{} HTTP/1.1\r\n\r\n", "\"".repeat(300));
        let stream = format!("{first}GET /healthz HTTP/1.1\r\n\r\n").into_bytes();
        let escaped = first.replace('"', "%22");
        let mut through = Through(RequestLine::default(), &stream);
        let mut head = vec![0; escaped.len()];
        through.read_exact(&mut head).await.unwrap();
        assert_eq!(head, escaped.as_bytes());
        through.0.begin_anew();
        let mut next = Vec::new();
        through.read_to_end(&mut next).await.unwrap();
        assert_eq!(next, b"GET /healthz HTTP/1.1\r\n\r\n");
    }

    proptest! {
        #[test]
        fn what_needs_no_escape_stays(stream in proptest::collection::vec(any::<u8>(), 0..9000), at_once in 1usize..9000) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let found = runtime.block_on(read(&stream, at_once));
            let end = stream.iter().position(|byte| *byte == b'\n').unwrap_or(stream.len());
            let escapes = stream[..end].iter().filter(|byte| b"\"<>".contains(byte)).count();
            prop_assert_eq!(found.len(), stream.len() + 2 * escapes);
            prop_assert!(found.ends_with(&stream[end..]));
        }
    }
}
