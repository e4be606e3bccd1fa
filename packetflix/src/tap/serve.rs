//! Answers what is asked about a namespace that is open, about all captures, and what is told of connections: the side of a tap
//! that has rights.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use packetflix_common::{InterfaceSettings, MAX_CAPTURED_LEN};
use tokio::task::block_in_place;

use super::{
    KernelError, Loader,
    call::{
        Attached, Begun, ConnectionNews, Counted, KernelUse, Question, Ready, StopsAt, TapsQuestion, Wanted,
    },
    connections::OpenConnection,
    hook::{ChosenHook, HookError},
    interfaces::is_of_everything,
    kernel::KernelCapture,
    link_types::hands_back,
    reported::Reported,
};
use crate::{
    channel::Served,
    netns::{HeldOpen, LinkSockets, Netns},
    sys::{self, own_descriptors},
};

/// Answers what is asked about a namespace until nobody asks any more; then nothing is captured there.
///
/// # Errors
/// When what is asked cannot be understood.
pub(crate) async fn serve(mut line: Served, open: HeldOpen, loader: Arc<Loader>) -> io::Result<()> {
    let mut desk = Desk {
        netns: Arc::clone(&open.netns),
        loader,
        capture: None,
    };
    let served = desk.answer_all(&mut line).await;
    block_in_place(|| desk.close());
    served
}

/// What is known of a namespace that is captured, or will be.
struct Desk {
    netns: Arc<Netns>,
    loader: Arc<Loader>,
    capture: Option<KernelCapture>,
}

impl Desk {
    async fn answer_all(&mut self, line: &mut Served) -> io::Result<()> {
        while let Some(question) = line.next::<Question>().await? {
            match question {
                Question::Look => {
                    let looked = block_in_place(|| self.look());
                    let sockets = looked.as_ref().map(|(_, sockets)| sockets.descriptors());
                    let descriptors = sockets.map(Vec::from).unwrap_or_default();
                    let answer = looked.as_ref().map(|(hook, _)| *hook);
                    line.say_with(&answer, &descriptors).await?;
                }
                Question::Begin { filters, is_admin } => {
                    let begun = block_in_place(|| self.begin(&filters, is_admin));
                    match &begun {
                        Ok(begun) => line.say_with(&Ok::<_, Reported>(begun), &self.rings()).await?,
                        Err(error) => line.say(&Err::<Begun, _>(error)).await?,
                    }
                    if begun.is_err() {
                        self.loader.tend();
                    }
                }
                Question::Attach {
                    interfaces,
                    promiscuous,
                    stops_at,
                } => {
                    let attached = block_in_place(|| self.attach(&interfaces, promiscuous, stops_at));
                    line.say(&attached).await?;
                    self.loader.tend();
                }
                Question::Detach(interfaces) => {
                    block_in_place(|| self.for_capture(|capture| capture.detach(&interfaces)));
                    line.say(&()).await?;
                }
                Question::DetachAll => {
                    block_in_place(|| self.for_capture(KernelCapture::detach_all));
                    line.say(&()).await?;
                }
                Question::Remove(interfaces) => {
                    self.for_capture(|capture| interfaces.iter().for_each(|index| capture.remove(*index)));
                    line.say(&()).await?;
                }
                Question::Count => line.say(&self.count()).await?,
                Question::Whereabouts(interfaces) => {
                    let whereabouts = interfaces.iter().map(|index| {
                        let capture = self.capture.as_ref()?;
                        capture.attachments().whereabouts(*index)
                    });
                    line.say(&whereabouts.collect::<Vec<_>>()).await?;
                }
                Question::AddOwn(own) => {
                    let mut added = Ok(());
                    self.for_capture(|capture| added = capture.add_own(&own));
                    let added = added.map_err(|error| Reported::from(KernelError::Own(error)));
                    line.say(&added).await?;
                }
                Question::RemoveOwn(own) => {
                    self.for_capture(|capture| capture.remove_own(&own));
                    line.say(&()).await?;
                }
                Question::Grow => match block_in_place(|| self.grow()) {
                    Ok(rings) => {
                        let (places, descriptors) = handed_over(rings);
                        line.say_with(&Ok::<_, Reported>(places), &descriptors).await?;
                    }
                    Err(error) => line.say(&Err::<Vec<u32>, _>(Reported::from(error))).await?,
                },
                Question::UseGrown(read) => {
                    block_in_place(|| self.for_capture(|capture| capture.rings_mut().use_grown(&read)));
                    line.say(&()).await?;
                }
                Question::Close => {
                    let is_left = block_in_place(|| self.close());
                    line.say(&is_left).await?;
                }
            }
        }
        Ok(())
    }

    fn look(&self) -> Result<(ChosenHook, LinkSockets), Reported> {
        let look = || -> Result<_, KernelError> {
            let sockets = LinkSockets::open().map_err(|source| KernelError::Socket {
                kind: "netlink",
                source,
            })?;
            Ok((ChosenHook::choose(self.loader.config().hook)?, sockets))
        };
        let looked = self.netns.enter(look).map_err(KernelError::Enter);
        Ok(looked.flatten()?)
    }

    fn begin(&mut self, filters: &super::CaptureFilters, is_admin: bool) -> Result<Begun, Reported> {
        self.close();
        let control = self.netns.enter(sys::packet_socket).map_err(KernelError::Enter)?;
        let control = control.map_err(|source| KernelError::Socket {
            kind: "packet",
            source,
        })?;
        let capture = KernelCapture::begin(&self.loader, control, filters, is_admin)?;
        let begun = Begun {
            clock: capture.clock(),
            object: capture.object(),
            ring_size: capture.rings().size(),
            places: capture.rings().rings().iter().map(|(place, _)| *place).collect(),
        };
        self.capture = Some(capture);
        Ok(begun)
    }

    fn rings(&self) -> Vec<BorrowedFd<'_>> {
        let rings = self.capture.iter().flat_map(|capture| capture.rings().rings());
        rings.map(|(_, ring)| ring.as_fd()).collect()
    }

    /// Attaches to interfaces on one visit to the namespace.
    fn attach(
        &mut self,
        interfaces: &[Wanted],
        promiscuous: bool,
        stops_at: StopsAt,
    ) -> Result<Vec<Attached>, Reported> {
        let Self {
            netns,
            loader,
            capture,
        } = self;
        let Some(capture) = capture else {
            return Ok(Vec::new());
        };
        let costs = loader.config().rates.costs();
        let attach = || {
            let mut attached = Vec::with_capacity(interfaces.len());
            for wanted in interfaces {
                let settings = InterfaceSettings {
                    costs,
                    interface_id: wanted.id,
                    hands_back: u16::from(hands_back(&wanted.link)),
                    network_offset: wanted.network_offset,
                    filter: wanted.filter,
                    snaplen: wanted.snaplen.min(MAX_CAPTURED_LEN),
                };
                let (one, stops) = match capture.attach(&wanted.link, settings) {
                    Ok(()) => {
                        let is_wanted = promiscuous && !wanted.link.loopback;
                        let switched = is_wanted.then(|| capture.make_promiscuous(wanted.link.ifindex));
                        let not_promiscuous = switched.and_then(Result::err).map(|error| error.to_string());
                        (Attached::Captured { not_promiscuous }, false)
                    }
                    Err(KernelError::Hook(HookError::Gone { .. })) => (Attached::Gone, false),
                    Err(error) => {
                        let stops = match stops_at {
                            StopsAt::Never => false,
                            StopsAt::Everything => is_of_everything(&error),
                            StopsAt::First => true,
                        };
                        (Attached::Refused(error.into()), stops)
                    }
                };
                attached.push(one);
                if stops {
                    break;
                }
            }
            attached
        };
        Ok(netns.enter(attach).map_err(KernelError::Enter)?)
    }

    fn count(&self) -> Counted {
        let Some(capture) = &self.capture else {
            return Counted::default();
        };
        Counted {
            interfaces: capture.counted(),
            used: capture.program_use(),
            is_held_by_process: self.netns.is_held_by_process(),
        }
    }

    fn grow(&mut self) -> Result<&[(u32, OwnedFd)], KernelError> {
        match &mut self.capture {
            Some(capture) => {
                let has_packets = capture.cpus_with_packets();
                capture.rings_mut().grow(&has_packets)
            }
            None => Ok(&[]),
        }
    }

    fn for_capture(&mut self, work: impl FnOnce(&mut KernelCapture)) {
        if let Some(capture) = &mut self.capture {
            work(capture);
        }
    }

    /// Ends the capture, if there is one; gives whether what it had was left to the next.
    fn close(&mut self) -> bool {
        let Some(capture) = self.capture.take() else {
            return false;
        };
        let is_left = capture.close();
        self.loader.tend();
        is_left
    }
}

fn handed_over(rings: &[(u32, OwnedFd)]) -> (Vec<u32>, Vec<BorrowedFd<'_>>) {
    rings.iter().map(|(place, ring)| (*place, ring.as_fd())).unzip()
}

/// Answers what is asked about all captures.
///
/// # Errors
/// When it cannot be understood.
pub(crate) async fn serve_all(mut line: Served, loader: Arc<Loader>) -> io::Result<()> {
    while let Some(question) = line.next::<TapsQuestion>().await? {
        match question {
            TapsQuestion::GetReady => {
                loader.get_ready().await;
                line.say(&()).await?;
            }
            TapsQuestion::Problem => line.say(&loader.problem()).await?,
            TapsQuestion::Use => {
                let used = KernelUse {
                    ring_memory: loader.ring_memory(),
                    descriptors: own_descriptors().unwrap_or_default(),
                };
                line.say(&used).await?;
            }
            TapsQuestion::RingsOf(object) => match loader.rings_of(object) {
                Some((ring_size, rings)) => {
                    let (places, descriptors) = handed_over(&rings);
                    let ready = Ready { ring_size, places };
                    line.say_with(&Some(ready), &descriptors).await?;
                }
                None => line.say(&None::<Ready>).await?,
            },
        }
    }
    Ok(())
}

/// Tells of which objects the rings may be mapped ahead, all of them whenever that changes, until nobody listens any more.
///
/// # Errors
/// When nobody hears it.
pub(crate) async fn serve_rings(mut line: Served, loader: Arc<Loader>) -> io::Result<()> {
    let mut numbers = loader.numbers();
    loop {
        let kept = numbers.borrow_and_update().clone();
        line.say(&kept).await?;
        tokio::select! {
            Ok(()) = numbers.changed() => {}
            () = line.is_left() => return Ok(()),
        }
    }
}

/// Takes note of the service's own connections, until nobody tells of any.
///
/// # Errors
/// When what is told cannot be understood.
pub(crate) async fn serve_connections(mut line: Served, loader: Arc<Loader>) -> io::Result<()> {
    let mut open: HashMap<(SocketAddr, SocketAddr), Vec<OpenConnection>> = HashMap::new();
    while let Some(news) = line.next::<ConnectionNews>().await? {
        match news {
            ConnectionNews::Opened { local, peer } => {
                let connection = loader.connections().open(local, peer);
                open.entry((local, peer)).or_default().push(connection);
            }
            ConnectionNews::Closed { local, peer } => {
                let left = open.get_mut(&(local, peer)).map(|those| {
                    drop(those.pop());
                    those.len()
                });
                if left == Some(0) {
                    open.remove(&(local, peer));
                }
            }
        }
        line.say(&()).await?;
    }
    Ok(())
}
