//! What a tap has of its capture in the kernel: the other side, which has the rights, does what is asked for.

use std::{
    collections::HashSet,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    CaptureFilters, OwnTraffic, TapError,
    ahead::Ahead,
    call::{Attached, Begun, ConnectionNews, Counted, KernelUse, Question, StopsAt, TapsQuestion, Wanted},
    cpu_rings::HandedOver,
    hook::{ChosenHook, Whereabouts},
    reported::Reported,
};
use crate::{
    channel::{Broken, Control, Kind, Line},
    netns::{LinkWatch, OpenNetns},
};

/// How captures are begun.
pub(crate) struct Taps {
    control: Arc<Control>,
    connections: Arc<Connections>,
    ahead: Arc<Ahead>,
}

impl Taps {
    pub(crate) fn new(control: &Arc<Control>) -> Self {
        Self {
            connections: Arc::new(Connections::new(Arc::clone(control))),
            control: Arc::clone(control),
            ahead: Arc::default(),
        }
    }

    /// The connections that captures leave out as the service's own.
    pub(crate) fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    /// The rings of the captures to come.
    pub(crate) fn ahead(&self) -> &Arc<Ahead> {
        &self.ahead
    }

    /// Maps rings before they are read. Never ends.
    pub(crate) async fn map_ahead(&self) {
        self.ahead.follow(&self.control).await;
    }

    /// What is in use where the rights are; nothing, where nobody tells.
    pub(crate) fn kernel_use(&self) -> KernelUse {
        self.control
            .ask(Kind::Taps, &TapsQuestion::Use)
            .unwrap_or_default()
    }

    /// Why no capture can begin, if so, as far as it is known: no object could be loaded. That others have taken all the
    /// memory for rings is no such reason.
    pub(crate) fn problem(&self) -> Option<String> {
        let line = self.control.open(Kind::Taps);
        let problem = line.and_then(|line| line.ask_soon(&TapsQuestion::Problem));
        problem.unwrap_or_else(|broken| Some(crate::error::chain(&broken)))
    }

    /// Waits until it is known whether captures can begin.
    pub(crate) async fn get_ready(&self) {
        let control = Arc::clone(&self.control);
        let ask = move || control.ask::<_, ()>(Kind::Taps, &TapsQuestion::GetReady);
        // Whoever does not answer is told of by the service as a whole.
        let _ = tokio::task::spawn_blocking(ask).await;
    }
}

/// The connections that there are.
pub(crate) struct Connections {
    control: Arc<Control>,
    told: Mutex<Told>,
}

/// Who is told of connections, and of which.
#[derive(Default)]
struct Told {
    line: Option<Line>,
    open: HashSet<(SocketAddr, SocketAddr)>,
}

/// A connection that is open, until this is dropped.
pub(crate) struct OpenConnection {
    connections: Arc<Connections>,
    local: SocketAddr,
    peer: SocketAddr,
}

impl Connections {
    fn new(control: Arc<Control>) -> Self {
        Self {
            control,
            told: Mutex::default(),
        }
    }

    /// A connection was accepted: its packets are our own from now on.
    pub(crate) fn open(self: &Arc<Self>, local: SocketAddr, peer: SocketAddr) -> OpenConnection {
        let mut told = self.told();
        told.open.insert((local, peer));
        told.tell(&self.control, &ConnectionNews::Opened { local, peer });
        drop(told);
        OpenConnection {
            connections: Arc::clone(self),
            local,
            peer,
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    fn tell(&mut self, control: &Control, news: &ConnectionNews) {
        let is_heard = |line: &Line| line.ask_soon::<_, ()>(news).is_ok();
        if !self.line.as_ref().is_some_and(is_heard) {
            // Who hears of it next knows of none. If that is nobody, the next news is another try.
            self.line = control.open(Kind::Connections).ok().filter(|line| {
                let mut open = self.open.iter();
                open.all(|&(local, peer)| {
                    line.ask_soon::<_, ()>(&ConnectionNews::Opened { local, peer })
                        .is_ok()
                })
            });
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let Self { local, peer, .. } = *self;
        let mut told = self.connections.told();
        told.open.remove(&(local, peer));
        told.tell(&self.connections.control, &ConnectionNews::Closed { local, peer });
    }
}

/// What a capture has in the kernel; nothing, once this is dropped.
pub(super) struct Capture {
    line: Arc<Line>,
    /// What was counted last.
    last: Mutex<Arc<Counted>>,
    is_closed: bool,
}

/// Looks what there is in a namespace: the hook that captures there would have, and the sockets by which its interfaces are
/// listed. Must be called within a tokio runtime.
pub(super) fn look(netns: &OpenNetns) -> Result<(ChosenHook, LinkWatch), TapError> {
    let (hook, sockets) = netns
        .line()
        .ask_for_descriptors::<_, Result<ChosenHook, Reported>>(&Question::Look)?;
    let hook = hook?;
    let sockets = <[OwnedFd; 2]>::try_from(sockets).map_err(|_| wrong())?;
    Ok((hook, LinkWatch::of(sockets).map_err(TapError::List)?))
}

/// Rings as they are handed over, each with its place.
pub(super) fn with_places(places: &[u32], rings: Vec<OwnedFd>) -> Result<HandedOver, Broken> {
    match places.len() == rings.len() {
        true => Ok(places.iter().copied().zip(rings).collect()),
        false => Err(wrong()),
    }
}

fn wrong() -> Broken {
    std::io::Error::from(std::io::ErrorKind::InvalidData).into()
}

impl Capture {
    /// Begins one; gives its rings, each with its place.
    pub(super) fn begin(
        netns: &OpenNetns,
        filters: &CaptureFilters,
        is_admin: bool,
    ) -> Result<(Self, Begun, HandedOver), TapError> {
        let question = Question::Begin {
            filters: filters.clone(),
            is_admin,
        };
        let (begun, rings) = netns
            .line()
            .ask_for_descriptors::<_, Result<Begun, Reported>>(&question)?;
        let begun = begun?;
        let capture = Self {
            line: Arc::clone(netns.line()),
            last: Mutex::default(),
            is_closed: false,
        };
        let rings = with_places(&begun.places, rings)?;
        Ok((capture, begun, rings))
    }

    /// Attaches to interfaces; gives what became of each, up to one at which it was stopped.
    pub(super) fn attach(
        &self,
        interfaces: Vec<Wanted>,
        promiscuous: bool,
        stops_at: StopsAt,
    ) -> Result<Vec<Attached>, TapError> {
        let question = Question::Attach {
            interfaces,
            promiscuous,
            stops_at,
        };
        let attached: Result<_, Reported> = self.line.ask(&question)?;
        Ok(attached?)
    }

    pub(super) fn detach(&self, interfaces: &[u32]) {
        self.tell(&Question::Detach(interfaces.to_vec()));
    }

    pub(super) fn detach_all(&self) {
        self.tell(&Question::DetachAll);
    }

    /// Forgets what was counted of these.
    pub(super) fn remove(&self, interfaces: Vec<u32>) {
        if !interfaces.is_empty() {
            self.tell(&Question::Remove(interfaces));
        }
    }

    /// What is counted by now; what was last, where nobody tells.
    pub(super) fn count(&self) -> Arc<Counted> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(counted) = self.line.ask::<_, Counted>(&Question::Count) {
            *last = Arc::new(counted);
        }
        Arc::clone(&last)
    }

    /// Where interfaces are that are captured; nothing of those that are not.
    pub(super) fn whereabouts(&self, interfaces: Vec<u32>) -> Vec<Option<Whereabouts>> {
        let count = interfaces.len();
        let asked = self.line.ask(&Question::Whereabouts(interfaces));
        // What cannot be looked at is not here.
        asked.unwrap_or_else(|_| vec![Some(Whereabouts::Elsewhere); count])
    }

    pub(super) fn add_own(&self, own: &OwnTraffic) -> Result<(), TapError> {
        let added: Result<(), Reported> = self.line.ask(&Question::AddOwn(own.clone()))?;
        Ok(added?)
    }

    pub(super) fn remove_own(&self, own: &OwnTraffic) {
        self.tell(&Question::RemoveOwn(own.clone()));
    }

    /// Rings for CPUs that came online and have seen packets since.
    pub(super) fn grow(&self) -> Result<HandedOver, TapError> {
        let (places, rings) = self
            .line
            .ask_for_descriptors::<_, Result<Vec<u32>, Reported>>(&Question::Grow)?;
        Ok(with_places(&places?, rings)?)
    }

    /// Has those of these rings used that are read.
    pub(super) fn use_grown(&self, read: Vec<u32>) {
        self.tell(&Question::UseGrown(read));
    }

    /// Ends it; gives whether what it had was left to the next.
    pub(super) fn close(&mut self) -> bool {
        let is_open = !std::mem::replace(&mut self.is_closed, true);
        is_open && self.line.ask(&Question::Close).unwrap_or(false)
    }

    fn tell(&self, question: &Question) {
        // Without anyone who hears it, there is no capture.
        let _ = self.line.ask::<_, ()>(question);
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use tokio::{sync::mpsc, task::block_in_place};

    use super::*;
    use crate::channel::{Served, open_lines, pair};

    /// Who answers late, or no more, may not have heard of the last: another is told of all.
    #[tokio::test(flavor = "multi_thread")]
    async fn who_listens_next_is_told_of_all_connections() {
        let (asking, answering) = pair().unwrap();
        let (told, mut heard) = mpsc::unbounded_channel();
        let mut lines = 0;
        tokio::spawn(open_lines(
            Served::new(answering).unwrap(),
            move |_, mut line: Served| {
                lines += 1;
                let (number, told) = (lines, told.clone());
                tokio::spawn(async move {
                    while let Ok(Some(ConnectionNews::Opened { peer, .. })) = line.next().await {
                        told.send((number, peer.port())).unwrap();
                        // The first hears of the second connection, and says nothing any more.
                        if (number, peer.port()) == (1, 2) || line.say(&()).await.is_err() {
                            break;
                        }
                    }
                });
            },
        ));
        let connections = Arc::new(Connections::new(Arc::new(Control::new(asking))));
        let local = SocketAddr::from(([127, 0, 0, 1], 5001));
        let open =
            |port| block_in_place(|| connections.open(local, SocketAddr::from(([127, 0, 0, 1], port))));
        let _open = [open(1), open(2)];
        let mut all = Vec::new();
        while let Ok(one) = heard.try_recv() {
            all.push(one);
        }
        all.sort_unstable();
        assert_eq!(all, [(1, 1), (1, 2), (2, 1), (2, 2)]);
    }

    #[test]
    fn interfaces_that_nobody_looks_at_are_not_here() {
        let (ours, theirs) = pair().unwrap();
        drop(theirs);
        let capture = Capture {
            line: Arc::new(Line::new(ours)),
            last: Mutex::default(),
            is_closed: false,
        };
        let whereabouts = capture.whereabouts(vec![1, 2]);
        assert!(
            matches!(
                whereabouts[..],
                [Some(Whereabouts::Elsewhere), Some(Whereabouts::Elsewhere)]
            ),
            "{whereabouts:?}"
        );
    }
}
