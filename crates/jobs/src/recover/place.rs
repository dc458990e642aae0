//! Which address becomes which new node. Pure.
//!
//! Lost shards get their primaries first, then as many replicas as addresses are left; what is left then goes to shards that have lost replicas.

use std::collections::BTreeSet;

use slotkeep_format::ShardState;
use slotkeep_model::{NodeAddr, NodeId, Role, SlotSet};

use super::archive::Held;
use super::facts::{EmptyNode, SpareState, Survey};
use super::judge::Wishes;
use super::moves::with_lost;
use super::plan::{Condition, Remedy, ShardPlan};
use crate::log::point::shards::recorded_shard;
use crate::restore::files::assign_nodes;

/// Where new nodes can be.
struct Spares<'a> {
    survey: &'a Survey,
    /// Where servers can be started.
    free: Vec<&'a NodeAddr>,
    /// Where empty ones run.
    empty: Vec<(&'a NodeAddr, &'a EmptyNode)>,
}

/// Gives shards that are to be restored their nodes. What is said of addresses that can't be used goes to `open`.
pub(super) fn place(
    (survey, held, wishes): (&Survey, &Held, &Wishes),
    shards: &mut [ShardPlan],
    open: &mut Vec<String>,
) {
    let restored = |shard: &ShardPlan| matches!(shard.remedy, Remedy::Restore { .. });
    let lost: Vec<usize> =
        shards.iter().enumerate().filter(|(_, shard)| restored(shard)).map(|(number, _)| number).collect();
    if lost.is_empty() {
        return;
    }
    let mut spares = Spares::new(survey, wishes);
    let moving: BTreeSet<usize> = lost
        .iter()
        .copied()
        .filter(|number| shards.get(*number).is_some_and(|shard| is_moving(survey, shard)))
        .collect();
    spares.empty.retain(|(addr, node)| {
        let unfit = lost.iter().filter_map(|number| shards.get(*number)).find_map(|shard| unfit(node, shard));
        if let Some(why) = &unfit {
            open.push(format!("{addr} can't be used for a new node: {why}"));
        }
        unfit.is_none()
    });
    if !moving.is_empty() && !spares.empty.is_empty() {
        let addrs: Vec<String> = spares.empty.drain(..).map(|(addr, _)| addr.to_string()).collect();
        open.push(format!(
            "{} can't be used for new nodes: slots were on their way from or to a lost shard, which only nodes that are started here can be told \
             beforehand: give --to-dir, and --spare with free addresses of this machine",
            addrs.join(", ")
        ));
    }
    if survey.words().next().is_none() {
        spares.keep_one_kind(lost.len());
    }
    let wanted: Vec<usize> = lost
        .iter()
        .map(|number| {
            let state = shards
                .get(*number)
                .and_then(|shard| held.of(&shard.slots))
                .and_then(|(_, state, _)| state.as_ref());
            state.map_or(0, |state: &ShardState| state.replicas.len())
        })
        .collect();
    let usable = spares.in_order();
    let replicas = share(usable.len().saturating_sub(lost.len()), &wanted);
    let used: usize = lost.len() + replicas.iter().sum::<usize>();
    let placed = usable.get(..used).and_then(|some| assign_nodes(some, &replicas));
    let Some(placed) = placed else {
        let most: usize = lost.len() + wanted.iter().sum::<usize>();
        let on = format!(
            "to be restored from the repository, it needs nodes: give --to-dir DIR and --spare with {} free addresses of this machine ({most} with \
             replicas), or --spare with the addresses of as many empty nodes that run in cluster mode, on any machine",
            lost.len()
        );
        for shard in shards.iter_mut().filter(|shard| restored(shard)) {
            shard.remedy = Remedy::Wait { on: on.clone() };
        }
        return;
    };
    for (number, addrs) in lost.iter().zip(placed) {
        if let Some(shard) = shards.get_mut(*number) {
            spares.settle(shard, addrs);
        }
    }
}

/// Gives addresses that are left to shards that have a primary, or get one back, and have lost replicas: as many as the shard with the most
/// replicas has, and no more than it had. `attached` are old nodes that come back, with the primaries that they follow.
pub(super) fn replace_replicas(
    (survey, wishes): (&Survey, &Wishes),
    shards: &mut [ShardPlan],
    attached: &[(NodeId, NodeId)],
) {
    let used: BTreeSet<NodeAddr> = shards
        .iter()
        .flat_map(|shard| {
            let nodes = match &shard.remedy {
                Remedy::Restore { nodes, .. } => nodes.clone(),
                _ => vec![],
            };
            nodes.into_iter().chain(shard.new_replicas.clone())
        })
        .collect();
    let spares = Spares::new(survey, wishes);
    let living: Vec<usize> = shards.iter().map(|shard| living(survey, shard, attached)).collect();
    let most = living.iter().copied().max().unwrap_or(0).max(1);
    let mut missing: Vec<usize> = shards
        .iter()
        .zip(&living)
        .map(|(shard, living)| known(survey, shard).min(most).saturating_sub(*living))
        .collect();
    for addr in spares.for_replicas().into_iter().filter(|addr| !used.contains(addr)) {
        let apart = |shard: &ShardPlan| {
            let host = shard.primary.as_ref().and_then(|primary| primary.parse::<NodeAddr>().ok());
            host.is_none_or(|primary| primary.host() != addr.host())
        };
        let fits = |shard: &ShardPlan| match spares.server_of(addr) {
            Some(server) => {
                let primary = survey.words().find(|(_, word)| word.own_slots() == shard.slots);
                primary.is_none_or(|(_, word)| server.loads(word.server.newest_rdb()))
            }
            // One that is started has its settings from the repository.
            None => recorded_shard(&survey.recorded.shards, &shard.slots).is_some(),
        };
        let wanting = shards
            .iter()
            .enumerate()
            .zip(&missing)
            .filter(|((_, shard), missing)| **missing > 0 && fits(shard))
            .max_by_key(|((number, shard), missing)| (apart(shard), **missing, std::cmp::Reverse(*number)));
        let Some(number) = wanting.map(|((number, _), _)| number) else { continue };
        if let (Some(shard), Some(missing)) = (shards.get_mut(number), missing.get_mut(number)) {
            shard.new_replicas.push(addr.clone());
            *missing = missing.saturating_sub(1);
        }
    }
}

/// How many replicas a shard has once the plan is done.
fn living(survey: &Survey, shard: &ShardPlan, attached: &[(NodeId, NodeId)]) -> usize {
    let answering = shard.replicas.iter().filter(|replica| replica.answers).count();
    let back = attached.iter().filter(|(_, primary)| shard.primary == Some(survey.name(primary))).count();
    match &shard.remedy {
        Remedy::Restore { nodes, .. } => {
            nodes.len().saturating_sub(1).saturating_add(shard.new_replicas.len())
        }
        Remedy::Promote { how, .. } if *how != super::plan::How::Graceful => answering.saturating_sub(1),
        _ => answering.saturating_add(back),
    }
}

/// How many replicas it had as far as is known, if it is one to be given some.
fn known(survey: &Survey, shard: &ShardPlan) -> usize {
    let is_kept = match &shard.remedy {
        Remedy::Nothing => shard.condition == Condition::Served,
        Remedy::Promote { .. } => true,
        _ => false,
    };
    if !is_kept {
        return 0;
    }
    let recorded = recorded_shard(&survey.recorded.shards, &shard.slots);
    shard.replicas.len().max(recorded.map_or(0, |state| state.replicas.len()))
}

/// Why an empty node can't take a shard.
fn unfit(node: &EmptyNode, shard: &ShardPlan) -> Option<String> {
    let reach = shard.archive.as_ref()?;
    if !node.server.loads(reach.rdb_version) {
        return Some(format!(
            "it runs {}, which does not load the base of slots {}, whose format is {}",
            node.server, shard.slots, reach.rdb_version
        ));
    }
    let free = node.free_bytes.filter(|free| *free < reach.rdb_bytes)?;
    Some(format!(
        "it may take {free} bytes up to its maxmemory, and the base of slots {} has {}: raise maxmemory there",
        shard.slots, reach.rdb_bytes
    ))
}

/// Whether slots were on their way from or to a shard.
fn is_moving(survey: &Survey, shard: &ShardPlan) -> bool {
    !with_lost(survey, std::slice::from_ref(shard)).is_empty()
}

impl<'a> Spares<'a> {
    fn new(survey: &'a Survey, wishes: &Wishes) -> Self {
        let (mut free, mut empty) = (Vec::new(), Vec::new());
        for (addr, state) in &survey.spares {
            match state {
                SpareState::Free if wishes.folder && !wishes.tls => free.push(addr),
                SpareState::Empty(node) => empty.push((addr, node)),
                _ => {}
            }
        }
        Self { survey, free, empty }
    }

    /// Those that can be used, as the user gave them.
    fn in_order(&self) -> Vec<NodeAddr> {
        let usable = |addr: &&NodeAddr| self.free.contains(addr) || self.runs(addr);
        self.survey.spares.iter().map(|(addr, _)| addr).filter(usable).cloned().collect()
    }

    fn runs(&self, addr: &NodeAddr) -> bool {
        self.empty.iter().any(|(empty, _)| *empty == addr)
    }

    /// A cluster that is made anew is started whole, or made of nodes that run.
    fn keep_one_kind(&mut self, primaries: usize) {
        if self.free.len() >= primaries {
            self.empty.clear();
        } else if self.empty.len() >= primaries {
            self.free.clear();
        }
    }

    /// A shard's addresses, its primary's first. Replicas that are started together with their primary belong to its restore.
    fn settle(&self, shard: &mut ShardPlan, addrs: Vec<NodeAddr>) {
        let mut addrs = addrs.into_iter();
        let Some(primary) = addrs.next() else { return };
        let running = self.runs(&primary);
        let (together, later): (Vec<NodeAddr>, Vec<NodeAddr>) =
            addrs.partition(|addr| !running && !self.runs(addr));
        shard.remedy = Remedy::Restore { running, nodes: std::iter::once(primary).chain(together).collect() };
        shard.new_replicas = later;
    }

    /// Addresses for replicas of shards that live: also nodes that the cluster's have been told of, and that were given nothing to do.
    fn for_replicas(&self) -> Vec<&'a NodeAddr> {
        let idle = |id: &NodeId| {
            self.survey.word(id).is_some_and(|word| {
                word.role == Role::Primary && word.keys == 0 && word.own_slots() == SlotSet::default()
            }) && !self.survey.recorded.nodes.contains_key(id)
        };
        let usable = |(addr, state): &(NodeAddr, SpareState)| match state {
            SpareState::Member(id) => idle(id),
            _ => self.free.contains(&addr) || self.runs(addr),
        };
        self.survey.spares.iter().filter(|spare| usable(spare)).map(|(addr, _)| addr).collect()
    }

    fn server_of(&self, addr: &NodeAddr) -> Option<slotkeep_model::ServerVersion> {
        let state = self.survey.spares.iter().find(|(known, _)| known == addr).map(|(_, state)| state)?;
        match state {
            SpareState::Empty(node) => Some(node.server),
            SpareState::Member(id) => self.survey.word(id).map(|word| word.server),
            _ => None,
        }
    }
}

/// How many of so many nodes each shard gets, none more than it wants: in turns.
fn share(mut nodes: usize, wanted: &[usize]) -> Vec<usize> {
    let mut given = vec![0; wanted.len()];
    loop {
        let before = nodes;
        for (given, wanted) in given.iter_mut().zip(wanted) {
            if *given < *wanted && nodes > 0 {
                *given += 1;
                nodes -= 1;
            }
        }
        if nodes == 0 || nodes == before {
            return given;
        }
    }
}
