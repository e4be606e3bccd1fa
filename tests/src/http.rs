//! HTTP/1.1 by hand, for either side: nothing is put right, and nothing is hidden.

use std::io::{BufRead, BufReader, Read, Write};

use anyhow::{Context as _, ensure};

/// A request line or status line, and its headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// First line.
    pub line: String,
    /// Names in lower case, and values, in their order.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// Reads one, and the empty line after it.
    ///
    /// # Errors
    /// When the stream ends before that.
    pub fn read(stream: &mut impl BufRead) -> anyhow::Result<Self> {
        let line = read_line(stream)?;
        let mut headers = Vec::new();
        loop {
            let header = read_line(stream)?;
            if header.is_empty() {
                return Ok(Self { line, headers });
            }
            let (name, value) = header.split_once(':').context("no header")?;
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
    }

    /// The values of all headers of that name, given in lower case.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(found, _)| found == name);
        named.map(|(_, value)| &**value).collect()
    }

    /// The status, of an answer.
    ///
    /// # Errors
    /// When the first line has none.
    pub fn status(&self) -> anyhow::Result<u16> {
        let status = self.line.split(' ').nth(1).context("no status")?;
        Ok(status.parse()?)
    }
}

/// Bytes of a body as they come.
pub struct Body<'a, S> {
    stream: &'a mut BufReader<S>,
    length: Length,
}

/// What says where a body ends.
enum Length {
    /// So many bytes are left.
    Known(u64),
    /// So many bytes are left of this chunk; `None` before the first one.
    Chunked(Option<u64>),
    /// The end of the connection.
    Close,
}

impl<'a, S: Read> Body<'a, S> {
    /// Body of the request with this head.
    ///
    /// # Errors
    /// When the head says in two ways, or in a wrong one, how long it is.
    pub fn of_request(head: &Head, stream: &'a mut BufReader<S>) -> anyhow::Result<Self> {
        Self::new(head, stream, Length::Known(0))
    }

    /// Body of the answer with this head.
    ///
    /// # Errors
    /// When the head says in two ways, or in a wrong one, how long it is.
    pub fn of_answer(head: &Head, stream: &'a mut BufReader<S>) -> anyhow::Result<Self> {
        Self::new(head, stream, Length::Close)
    }

    fn new(head: &Head, stream: &'a mut BufReader<S>, otherwise: Length) -> anyhow::Result<Self> {
        let length = match (
            &head.values("content-length")[..],
            &head.values("transfer-encoding")[..],
        ) {
            ([], []) => otherwise,
            ([length], []) => Length::Known(length.parse()?),
            ([], ["chunked"]) => Length::Chunked(None),
            _ => anyhow::bail!("an ambiguous length: {head:?}"),
        };
        Ok(Self { stream, length })
    }

    /// All of it.
    ///
    /// # Errors
    /// When the connection ends before the body does.
    pub fn read_all(mut self) -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Begins the next chunk, once the last one is read.
    fn next_chunk(&mut self) -> std::io::Result<()> {
        let Length::Chunked(left @ (None | Some(0))) = &mut self.length else {
            return Ok(());
        };
        if left.is_some() {
            read_line(self.stream).map_err(std::io::Error::other)?;
        }
        let size = read_line(self.stream).map_err(std::io::Error::other)?;
        let size = u64::from_str_radix(&size, 16).map_err(std::io::Error::other)?;
        *left = Some(size);
        if size == 0 {
            read_line(self.stream).map_err(std::io::Error::other)?;
            self.length = Length::Known(0);
        }
        Ok(())
    }
}

impl<S: Read> Read for Body<'_, S> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.next_chunk()?;
        let (Length::Known(left) | Length::Chunked(Some(left))) = &mut self.length else {
            return self.stream.read(into);
        };
        if *left == 0 {
            return Ok(0);
        }
        let most = usize::try_from(*left).unwrap_or(usize::MAX).min(into.len());
        let read = self.stream.read(&mut into[..most])?;
        if read == 0 && most > 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        *left -= read as u64;
        Ok(read)
    }
}

fn read_line(stream: &mut impl BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    ensure!(line.ends_with("\r\n"), "the connection ended after {line:?}");
    line.truncate(line.len() - 2);
    Ok(line)
}

/// Most bytes of a body that are written or looked at together.
const PIECE: usize = 100_000;

/// Bytes after which a [`Pattern`] repeats; no buffer has a multiple of that.
const PERIOD: usize = 251;

/// A long body whose every byte follows from its place.
pub struct Pattern {
    len: usize,
    /// A piece, wherever in the period it begins.
    piece: Vec<u8>,
}

impl Pattern {
    /// One of `len` bytes.
    pub fn new(len: usize) -> Self {
        let piece = (0..PERIOD + PIECE).map(|place| (place % PERIOD) as u8);
        Self {
            len,
            piece: piece.collect(),
        }
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What is at `at`, `len` bytes or fewer, if it ends before that.
    fn piece_at(&self, at: usize, len: usize) -> &[u8] {
        let len = len.min(self.len.saturating_sub(at)).min(PIECE);
        &self.piece[at % PERIOD..][..len]
    }

    /// Writes some of what is at `at`; gives how much was written.
    ///
    /// # Errors
    /// As those of the stream.
    pub fn write_at(&self, at: usize, stream: &mut impl Write) -> std::io::Result<usize> {
        stream.write(self.piece_at(at, PIECE))
    }

    /// Reads on from `at` until the body ends.
    ///
    /// # Errors
    /// When a byte is wrong, or there are too many or too few.
    pub fn check_from(&self, mut at: usize, stream: &mut impl Read) -> anyhow::Result<()> {
        let mut piece = vec![0; PIECE];
        loop {
            let read = stream.read(&mut piece)?;
            if read == 0 {
                break;
            }
            ensure!(
                &piece[..read] == self.piece_at(at, read),
                "wrong after {at} bytes"
            );
            at += read;
        }
        ensure!(at == self.len, "{at} bytes");
        Ok(())
    }
}
