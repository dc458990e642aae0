//! The target as it is known at the moment: which node serves which slot, and whether what was written there can have got lost.
//!
//! Invariants: `owner` has an entry for every slot, an index into `nodes`; in a target that serves a part of the slots, those that nobody
//! serves lead to the first node, which refuses them. A slot is *suspect* when the server that serves it may lack
//! keys that were acknowledged: a replica took over from its primary, for replication is asynchronous, or the process is
//! another one than before, which loaded what its disk held. A slot that migrated is not suspect: its keys moved with it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slotkeep_model::{NodeAddr, NodeId, ServerVersion, Slot, SlotSet, Topology};
use slotkeep_wire::resp::Command;

use super::options::Coverage;
use crate::discover::{discover, read_info, version_of};
use crate::net::{Connection, LinkError, LinkProblem};
use crate::{Context, Error, ErrorKind, Result};

/// One primary of the target.
#[derive(Clone, Debug)]
pub(super) struct TargetNode {
    pub(super) addr: NodeAddr,
    pub(super) id: Option<NodeId>,
    pub(super) slots: SlotSet,
    /// What it runs.
    pub(super) server: ServerVersion,
    /// How far its clock is ahead of ours, in ms.
    pub(super) clock_ahead_ms: i64,
    /// The id of its process: another one after each start.
    pub(super) run_id: String,
}

/// Which node serves which slot.
#[derive(Clone, Debug)]
pub(super) struct SlotMap {
    pub(super) nodes: Vec<TargetNode>,
    owner: Vec<usize>,
    pub(super) cluster_mode: bool,
}

impl SlotMap {
    /// The index in `nodes` of the node that serves the slot.
    pub(super) fn index(&self, slot: Slot) -> usize {
        self.owner.get(slot.index()).copied().unwrap_or(0)
    }

    /// The node that serves the slot.
    pub(super) fn owner(&self, slot: Slot) -> Option<&TargetNode> {
        self.nodes.get(self.index(slot))
    }

    fn new(nodes: Vec<TargetNode>, cluster_mode: bool) -> Self {
        let mut owner = vec![0; usize::from(Slot::COUNT)];
        for (index, node) in nodes.iter().enumerate() {
            for slot in node.slots.iter() {
                if let Some(place) = owner.get_mut(slot.index()) {
                    *place = index;
                }
            }
        }
        Self { nodes, owner, cluster_mode }
    }
}

struct State {
    map: Arc<SlotMap>,
    /// Every node heard of, for looking again.
    seeds: Vec<NodeAddr>,
    /// The replicas of each primary, as last seen.
    replicas: BTreeMap<NodeId, Vec<NodeId>>,
    suspect: Vec<Slot>,
    /// Slots that are being gone through once more.
    repairing: SlotSet,
}

/// The target as it is known at the moment.
pub(super) struct Target {
    state: Mutex<State>,
    looking: tokio::sync::Mutex<()>,
    /// How many of the slots it must serve.
    coverage: Coverage,
}

impl Target {
    /// Looks at the target for the first time.
    pub(super) async fn open(context: &Context, topology: &Topology, coverage: Coverage) -> Result<Self> {
        let mut nodes = Vec::new();
        for shard in &topology.shards {
            let known = (shard.primary.addr.clone(), shard.primary.id.clone(), shard.slots.clone());
            nodes.push(look_at(context, known).await?);
        }
        if nodes.is_empty() {
            return Err(Error::new(ErrorKind::NotACluster, "no node of the target serves a slot"));
        }
        let map = Arc::new(SlotMap::new(nodes, topology.cluster_mode));
        let state = State {
            map,
            seeds: seeds(topology),
            replicas: replicas(topology),
            suspect: Vec::new(),
            repairing: SlotSet::default(),
        };
        Ok(Self { state: Mutex::new(state), looking: tokio::sync::Mutex::new(()), coverage })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who serves what.
    pub(super) fn map(&self) -> Arc<SlotMap> {
        Arc::clone(&self.state().map)
    }

    /// Marks slots as suspect.
    pub(super) fn suspect(&self, slots: &SlotSet) {
        self.state().suspect.extend(slots.iter());
    }

    /// The suspect slots, and those that are being gone through once more.
    pub(super) fn suspects(&self) -> SlotSet {
        let state = self.state();
        state.suspect.iter().copied().chain(state.repairing.iter()).collect()
    }

    /// The slots to go through once more. What becomes suspect from now on counts for the next time.
    pub(super) fn begin_repair(&self) -> SlotSet {
        let mut state = self.state();
        state.repairing = std::mem::take(&mut state.suspect).into_iter().collect();
        state.repairing.clone()
    }

    /// Notes that those slots have been gone through.
    pub(super) fn end_repair(&self) {
        self.state().repairing = SlotSet::default();
    }

    /// Looks again at who serves what, asking `avoid` last. Marks slots as suspect whose server may have lost keys.
    pub(super) async fn look_again(&self, context: &Context, avoid: Option<&NodeAddr>) -> Result<()> {
        let _one_at_a_time = self.looking.lock().await;
        let (old, mut seeds_now) = {
            let state = self.state();
            (Arc::clone(&state.map), state.seeds.clone())
        };
        seeds_now.sort_by_key(|seed| Some(seed) == avoid);
        let discovery = discover(context, &seeds_now).await?;
        let topology = discovery.topology();
        let mut nodes = Vec::new();
        for shard in &topology.shards {
            let known = (shard.primary.addr.clone(), shard.primary.id.clone(), shard.slots.clone());
            nodes.push(look_at(context, known).await?);
        }
        if self.coverage == Coverage::Whole && topology.covered().len() != usize::from(Slot::COUNT) {
            return Err(Error::new(ErrorKind::NotACluster, "the target does not serve every slot"));
        }
        let new = SlotMap::new(nodes, topology.cluster_mode);
        let mut state = self.state();
        let lost = |slot: &Slot| match (old.owner(*slot), new.owner(*slot)) {
            (Some(before), Some(now)) => may_lack_keys(before, now, &old, &state.replicas),
            _ => false,
        };
        let suspect: Vec<Slot> = Slot::all().filter(lost).collect();
        state.suspect.extend(suspect);
        state.replicas.extend(replicas(topology));
        for seed in seeds(topology) {
            if !state.seeds.contains(&seed) {
                state.seeds.push(seed);
            }
        }
        state.map = Arc::new(new);
        Ok(())
    }
}

/// Whether a server may lack keys that the one before it had acknowledged.
fn may_lack_keys(
    before: &TargetNode,
    now: &TargetNode,
    old: &SlotMap,
    replicas: &BTreeMap<NodeId, Vec<NodeId>>,
) -> bool {
    if let Some(same) = old.nodes.iter().find(|node| node.id == now.id && node.addr == now.addr) {
        return same.run_id != now.run_id;
    }
    // A primary that was none before: it took over from the one it followed. Without ids nothing else is possible.
    let followed = before.id.as_ref().and_then(|id| replicas.get(id));
    now.id.as_ref().is_none_or(|id| followed.is_none_or(|followers| followers.contains(id)))
}

fn seeds(topology: &Topology) -> Vec<NodeAddr> {
    topology.shards.iter().flat_map(|shard| shard.nodes().map(|node| node.addr.clone())).collect()
}

fn replicas(topology: &Topology) -> BTreeMap<NodeId, Vec<NodeId>> {
    let of_shard = |shard: &slotkeep_model::Shard| {
        let followers = shard.replicas.iter().filter_map(|replica| replica.id.clone()).collect();
        shard.primary.id.clone().map(|id| (id, followers))
    };
    topology.shards.iter().filter_map(of_shard).collect()
}

async fn look_at(context: &Context, known: (NodeAddr, Option<NodeId>, SlotSet)) -> Result<TargetNode> {
    let (addr, id, slots) = known;
    let mut connection = context.connector.connect(&addr).await?;
    let info = read_info(&mut connection).await?;
    let before = context.clock.now().as_millisecond();
    let clock_ahead_ms = server_time_ms(&mut connection).await?.saturating_sub(before);
    Ok(TargetNode {
        server: version_of(&info, &addr)?,
        run_id: info.get("run_id").unwrap_or_default().to_owned(),
        addr,
        id,
        slots,
        clock_ahead_ms,
    })
}

/// The server's own time, in ms since the epoch.
async fn server_time_ms(connection: &mut Connection) -> Result<i64> {
    let reply = connection.call(&Command::new("TIME")).await?;
    let time = reply.as_array().and_then(|parts| match parts {
        [seconds, micros] => {
            seconds.as_i64()?.checked_mul(1000)?.checked_add(micros.as_i64()?.checked_div(1000)?)
        }
        _ => None,
    });
    let odd = || LinkProblem::Protocol("TIME gives no time".to_owned());
    time.ok_or_else(|| LinkError { node: connection.node().clone(), problem: odd() }.into())
}
