//! A request and its answer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{AUTHORIZATION, HOST, HeaderMap},
    http,
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    cluster::{ForwardError, NOTICE, RoadError},
    connect::{ConnectError, connect},
    error::{Failure, behind},
    server::{Address, Server},
    terminal::say,
};

/// How long an answer may take: longer than any look of the server's for its targets, and than it takes to answer what ssh asks.
const PATIENCE: Duration = Duration::from_secs(60);

/// Most bytes of an answer: more than a gateway has for the lists of all nodes.
const MAX_LEN: usize = 192 << 20;

/// Most bytes of a refusal, which is a sentence.
const MAX_REFUSAL_LEN: usize = 64 << 10;

/// How long a pod may be silent that takes connections, whatever it was asked, until it is asked again.
const SILENCE: Duration = Duration::from_secs(10);

/// Status of a request that shows nothing that is known.
const UNAUTHORIZED: u16 = 401;

/// Where a server tells its version, and its name there.
const VERSION: &str = "/version";
const NAME: &str = "packetflix";

/// Most bytes of that.
const MAX_VERSION_LEN: usize = 64 * 1024;

/// Header in which a server tells its time beside its version: nanoseconds since 1970, UTC.
const TIME: &str = "packetflix-time";

/// Header that says what those may do on whose behalf a server is asked. It is in the answer of whoever heeds it.
const RIGHTS: &str = "packetflix-rights";

/// How often it is asked for that. The quickest answer tells most.
const READINGS: usize = 4;

type Sender = http1::SendRequest<Empty<Bytes>>;

/// Why there is no answer, or another than was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The request cannot be made.
    #[error("the request cannot be made")]
    Request(#[from] http::Error),
    /// It does not speak HTTP.
    #[error("what answers at {0} is no packetflix, or speaks TLS")]
    NotHttp(Address, #[source] hyper::Error),
    /// ssh gives nothing.
    #[error(
        "packetflix is not reached by {0}: if ssh has said nothing above, is packetflix installed and running there?"
    )]
    Ssh(Address),
    /// It does not answer in time.
    #[error("{0} does not answer within {seconds} s", seconds = PATIENCE.as_secs())]
    Late(Address),
    /// It would show and capture what is not theirs on whose behalf it is asked.
    #[error("{0} bounds nothing by the rights of whoever asks: a newer packetflix has to run there")]
    Unbounded(Address),
    /// It refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The answer is not what packetflix answers.
    #[error("what answers at {0} is no packetflix: is that its address?")]
    Other(Address),
    /// The answer has more than so many bytes.
    #[error("the answer of {0} has more than {1} bytes")]
    TooLong(Address, usize),
    /// The answer broke off.
    #[error("the answer of {0} broke off")]
    Body(Address, #[source] Box<dyn std::error::Error + Send + Sync>),
}

impl RequestError {
    /// What to do about it at the command line of a client.
    pub(crate) fn remedy(&self) -> Option<&'static str> {
        Some(match self {
            Self::Connect(error) => return error.remedy(),
            Self::NotHttp(Address::Cluster(_), _) => {
                "Where a pod speaks TLS, its readiness probe has to say so (scheme: HTTPS)"
            }
            Self::NotHttp(..) => "Try https:// in the place of http://",
            Self::Refused(refusal) if refusal.status == UNAUTHORIZED => {
                "Show a token with --token-file, or a certificate with --cert and --key"
            }
            _ => return None,
        })
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        match &error {
            RequestError::Request(_) => Self::usage(error),
            RequestError::Refused(refusal) if refusal.is_of_length() => Self::usage(error),
            _ => Self::refused(error),
        }
    }
}

/// A server's refusal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Refusal {
    /// Status of HTTP.
    pub status: u16,
    /// Why, for people.
    pub sentence: String,
    /// Why, for programs.
    pub code: String,
}

/// The body of a refusal.
#[derive(Deserialize)]
struct RefusalBody {
    error: String,
    #[serde(default)]
    code: String,
}

impl Refusal {
    /// What a server on the way says, or one before it has read all.
    fn too_long(status: StatusCode) -> Option<Self> {
        let refusal = Self {
            status: status.as_u16(),
            sentence: "what is asked for is too long: make target, interfaces and filter shorter".to_owned(),
            code: String::new(),
        };
        refusal.is_of_length().then_some(refusal)
    }

    /// Whether the request is too long.
    fn is_of_length(&self) -> bool {
        const URI_TOO_LONG: u16 = 414;
        const HEAD_TOO_LARGE: u16 = 431;
        [URI_TOO_LONG, HEAD_TOO_LARGE].contains(&self.status)
    }

    fn read(status: StatusCode, body: &[u8]) -> Option<Self> {
        let body: RefusalBody = serde_json::from_slice(body).ok()?;
        Some(Self {
            status: status.as_u16(),
            sentence: body.error,
            code: body.code,
        })
    }
}

/// An answer whose body is still to come, and the connection that it comes over.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    driver: AbortOnDropHandle<()>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        Some(self.response.headers().get(name)?.to_str().ok()?.to_owned())
    }

    async fn body(self, address: &Address, max_len: usize) -> Result<Bytes, RequestError> {
        let _driver = self.driver;
        let body = timeout(PATIENCE, Limited::new(self.response, max_len).collect())
            .await
            .map_err(|_| RequestError::Late(address.clone()))?
            .map_err(|error| match error.is::<LengthLimitError>() {
                true => RequestError::TooLong(address.clone(), max_len),
                false => RequestError::Body(address.clone(), error),
            })?;
        Ok(body.to_bytes())
    }

    /// The error that this answer is.
    pub(crate) async fn into_error(self, address: &Address) -> RequestError {
        let status = self.response.status();
        match self.body(address, MAX_REFUSAL_LEN).await {
            Ok(body) => Refusal::read(status, &body)
                .or_else(|| Refusal::too_long(status))
                .map_or_else(|| RequestError::Other(address.clone()), RequestError::Refused),
            Err(error) => error,
        }
    }
}

/// Sends a request over a connection of its own.
pub(crate) async fn send(
    server: &Server,
    method: Method,
    path: &str,
    headers: HeaderMap,
) -> Result<Answer, RequestError> {
    let mut request = request(server, method, path)?;
    request.headers_mut().extend(headers);
    let (mut sender, driver) = open(server).await?;
    let response = exchange(server, &mut sender, request).await?;
    if server.rights.is_some() && !is_bounded(&response) {
        return Err(RequestError::Unbounded(server.address.clone()));
    }
    Ok(Answer { response, driver })
}

/// Whether an answer tells no more than those may know on whose behalf it was asked for. Refusals name what there is, too, but for
/// those that come before it is looked who asks for what.
fn is_bounded(answer: &Response<Incoming>) -> bool {
    let is_of_first_look = matches!(
        answer.status(),
        StatusCode::UNAUTHORIZED | StatusCode::URI_TOO_LONG | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    );
    is_of_first_look || answer.headers().contains_key(RIGHTS)
}

fn request(server: &Server, method: Method, path: &str) -> Result<Request<Empty<Bytes>>, http::Error> {
    let address = &server.address;
    let mut request = Request::builder()
        .method(method)
        .uri(format!("{}{path}", address.prefix()))
        .header(HOST, address.authority());
    if let Some(token) = &server.token {
        request = request.header(AUTHORIZATION, token.bearer());
    }
    if let Some(rights) = &server.rights {
        request = request.header(RIGHTS, rights.as_bytes());
    }
    request.body(Empty::new())
}

/// Opens a connection, which ends with what drives it.
async fn open(server: &Server) -> Result<(Sender, AbortOnDropHandle<()>), RequestError> {
    let stream = TokioIo::new(connect(server).await?);
    let (sender, connection) = http1::handshake(stream)
        .await
        .map_err(|error| not_http(server, error))?;
    let driver = AbortOnDropHandle::new(tokio::spawn(async {
        // Whoever waits for the answer is told the same.
        let _ = connection.with_upgrades().await;
    }));
    Ok((sender, driver))
}

async fn exchange(
    server: &Server,
    sender: &mut Sender,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, RequestError> {
    let answering = timeout(PATIENCE, sender.send_request(request));
    let answer = tokio::select! {
        answer = answering => answer,
        silent = silence(server) => return Err(silent.into()),
    };
    answer
        .map_err(|_| RequestError::Late(server.address.clone()))?
        .map_err(|error| not_http(server, error))
}

/// Finds out whether a pod that does not answer says anything at all: an answer may take its time, but not that. Ends where it
/// does not.
async fn silence(server: &Server) -> ConnectError {
    let Address::Cluster(road) = &server.address else {
        return std::future::pending().await;
    };
    sleep(NOTICE).await;
    let Some(port) = road.port() else {
        return std::future::pending().await;
    };
    say(format_args!("waiting for an answer of {port}"));
    let greeting = async {
        let mut stream = connect(server).await?;
        let request = format!("GET {VERSION} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = async {
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await?;
            stream.read_u8().await
        };
        // Whoever asked is told of what breaks off.
        Ok(answer.await.is_ok())
    };
    match timeout(SILENCE, greeting).await {
        Ok(Ok(_)) => std::future::pending().await,
        Ok(Err(error)) => error,
        Err(_) => RoadError::Silent(port, (NOTICE + SILENCE).as_secs()).into(),
    }
}

fn not_http(server: &Server, error: hyper::Error) -> RequestError {
    let address = server.address.clone();
    let broken = match &address {
        Address::Cluster(road) => behind::<ForwardError>(&error).cloned().or_else(|| road.broken()),
        _ => None,
    };
    if let Some(error) = broken {
        return ConnectError::from(RoadError::from(error)).into();
    }
    match address {
        Address::Ssh { .. } => RequestError::Ssh(address),
        _ => RequestError::NotHttp(address, error),
    }
}

/// What a server answers to a GET, as bytes of JSON.
///
/// # Errors
/// When it refuses, or there is no such answer.
pub async fn get(server: &Server, path: &str) -> Result<Bytes, RequestError> {
    get_within(server, path, MAX_LEN).await
}

/// The same, of so many bytes at most.
///
/// # Errors
/// When it refuses, or there is no such answer, or a longer one.
pub async fn get_within(server: &Server, path: &str, max_len: usize) -> Result<Bytes, RequestError> {
    let answer = send(server, Method::GET, path, HeaderMap::new()).await?;
    match answer.response.status() {
        StatusCode::OK => answer.body(&server.address, max_len).await,
        _ => Err(answer.into_error(&server.address).await),
    }
}

/// An answer that goes on and on.
pub struct Events(Answer);

impl Events {
    /// The next bytes; `None` once it has ended, however.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            let frame = self.0.response.frame().await?.ok()?;
            if let Ok(bytes) = frame.into_data() {
                return Some(bytes);
            }
        }
    }
}

/// What a server answers to a GET, as it comes.
///
/// # Errors
/// When it refuses, or does not answer.
pub async fn events(server: &Server, path: &str) -> Result<Events, RequestError> {
    let answer = send(server, Method::GET, path, HeaderMap::new()).await?;
    match answer.response.status() {
        StatusCode::OK => Ok(Events(answer)),
        _ => Err(answer.into_error(&server.address).await),
    }
}

/// What a server answers to a GET, read as JSON.
///
/// # Errors
/// When it refuses, or there is no such answer.
pub async fn get_json<T: DeserializeOwned>(server: &Server, path: &str) -> Result<T, RequestError> {
    let body = get(server, path).await?;
    serde_json::from_slice(&body).map_err(|_| RequestError::Other(server.address.clone()))
}

/// What a server says of itself, and how its clock stands to ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The version of its program.
    pub version: String,
    /// How its clock stands, where it tells the time.
    pub clock: Option<ClockReading>,
}

/// How the clock of a server stands to ours: by the time that it told in an answer, which it told somewhere between our request
/// and the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// By how many nanoseconds it is ahead of ours; negative where it is behind.
    pub ahead: i64,
    /// By how many nanoseconds that may be wrong: half of the time that the answer took.
    pub uncertainty: u64,
}

#[derive(Deserialize)]
struct VersionBody {
    name: String,
    version: String,
}

/// Asks a server for its version, and for its time as often as makes a good reading of its clock.
///
/// # Errors
/// When it refuses, or is no packetflix.
pub async fn greet(server: &Server) -> Result<Greeting, RequestError> {
    let other = || RequestError::Other(server.address.clone());
    let (mut sender, _driver) = open(server).await?;
    let mut greeting: Option<Greeting> = None;
    for _ in 0..READINGS {
        let before = nanoseconds_now();
        let answer = exchange(server, &mut sender, request(server, Method::GET, VERSION)?).await?;
        let after = nanoseconds_now();
        let clock = time_in(answer.headers()).and_then(|time| ClockReading::of(before, time, after));
        let best = greeting.as_ref().and_then(|greeting| greeting.clock);
        let clock = best
            .into_iter()
            .chain(clock)
            .min_by_key(|reading| reading.uncertainty);
        let body = timeout(PATIENCE, Limited::new(answer, MAX_VERSION_LEN).collect());
        let body = body
            .await
            .map_err(|_| RequestError::Late(server.address.clone()))?
            .map_err(|error| RequestError::Body(server.address.clone(), error))?;
        let body: VersionBody = serde_json::from_slice(&body.to_bytes()).map_err(|_| other())?;
        if body.name != NAME {
            return Err(other());
        }
        greeting = Some(Greeting {
            version: body.version,
            clock,
        });
        if clock.is_none() || sender.ready().await.is_err() {
            break;
        }
    }
    greeting.ok_or_else(other)
}

impl ClockReading {
    /// Of a time that was told between two of ours.
    fn of(before: u128, told: u128, after: u128) -> Option<Self> {
        let took = after.checked_sub(before)?;
        let middle = i128::try_from(before + took / 2).ok()?;
        let ahead = i128::try_from(told).ok()? - middle;
        Some(Self {
            ahead: i64::try_from(ahead).ok()?,
            uncertainty: u64::try_from(took / 2).ok()?,
        })
    }
}

/// The time that a server tells, in nanoseconds since 1970.
fn time_in(headers: &HeaderMap) -> Option<u128> {
    headers.get(TIME)?.to_str().ok()?.parse().ok()
}

fn nanoseconds_now() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos())
}

/// Has a server delete something.
///
/// # Errors
/// When it refuses.
pub async fn delete(server: &Server, path: &str) -> Result<(), RequestError> {
    let answer = send(server, Method::DELETE, path, HeaderMap::new()).await?;
    match answer.response.status() {
        StatusCode::NO_CONTENT => Ok(()),
        _ => Err(answer.into_error(&server.address).await),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        net::{self, Ipv4Addr},
        thread,
    };

    use tokio::net::TcpListener;

    use super::*;
    use crate::server::Trust;

    /// A server that answers each request with one of these in turn.
    fn answering(answers: Vec<String>) -> Server {
        let listener = net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for answer in answers {
                let mut stream = listener.accept().unwrap().0;
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let head = lines.map_while(Result::ok).take_while(|line| !line.is_empty());
                assert!(head.count() > 1);
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        Server {
            address: format!("http://127.0.0.1:{port}").parse().unwrap(),
            token: None,
            trust: Trust::default(),
            rights: None,
        }
    }

    #[tokio::test]
    async fn what_no_rights_have_bounded_is_not_passed_on() {
        const BODY: &str = r#"{"error": "there is no bank/vaul: bank/vault is near"}"#;
        let answer = |status: u16, header: &str| {
            format!(
                "HTTP/1.1 {status} S\r\n{header}Content-Length: {}\r\n\r\n{BODY}",
                BODY.len()
            )
        };
        for (status, is_told) in [
            (200, false),
            (400, false),
            (401, true),
            (403, false),
            (404, false),
            (409, false),
            (414, true),
            (429, false),
            (431, true),
            (503, false),
        ] {
            let by_old = answer(status, "");
            let by_new = answer(status, "packetflix-rights: heeded\r\n");
            let mut server = answering(vec![by_old.clone(), by_old, by_new]);
            let ask = async |server: &Server| get(server, "/targets").await;
            let unbounded = |answer| matches!(answer, Err(RequestError::Unbounded(_)));
            assert!(!unbounded(ask(&server).await), "{status}, for everything");
            server.rights = Some("{}".to_owned());
            assert_eq!(unbounded(ask(&server).await), !is_told, "{status}, by an old one");
            assert!(!unbounded(ask(&server).await), "{status}, by a new one");
        }
    }

    #[test]
    fn clocks_are_read_in_the_middle_of_the_road() {
        let reading = |ahead, uncertainty| Some(ClockReading { ahead, uncertainty });
        assert_eq!(ClockReading::of(1000, 1100, 1200), reading(0, 100));
        assert_eq!(ClockReading::of(1000, 6_100, 1200), reading(5000, 100));
        assert_eq!(ClockReading::of(1000, 0, 1201), reading(-1100, 100));
        // Our own was set back meanwhile, and what it tells is no time of today.
        assert_eq!(ClockReading::of(1200, 1100, 1000), None);
        assert_eq!(ClockReading::of(0, u128::MAX, 10), None);
    }

    #[test]
    fn refusals_say_what_to_do() {
        let body = br#"{"error": "there is no such token", "code": "token_unknown"}"#;
        let refusal = Refusal::read(StatusCode::UNAUTHORIZED, body).unwrap();
        assert_eq!(refusal.code, "token_unknown");
        let told = Failure::from(RequestError::from(refusal)).sentence;
        assert!(told.starts_with("there is no such token. Show a token"), "{told}");
        let old = Refusal::read(StatusCode::NOT_FOUND, br#"{"error": "no"}"#).unwrap();
        assert_eq!((old.to_string(), old.code), ("no".to_owned(), String::new()));
        assert_eq!(Refusal::read(StatusCode::NOT_FOUND, b"<html>"), None);
    }

    #[tokio::test]
    async fn refusals_without_end_are_not_read_to_their_end() {
        const MOST: usize = 16 << 20;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let server = Server {
            address: format!("http://{}", listener.local_addr().unwrap())
                .parse()
                .unwrap(),
            token: None,
            trust: Trust::default(),
            rights: None,
        };
        let refusing = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = format!("HTTP/1.1 500 Internal Server Error\r\nContent-Length: {MOST}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut sent = 0;
            while sent < MOST && stream.write_all(&[b' '; 4096]).await.is_ok() {
                sent += 4096;
            }
            sent
        });
        let error = get_within(&server, "/targets", 4 << 20).await.unwrap_err();
        let told = error.to_string();
        assert!(told.ends_with(" has more than 65536 bytes"), "{told}");
        // What is under way fits into the buffers of a connection.
        let sent = refusing.await.unwrap();
        assert!(sent < MOST, "{sent}");
    }
}
