//! What the server and the process that asks an engine say to each other: how long it is, in four bytes, and then that. Numbers are
//! in the host's byte order, and before a text stands how long that is.

use std::{
    collections::BTreeMap,
    iter,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    super::{
        bounded::{MAX_LABELS, MAX_LABELS_LEN},
        budget::{Bounds, MAX_WORKLOADS},
        docker::may_be_name,
        engine_socket::Api,
        starts::{MAX_PATH_LEN, Mark, Starting},
        workload::{KnownPids, PodName, Workload, WorkloadKind},
    },
    Failure,
};

/// Bytes that say how long something is.
pub(super) const LEN_LEN: usize = size_of::<u32>();

/// Most bytes of an order: it may name all containers that are taken.
pub(super) const MAX_ORDER_LEN: usize = MAX_WORKLOADS * 256;

/// Most bytes of what is told at once: what is known of a container or pod.
pub(super) const MAX_TOLD_LEN: usize = 256 << 10;

/// Most images of a pod.
const MAX_IMAGES: usize = 4096;

/// Most bytes of a sentence.
const MAX_SENTENCE_LEN: usize = 4 << 10;

/// What the server wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// What an engine runs, by its API or, without one, by the one that it has.
    Workloads {
        api: Option<Api>,
        bounds: Bounds,
        known: KnownPids,
    },
    /// The state of a container, by its name.
    AtRest(String),
    /// What is being started, again and again, by its API or, without one, by the one that it has.
    Starting(Option<Api>),
}

/// What the process says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// That it has given up its rights, and waits for its order.
    Ready,
    /// That the engine runs this.
    Workload(Workload),
    /// That this is to be asked of an engine of Docker's API.
    Ask(Question),
    /// That it wants the connection to an engine of the CRI.
    Connect,
    /// The state of a container that does not run.
    AtRest(Option<String>),
    /// That something is being started.
    Starting(Starting),
    /// That there is nothing more, and why not.
    Done(Result<(), Failure>),
}

/// What an engine of Docker's API can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::discovery) enum Question {
    /// What it runs.
    List,
    /// What it knows of a container, by its name or identifier.
    Details(String),
    /// What has happened of late.
    Recent,
    /// The same, where podman is the engine.
    RecentOfPodman,
    /// What it knows of a network, by its identifier.
    Network(String),
}

/// How long ago something may have happened to a container that starts now.
const RECENT: Duration = Duration::from_secs(5);

impl Question {
    /// The path that has the answer.
    pub(in crate::discovery) fn path(&self) -> String {
        match self {
            Self::List => "/containers/json".to_owned(),
            Self::Details(name) => format!("/containers/{name}/json"),
            Self::Recent => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                format!(
                    "/events?stream=false&since={}&until={}.{:09}",
                    now.saturating_sub(RECENT).as_secs(),
                    now.as_secs(),
                    now.subsec_nanos()
                )
            }
            // It ends what it tells once it has told all, and before that where that is asked for.
            Self::RecentOfPodman => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                format!(
                    "/events?stream=false&since={}",
                    now.saturating_sub(RECENT).as_secs()
                )
            }
            Self::Network(id) => format!("/networks/{id}"),
        }
    }
}

impl Order {
    /// With its length.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut words = Words::default();
        match self {
            Self::Workloads { api, bounds, known } => {
                words.byte(number_of(*api));
                let Bounds {
                    list,
                    details,
                    workloads,
                    parallel,
                    kept,
                } = *bounds;
                for number in [list, details, workloads, parallel, kept] {
                    words.bytes(&(number as u64).to_ne_bytes());
                }
                for (key, pid) in known {
                    // One more is asked for.
                    if words.0.len() + key.len() + 2 * LEN_LEN <= MAX_ORDER_LEN {
                        words.text(key);
                        words.number(*pid);
                    }
                }
            }
            Self::AtRest(name) => {
                words.byte(3);
                words.text(name);
            }
            Self::Starting(api) => {
                words.byte(4);
                words.byte(number_of(*api));
            }
        }
        words.finish()
    }

    /// Without its length.
    pub(super) fn decode(words: &[u8]) -> Option<Self> {
        let mut reader = Reader(words);
        let api = match reader.byte()? {
            3 => {
                let name = reader.text()?;
                return reader.end().map(|()| Self::AtRest(name));
            }
            4 => {
                let api = api_of(reader.byte()?)?;
                return reader.end().map(|()| Self::Starting(api));
            }
            number => api_of(number)?,
        };
        let mut large = || reader.array().map(|bytes| u64::from_ne_bytes(bytes) as usize);
        let bounds = Bounds {
            list: large()?,
            details: large()?,
            workloads: large()?,
            parallel: large()?,
            kept: large()?,
        };
        let mut known = KnownPids::new();
        while reader.end().is_none() {
            known.insert(reader.text()?, reader.number()?);
        }
        Some(Self::Workloads { api, bounds, known })
    }
}

fn number_of(api: Option<Api>) -> u8 {
    match api {
        None => 0,
        Some(Api::Docker) => 1,
        Some(Api::Cri) => 2,
    }
}

fn api_of(number: u8) -> Option<Option<Api>> {
    match number {
        0 => Some(None),
        1 => Some(Some(Api::Docker)),
        2 => Some(Some(Api::Cri)),
        _ => None,
    }
}

impl Told {
    /// With its length; `None` when there is more of it than is taken.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let mut words = Words::default();
        match self {
            Self::Workload(workload) => {
                words.byte(0);
                words.workload(workload);
                if workload.images.len() > MAX_IMAGES {
                    return None;
                }
            }
            Self::Connect => words.byte(1),
            Self::Ask(Question::List) => words.byte(2),
            Self::Ask(Question::Details(name)) => {
                words.byte(8);
                words.text(name);
            }
            Self::AtRest(None) => words.byte(3),
            Self::AtRest(Some(state)) => {
                words.byte(4);
                words.text(state);
            }
            Self::Ask(Question::Recent) => words.byte(9),
            Self::Ask(Question::Network(id)) => {
                words.byte(10);
                words.text(id);
            }
            Self::Ask(Question::RecentOfPodman) => words.byte(12),
            Self::Starting(Starting { workload, mark }) => {
                match mark {
                    Mark::Mac(mac) => {
                        words.byte(11);
                        words.bytes(mac);
                    }
                    Mark::Mount(path) => {
                        words.byte(13);
                        words.text(path);
                    }
                }
                words.workload(workload);
            }
            Self::Done(Ok(())) => words.byte(5),
            Self::Ready => words.byte(7),
            Self::Done(Err(failure)) => {
                words.byte(6);
                words.byte(failure.is_of_no_engine.into());
                words.byte(failure.is_unimplemented.into());
                words.text(beginning(&failure.sentence, MAX_SENTENCE_LEN));
            }
        }
        (words.0.len() <= LEN_LEN + MAX_TOLD_LEN).then(|| words.finish())
    }

    /// Without its length. What makes no sense is none.
    pub(super) fn decode(words: &[u8]) -> Option<Self> {
        let mut reader = Reader(words);
        let told = match reader.byte()? {
            0 => Self::Workload(reader.workload().filter(|workload| workload.pid != 0)?),
            1 => Self::Connect,
            2 => Self::Ask(Question::List),
            3 => Self::AtRest(None),
            4 => Self::AtRest(Some(reader.text()?).filter(|state| is_word(state))),
            5 => Self::Done(Ok(())),
            6 => Self::Done(Err(Failure {
                is_of_no_engine: reader.byte()? != 0,
                is_unimplemented: reader.byte()? != 0,
                sentence: reader.text().filter(|text| text.len() <= MAX_SENTENCE_LEN)?,
            })),
            7 => Self::Ready,
            8 => Self::Ask(Question::Details(reader.text().filter(|name| may_be_name(name))?)),
            9 => Self::Ask(Question::Recent),
            10 => Self::Ask(Question::Network(reader.text().filter(|id| may_be_name(id))?)),
            11 => Self::Starting(Starting {
                mark: Mark::Mac(reader.array()?),
                workload: reader.workload()?,
            }),
            12 => Self::Ask(Question::RecentOfPodman),
            13 => Self::Starting(Starting {
                mark: Mark::Mount(reader.text().filter(|path| path.len() <= MAX_PATH_LEN)?),
                workload: reader.workload()?,
            }),
            _ => return None,
        };
        reader.end().map(|()| told)
    }
}

/// Whether a state is one word, such as `exited`.
pub(in crate::discovery) fn is_word(state: &str) -> bool {
    !state.is_empty() && state.len() <= 32 && state.bytes().all(|byte| byte.is_ascii_lowercase())
}

/// As much of a text as has so many bytes at most.
fn beginning(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// What is written, behind the place for its length.
struct Words(Vec<u8>);

impl Default for Words {
    fn default() -> Self {
        Self(vec![0; LEN_LEN])
    }
}

impl Words {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn number(&mut self, number: u32) {
        self.bytes(&number.to_ne_bytes());
    }

    /// A text, or a list, is never as long as that its length would not fit.
    fn len(&mut self, len: usize) {
        self.number(u32::try_from(len).unwrap_or(u32::MAX));
    }

    fn text(&mut self, text: &str) {
        self.len(text.len());
        self.bytes(text.as_bytes());
    }

    fn workload(&mut self, workload: &Workload) {
        let Workload {
            kind,
            id,
            key,
            name,
            pid,
            images,
            labels,
            labels_left_out,
            state,
            pod,
        } = workload;
        self.byte(match kind {
            WorkloadKind::Docker => 0,
            WorkloadKind::Podman => 1,
            WorkloadKind::Pod => 2,
        });
        for text in [id, key, name, state] {
            self.text(text);
        }
        self.number(*pid);
        self.len(*labels_left_out);
        self.byte(pod.is_some().into());
        if let Some(PodName { namespace, name }) = pod {
            self.text(namespace);
            self.text(name);
        }
        self.len(images.len());
        images.iter().for_each(|image| self.text(image));
        self.len(labels.len());
        for (name, value) in labels {
            self.text(name);
            self.text(value);
        }
    }

    fn finish(self) -> Vec<u8> {
        let Self(mut words) = self;
        let len = (words.len() - LEN_LEN) as u32;
        words[..LEN_LEN].copy_from_slice(&len.to_ne_bytes());
        words
    }
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const LEN: usize>(&mut self) -> Option<[u8; LEN]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn number(&mut self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    fn len(&mut self) -> Option<usize> {
        self.number().map(|len| len as usize)
    }

    fn text(&mut self) -> Option<String> {
        let len = self.len()?;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        str::from_utf8(text).ok().map(str::to_owned)
    }

    fn workload(&mut self) -> Option<Workload> {
        let kind = match self.byte()? {
            0 => WorkloadKind::Docker,
            1 => WorkloadKind::Podman,
            2 => WorkloadKind::Pod,
            _ => return None,
        };
        let [id, key, name, state] = [self.text()?, self.text()?, self.text()?, self.text()?];
        let pid = self.number()?;
        let labels_left_out = self.len()?;
        let pod = match self.byte()? {
            0 => None,
            _ => Some(PodName {
                namespace: self.text()?,
                name: self.text()?,
            }),
        };
        let images = self.len().filter(|count| *count <= MAX_IMAGES)?;
        let images = iter::repeat_with(|| self.text()).take(images);
        let images = images.collect::<Option<_>>()?;
        let labels = self.len().filter(|count| *count <= MAX_LABELS)?;
        let labels = iter::repeat_with(|| Some((self.text()?, self.text()?))).take(labels);
        let labels = labels.collect::<Option<BTreeMap<_, _>>>()?;
        let len: usize = labels.iter().map(|(name, value)| name.len() + value.len()).sum();
        let is_usable = !id.is_empty() && !name.is_empty() && len <= MAX_LABELS_LEN;
        is_usable.then_some(Workload {
            kind,
            id,
            key,
            name,
            pid,
            images,
            labels,
            labels_left_out,
            state,
            pod,
        })
    }

    /// Whether nothing is left.
    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(in crate::discovery) mod fuzzing {
    use super::*;

    /// What a process that asks an engine says, which whoever has the engine may have taken over.
    pub fn told(data: &[u8]) {
        let Some(told) = Told::decode(data) else { return };
        if let Told::Workload(workload) = &told {
            assert!(workload.pid != 0 && !workload.name.is_empty() && workload.images.len() <= MAX_IMAGES);
        }
        let Some(words) = told.encode() else {
            assert!(data.len() > MAX_TOLD_LEN);
            return;
        };
        let again = Told::decode(&words[LEN_LEN..]);
        assert_eq!(again, Some(told));
    }
}
