//! Who follows which shard: what each agent works out for itself from what all of them can see.
//!
//! Every agent places every shard that nobody holds with one agent, and moves shards from those that have too many to those that have too
//! few, in its head; then it does its own part. Agents that see the same come to the same, so they seldom want the same shard at once; if
//! they do, the lease decides. What one leaves undone, another does a while later.
//!
//! Invariants: a shard that a living agent holds is never taken; a shard is taken from nobody but given up by its holder; if all agents but one
//! do nothing, that one takes every shard that is free.

use std::collections::BTreeMap;

use slotkeep_format::{LeaseRecord, LeaseTable, Tenure};

use super::lease_name;

/// A shard, as the division sees it. Agents are numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seat {
    /// The line's name, by which agents agree on an order.
    name: String,
    state: SeatState,
    /// The living agents that it is near, in order.
    near: Vec<usize>,
}

/// Who has a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SeatState {
    Held {
        by: usize,
        /// What would be lost if its holder gave it up.
        ties: Ties,
    },
    Free {
        since_ms: u64,
        /// The living agent that had it and did not give it up: it was started again.
        left_by: Option<usize>,
    },
}

/// How much an agent has begun with a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ties {
    /// Nothing.
    None,
    /// It follows a stream, which another can continue.
    Stream,
    /// A base is being taken, which would be in vain.
    Base,
}

/// What one agent is to do: numbers of seats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Division {
    pub(crate) take: Vec<usize>,
    pub(crate) give: Vec<usize>,
}

/// What one agent sees, and is.
pub(crate) struct View<'a> {
    pub(crate) table: &'a LeaseTable,
    pub(crate) me: &'a str,
    /// The lines of this agent, and how much has been begun with them.
    pub(crate) own: &'a [(String, Ties)],
    /// The lines of shards that are near it.
    pub(crate) near: &'a [String],
    /// Whether a presence is of an agent of another cluster, which has no part in this.
    pub(crate) is_strange: &'a dyn Fn(&LeaseRecord) -> bool,
}

impl View<'_> {
    /// What to do about these lines; `first_seen` remembers since when those are known that nobody ever followed.
    pub(crate) fn divide(
        &self,
        names: &[String],
        first_seen: &mut BTreeMap<String, u64>,
        patience_ms: u64,
    ) -> Division {
        let others =
            self.table.agents().filter(|(agent, record)| *agent != self.me && !(self.is_strange)(record));
        let others = others.map(|(agent, record)| (agent, record.note.near.as_slice()));
        let mut agents: Vec<(&str, &[String])> = others.chain([(self.me, self.near)]).collect();
        agents.sort_unstable();
        let number = |agent: &str| agents.iter().position(|(other, _)| *other == agent);
        let me = number(self.me).unwrap_or_default();
        first_seen.retain(|name, _| names.contains(name));
        let seat = |name: &String| {
            let near = agents.iter().enumerate().filter(|(_, (_, near))| near.contains(name));
            let near = near.map(|(agent, _)| agent).collect();
            let own = self.own.iter().find(|(own, _)| own == name);
            let state = match own.map_or_else(|| Err(self.table.tenure(&lease_name(name))), Ok) {
                Ok((_, ties)) => SeatState::Held { by: me, ties: *ties },
                Err(Tenure::Held(record)) => {
                    // A holder whose presence is not seen counts for nobody.
                    let by = record.agent.as_deref().and_then(number).unwrap_or(usize::MAX);
                    SeatState::Held { by, ties: Ties::Stream }
                }
                Err(Tenure::Free { since_ms, left_by }) => {
                    SeatState::Free { since_ms, left_by: left_by.and_then(number) }
                }
                Err(Tenure::New) => {
                    let since_ms = *first_seen.entry(name.clone()).or_insert(self.table.looked_ms());
                    SeatState::Free { since_ms, left_by: None }
                }
            };
            Seat { name: name.clone(), state, near }
        };
        let seats: Vec<Seat> = names.iter().map(seat).collect();
        divide(agents.len(), me, &seats, self.table.looked_ms(), patience_ms)
    }
}

/// What agent `me` of `agents` is to do. A shard that another should take is left for it for `patience_ms`.
fn divide(agents: usize, me: usize, seats: &[Seat], now_ms: u64, patience_ms: u64) -> Division {
    let mut loads = Loads::of(agents, seats);
    let held_by_me = loads.get(me);
    let placed = place(&mut loads, seats);
    let share = seats.len().div_ceil(agents.max(1));
    let mut division = Division::default();
    for (number, target) in placed {
        let Some(SeatState::Free { since_ms, .. }) = seats.get(number).map(|seat| seat.state) else {
            continue;
        };
        let left_ms = now_ms.saturating_sub(since_ms);
        let has_room = held_by_me.saturating_add(division.take.len()) < share;
        let late = left_ms >= patience_ms && has_room || left_ms >= patience_ms.saturating_mul(2);
        if target == me || late {
            division.take.push(number);
        }
    }
    let surplus = surplus(&mut loads, me, share / 8);
    division.give = choose(me, seats, surplus);
    division
}

/// How many shards each agent has.
struct Loads(Vec<usize>);

impl Loads {
    fn of(agents: usize, seats: &[Seat]) -> Self {
        let mut loads = Self(vec![0; agents]);
        for seat in seats {
            if let SeatState::Held { by, .. } = seat.state {
                loads.add(by);
            }
        }
        loads
    }

    fn get(&self, agent: usize) -> usize {
        self.0.get(agent).copied().unwrap_or_default()
    }

    fn add(&mut self, agent: usize) {
        if let Some(load) = self.0.get_mut(agent) {
            *load = load.saturating_add(1);
        }
    }

    fn remove(&mut self, agent: usize) {
        if let Some(load) = self.0.get_mut(agent) {
            *load = load.saturating_sub(1);
        }
    }

    /// Whether one more leaves the loads as even as they can be: else it would be given up again, for ever.
    fn has_room(&self, agent: usize, shards: usize) -> bool {
        let agents = self.0.len().max(1);
        let (each, left_over) = (shards / agents, shards % agents);
        let load = self.get(agent);
        load < each || (load == each && self.0.iter().filter(|load| **load > each).count() < left_over)
    }

    /// The one with the fewest shards; of several the first.
    fn poorest(&self, among: impl Iterator<Item = usize>) -> Option<usize> {
        among.min_by_key(|agent| (self.get(*agent), *agent))
    }

    fn richest(&self) -> Option<usize> {
        (0..self.0.len()).max_by_key(|agent| (self.get(*agent), std::cmp::Reverse(*agent)))
    }
}

/// Places every free shard with an agent: with the one that left it, else with one that it is near and that has room, else with the one
/// that has the fewest.
fn place(loads: &mut Loads, seats: &[Seat]) -> Vec<(usize, usize)> {
    let agents = loads.0.len();
    let share = seats.len().div_ceil(agents.max(1));
    let mut order: Vec<usize> = (0..seats.len()).collect();
    order.sort_by_key(|number| seats.get(*number).map(|seat| &seat.name));
    let mut open: Vec<(usize, &Seat)> = Vec::new();
    let mut placed = Vec::new();
    for (number, seat) in order.into_iter().filter_map(|number| Some((number, seats.get(number)?))) {
        match seat.state {
            SeatState::Held { .. } => {}
            SeatState::Free { left_by: Some(agent), .. } if loads.get(agent) < share => {
                loads.add(agent);
                placed.push((number, agent));
            }
            SeatState::Free { .. } => open.push((number, seat)),
        }
    }
    let (near, far): (Vec<_>, Vec<_>) = open.into_iter().partition(|(_, seat)| !seat.near.is_empty());
    for (number, seat) in near.into_iter().chain(far) {
        let with_room = seat.near.iter().copied().filter(|agent| loads.has_room(*agent, seats.len()));
        let Some(agent) = loads.poorest(with_room).or_else(|| loads.poorest(0..agents)) else { continue };
        loads.add(agent);
        placed.push((number, agent));
    }
    placed
}

/// How many shards an agent has too many. Differences of one are as they must be, and `margin` more are not worth a move.
fn surplus(loads: &mut Loads, me: usize, margin: usize) -> usize {
    let mut mine = 0;
    let mut tolerated = margin.saturating_add(1);
    loop {
        let Some((rich, poor)) = loads.richest().zip(loads.poorest(0..loads.0.len())) else { return mine };
        if loads.get(rich).saturating_sub(loads.get(poor)) <= tolerated {
            return mine;
        }
        // Once it is worth it, all of it is done.
        tolerated = 1;
        loads.remove(rich);
        loads.add(poor);
        if rich == me {
            mine = mine.saturating_add(1);
        }
    }
}

/// Which of its shards an agent gives up: those first with which little has been begun, then those that another is nearer to.
fn choose(me: usize, seats: &[Seat], surplus: usize) -> Vec<usize> {
    let mut mine: Vec<(usize, &Seat, Ties)> = seats
        .iter()
        .enumerate()
        .filter_map(|(number, seat)| match seat.state {
            SeatState::Held { by, ties } if by == me && ties != Ties::Base => Some((number, seat, ties)),
            _ => None,
        })
        .collect();
    mine.sort_by_key(|(_, seat, ties)| {
        let near_me = seat.near.contains(&me);
        let near_another = seat.near.iter().any(|agent| *agent != me);
        (*ties, near_me, !near_another, std::cmp::Reverse(seat.name.clone()))
    });
    mine.into_iter().take(surplus).map(|(number, _, _)| number).collect()
}

#[cfg(test)]
#[path = "division_tests.rs"]
mod tests;
