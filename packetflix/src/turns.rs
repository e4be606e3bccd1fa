//! Whose turn it is, where only a few may do something at a time: nobody's turns keep those of others waiting.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::timeout};

/// How many turns there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TurnBounds {
    /// At the same time.
    pub(crate) at_once: usize,
    /// How many of them may be one's own.
    pub(crate) of_one: usize,
    /// How much may wait, of one and in all: in the measure of what is said when a turn is asked for.
    pub(crate) waiting_of_one: usize,
    pub(crate) waiting: usize,
    /// How long one waits: longer than those that are before may take.
    pub(crate) patience: Duration,
}

/// Gives turns: to those who wait one after the other, and to each of them in the order in which they came.
#[derive(Debug)]
pub(crate) struct Turns {
    bounds: TurnBounds,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    running_of: HashMap<Arc<str>, usize>,
    /// Those who wait; who had a turn goes to the end.
    waiting: VecDeque<(Arc<str>, VecDeque<Waiting>)>,
}

#[derive(Debug)]
struct Waiting {
    turn: oneshot::Sender<Turn>,
    weight: usize,
}

/// One's turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Where it is given back; `None` for one that nobody has got.
    turns: Option<Arc<Turns>>,
    whose: Arc<str>,
}

/// Too many are before, or for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Busy;

impl Turns {
    pub(crate) fn new(bounds: TurnBounds) -> Arc<Self> {
        let state = Mutex::default();
        Arc::new(Self { bounds, state })
    }

    /// Waits for a turn of `whose`, who weighs so much among those who wait: one, or bytes of memory.
    ///
    /// # Errors
    /// When too much waits already, or it takes too long.
    pub(crate) async fn take(self: &Arc<Self>, whose: &Arc<str>, weight: usize) -> Result<Turn, Busy> {
        let turn = self.lock().wait(whose, weight, &self.bounds)?;
        self.give();
        match timeout(self.bounds.patience, turn).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(Busy),
        }
    }

    /// Gives the turns that there are to be had.
    fn give(self: &Arc<Self>) {
        let mut state = self.lock();
        while let Some((whose, waiting)) = state.next(&self.bounds) {
            let turns = Some(Arc::clone(self));
            // Whoever has given up is passed over.
            if let Err(mut turn) = waiting.turn.send(Turn { turns, whose }) {
                turn.turns = None;
                state.leave(&turn.whose);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wait(
        &mut self,
        whose: &Arc<str>,
        weight: usize,
        bounds: &TurnBounds,
    ) -> Result<oneshot::Receiver<Turn>, Busy> {
        for (_, waiting) in &mut self.waiting {
            waiting.retain(|waiting| !waiting.turn.is_closed());
        }
        self.waiting.retain(|(_, waiting)| !waiting.is_empty());
        let all: usize = self.waiting.iter().map(|(_, waiting)| weight_of(waiting)).sum();
        let known = self.waiting.iter().position(|(who, _)| who == whose);
        let own = known.map_or(0, |at| weight_of(&self.waiting[at].1));
        if all + weight > bounds.waiting || own + weight > bounds.waiting_of_one {
            return Err(Busy);
        }
        let (sender, turn) = oneshot::channel();
        let waiting = Waiting { turn: sender, weight };
        match known {
            Some(at) => self.waiting[at].1.push_back(waiting),
            None => self
                .waiting
                .push_back((Arc::clone(whose), VecDeque::from([waiting]))),
        }
        Ok(turn)
    }

    /// Who gets the next turn, if there is one.
    fn next(&mut self, bounds: &TurnBounds) -> Option<(Arc<str>, Waiting)> {
        if self.running >= bounds.at_once {
            return None;
        }
        let may = |(who, _): &(Arc<str>, _)| self.running_of.get(who).is_none_or(|own| *own < bounds.of_one);
        let at = self.waiting.iter().position(may)?;
        let (who, mut waiting) = self.waiting.remove(at)?;
        let next = waiting.pop_front()?;
        if !waiting.is_empty() {
            self.waiting.push_back((Arc::clone(&who), waiting));
        }
        self.running += 1;
        *self.running_of.entry(Arc::clone(&who)).or_default() += 1;
        Some((who, next))
    }

    fn leave(&mut self, who: &str) {
        self.running -= 1;
        if let Some(own) = self.running_of.get_mut(who) {
            *own -= 1;
            if *own == 0 {
                self.running_of.remove(who);
            }
        }
    }
}

fn weight_of(waiting: &VecDeque<Waiting>) -> usize {
    waiting.iter().map(|waiting| waiting.weight).sum()
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.turns.take() {
            turns.lock().leave(&self.whose);
            turns.give();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, future::BoxFuture};

    use super::*;

    const OF_ONE: usize = 2;
    const BOUNDS: TurnBounds = TurnBounds {
        at_once: 4,
        of_one: OF_ONE,
        waiting_of_one: 128,
        waiting: 512,
        patience: Duration::from_secs(20),
    };

    type Future<'a> = BoxFuture<'a, Result<Turn, Busy>>;

    fn wait<'a>(turns: &'a Arc<Turns>, whose: &'a Arc<str>) -> Future<'a> {
        turns.take(whose, 1).boxed()
    }

    /// The turn, if it has come.
    fn come(waiting: &mut Future<'_>) -> Option<Turn> {
        waiting.as_mut().now_or_never().map(Result::unwrap)
    }

    #[tokio::test]
    async fn nobody_waits_for_all_of_another() {
        let turns = Turns::new(BOUNDS);
        let [many, few, late] = ["many", "few", "late"].map(Arc::<str>::from);
        let mut of_many: Vec<_> = (0..40).map(|_| wait(&turns, &many)).collect();
        let mut running: Vec<Turn> = of_many.iter_mut().filter_map(come).collect();
        assert_eq!(running.len(), OF_ONE);
        // Another's turn comes at once, and a third one's with the next that ends.
        let mut of_few: Vec<_> = (0..3).map(|_| wait(&turns, &few)).collect();
        let of_few: Vec<Turn> = of_few.iter_mut().filter_map(come).collect();
        assert_eq!(of_few.len(), OF_ONE);
        let mut third = wait(&turns, &late);
        assert!(come(&mut third).is_none());
        running.pop();
        let _next: Option<Turn> = of_many.iter_mut().skip(OF_ONE).find_map(come);
        running.clear();
        let third = come(&mut third);
        assert!(third.is_some());
        drop((third, of_few, of_many));
    }

    #[tokio::test]
    async fn there_is_an_end_to_waiting() {
        let turns = Turns::new(BOUNDS);
        let whose: Vec<Arc<str>> = (0..10).map(|who| format!("{who}").into()).collect();
        let mut waiting = Vec::new();
        for who in &whose {
            for _ in 0..BOUNDS.waiting_of_one + OF_ONE {
                let mut one = wait(&turns, who);
                if let Some(turn) = one.as_mut().now_or_never() {
                    waiting.push((one, Some(turn)));
                } else {
                    waiting.push((one, None));
                }
            }
        }
        let refused = waiting.iter().filter(|(_, turn)| matches!(turn, Some(Err(Busy))));
        assert_eq!(refused.count(), waiting.len() - BOUNDS.waiting - BOUNDS.at_once);
        let mut one_more = wait(&turns, &whose[0]);
        assert!(matches!(one_more.as_mut().now_or_never(), Some(Err(Busy))));
        // Those who give up make room.
        drop(waiting);
        assert!(
            wait(&turns, &whose[0])
                .now_or_never()
                .is_some_and(|turn| turn.is_ok())
        );
        let state = turns.lock();
        assert_eq!((state.running, state.running_of.len()), (0, 0));
    }

    #[tokio::test]
    async fn what_waits_is_bounded_by_its_weight() {
        let turns = Turns::new(BOUNDS);
        let [long, short, other] = ["long", "short", "other"].map(Arc::<str>::from);
        let mut of_long = [wait(&turns, &long), wait(&turns, &long)];
        let mut of_short = [wait(&turns, &short), wait(&turns, &short)];
        let running: Vec<_> = of_long.iter_mut().chain(&mut of_short).filter_map(come).collect();
        assert_eq!(running.len(), BOUNDS.at_once);
        let take = |who, weight| {
            let mut waiting = Box::pin(turns.take(who, weight));
            let now = waiting.as_mut().now_or_never();
            now.is_none().then_some(waiting)
        };
        let first = take(&long, 100);
        assert!(first.is_some() && take(&long, 29).is_none());
        let second = take(&long, 28);
        assert!(second.is_some() && take(&long, 1).is_none());
        // Others have their own.
        let third = take(&other, 128);
        assert!(third.is_some() && take(&short, 129).is_none());
        drop(first);
        assert!(take(&long, 100).is_some());
    }
}
