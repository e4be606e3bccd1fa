//! In which order engines are asked, so that nobody who has sockets in their hands keeps those of others waiting.
//!
//! The host's come first. Of the others, each container and user has a few, one of each in turn. Those that answered last time
//! come before new ones. Who had one that did not answer is left alone for a while, except for those that did.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    engine::{Engine, Heard},
    engine_socket::EngineSocket,
};
use crate::lookout::{Kind, Owner, Place};

/// Most sockets that are asked: a container may have put anything at a well-known place, and each takes memory.
const MAX_SOCKETS: usize = 32;

/// Most of them that are in the same hands, unless these are the host's.
const MAX_SOCKETS_OF_ONE: usize = 4;

/// How long those are left alone who have one that does not answer.
const REST: Duration = Duration::from_secs(20);

/// In whose hands a socket is: a user's, or those of who has a mount namespace, as each container has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Hands {
    Users(Owner),
    Containers(Kind),
}

impl Hands {
    /// Those in which a place is; none where it is the host's.
    fn of(place: Place) -> Option<Self> {
        match place.owner {
            Owner::Host => None,
            Owner::Container => Some(Self::Containers(place.kind)),
            owner @ (Owner::Namespace(_) | Owner::User(_)) => Some(Self::Users(owner)),
        }
    }
}

/// What sockets have come to when they were asked.
#[derive(Clone, Debug, Default)]
pub(super) struct EngineTurns {
    /// Those at which somebody answered last time, by device and inode number.
    answered: HashSet<(u64, u64)>,
    /// Until when others are left alone that are in these hands.
    rests: HashMap<Hands, Instant>,
}

impl EngineTurns {
    /// The indexes of those that have a turn, in the order in which they are asked.
    pub(super) fn order(&self, sockets: &[EngineSocket]) -> Vec<usize> {
        const RESTING: u8 = 3;
        let class = |index: &usize| {
            let socket = &sockets[*index];
            match Hands::of(socket.place) {
                None => 0,
                Some(_) if self.answered.contains(&socket.id) => 1,
                Some(_) if self.may_be_asked(socket) => 2,
                Some(_) => RESTING,
            }
        };
        let mut indexes: Vec<usize> = (0..sockets.len()).collect();
        indexes.sort_by_key(class);
        let mut counts: HashMap<Hands, usize> = HashMap::new();
        let mut turns: Vec<(usize, usize)> = Vec::new();
        for index in indexes {
            let turn = Hands::of(sockets[index].place).map_or(0, |hands| {
                let count = counts.entry(hands).or_default();
                *count += 1;
                *count
            });
            if turn <= MAX_SOCKETS_OF_ONE {
                turns.push((turn, index));
            }
        }
        turns.sort_by_key(|(turn, index)| {
            let class = class(index);
            (class == RESTING, *turn, class)
        });
        turns
            .into_iter()
            .map(|(_, index)| index)
            .take(MAX_SOCKETS)
            .collect()
    }

    /// Whether a socket is asked now.
    pub(super) fn may_be_asked(&self, socket: &EngineSocket) -> bool {
        let rests = Hands::of(socket.place).and_then(|hands| self.rests.get(&hands));
        self.answered.contains(&socket.id) || rests.is_none_or(|until| *until <= Instant::now())
    }

    /// Remembers what they have come to.
    pub(super) fn take_in(&mut self, engines: &[Engine]) {
        let answered = engines.iter().filter(|engine| match engine.heard {
            Heard::Answered => true,
            Heard::Unasked => self.answered.contains(&engine.id),
            Heard::Silent => false,
        });
        self.answered = answered.map(|engine| engine.id).collect();
        let now = Instant::now();
        self.rests.retain(|_, until| *until > now);
        let silent = engines.iter().filter(|engine| engine.heard == Heard::Silent);
        let hands = silent.filter_map(|engine| Hands::of(engine.place));
        self.rests.extend(hands.map(|hands| (hands, now + REST)));
    }
}
