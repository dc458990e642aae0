//! A fence keeps an old cluster from taking writes while another takes its place: reversibly, or by shutting it down.
//!
//! Invariants: what was set before is written down before anything is set, so that undoing is exact; replicas are fenced before
//! primaries, so that one promoted meanwhile is fenced too; what can't be reached is named, never passed over; running twice changes
//! nothing the second time.

mod log;
mod node;
mod old;

use futures::StreamExt;
use serde::Serialize;
use slotkeep_format::FenceRecord;
use slotkeep_format::fence::FENCE_VERSION;
use slotkeep_model::{NodeAddr, NodeId, Role, SlotSet};

pub use log::{LogReach, ShardLog, await_log};
pub use node::Writes;
pub use old::{OldCluster, OldNodes};

use crate::backup::new_backup_id;
use crate::discover::{Discovery, discover};
use crate::{Context, Result};
use node::{Asked, NEVER};

/// How many nodes are talked to at a time.
const NODES_IN_FLIGHT: usize = 64;

/// A node of the cluster that is to be fenced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its address.
    pub addr: NodeAddr,
    /// Its id; a standalone server has none.
    pub id: Option<NodeId>,
    /// The slots it serves.
    pub slots: SlotSet,
}

/// What a node is like, or what was done with it.
#[derive(Clone, Debug, Serialize)]
pub struct NodeState {
    /// Its address.
    #[serde(serialize_with = "as_text")]
    pub addr: NodeAddr,
    /// `primary` or `replica`; absent if it can't be asked.
    pub role: Option<&'static str>,
    /// The slots it serves.
    #[serde(serialize_with = "as_text")]
    pub slots: SlotSet,
    /// Whether it may take writes.
    pub writes: Writes,
    /// Whether this run changed that, or with a plan: would.
    pub changed: bool,
    /// Why it can't be asked or refused, or what else is to be known.
    pub remark: Option<String>,
}

fn as_text<T: std::fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Look only.
    Status,
    /// Refuse writes.
    Fence {
        /// Whether a restart of a node keeps the fence (`CONFIG REWRITE`).
        persist: bool,
    },
    /// Put back what was set before.
    Undo,
    /// Refuse writes, then shut down.
    ShutDown,
}

/// What is to be done with every node, and what was set before.
pub struct Plan {
    action: Action,
    members: Vec<(Member, Result<Asked>)>,
    /// The record that stood before, if any.
    before: Option<FenceRecord>,
}

/// What it came to.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// What was asked for.
    pub action: Action,
    /// Every node, in the order of the cluster's slots, then those that serve none.
    pub nodes: Vec<NodeState>,
    /// Whether nothing was done because only the plan was asked for.
    pub dry_run: bool,
    /// How far the log in the repository is, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<LogReach>,
}

impl Outcome {
    /// Nodes on which writes could land, now or later.
    pub fn open(&self) -> impl Iterator<Item = &NodeState> {
        self.nodes.iter().filter(|node| node.writes.are_possible())
    }
}

/// The nodes behind an address: those of every shard, those without slots, and those that a record knows of.
pub async fn members(
    context: &Context,
    seeds: &[NodeAddr],
    before: Option<&FenceRecord>,
) -> Result<Vec<Member>> {
    let found = match discover(context, seeds).await {
        Ok(discovery) => of_discovery(context, &discovery),
        // Nobody answers: what is known from before is all there is.
        Err(error) => match before {
            Some(record) if !record.nodes.is_empty() => Vec::new(),
            _ => return Err(error),
        },
    };
    let mut members = found;
    for known in before.iter().flat_map(|record| &record.nodes) {
        let is_known = members
            .iter()
            .any(|member| member.addr == known.addr || (member.id.is_some() && member.id == known.id));
        if !is_known {
            let slots = SlotSet::default();
            members.push(Member { addr: known.addr.clone(), id: known.id.clone(), slots });
        }
    }
    Ok(members)
}

fn of_discovery(context: &Context, discovery: &Discovery) -> Vec<Member> {
    let shards = discovery.topology().shards.iter();
    let mut members: Vec<Member> = shards
        .flat_map(|shard| {
            shard.nodes().map(|node| Member {
                addr: node.addr.clone(),
                id: node.id.clone(),
                slots: if node.role == Role::Primary { shard.slots.clone() } else { SlotSet::default() },
            })
        })
        .collect();
    if let Some(view) = discovery.view() {
        let without = view.primaries_without_slots.iter().chain(&view.unattached_replicas);
        for id in without {
            if let Some(row) = view.rows.iter().find(|row| row.id == *id) {
                let addr = row.addr(&discovery.answered, context.connector.is_tls());
                members.push(Member { addr, id: Some(id.clone()), slots: SlotSet::default() });
            }
        }
    }
    members
}

impl Plan {
    /// Asks every node what it has set. Nothing is changed.
    pub async fn make(
        context: &Context,
        action: Action,
        members: Vec<Member>,
        before: Option<FenceRecord>,
    ) -> Result<Self> {
        let asked = futures::stream::iter(members).map(async |member| {
            let asked = Asked::ask(context, &member).await;
            (member, asked)
        });
        let asked = async { Ok(asked.buffered(NODES_IN_FLIGHT).collect().await) };
        Ok(Self { action, members: context.unless_stopped(asked).await?, before })
    }

    /// What has to be written down before [`Plan::run`], if anything is to be changed.
    pub fn record(&self, context: &Context) -> Result<Option<FenceRecord>> {
        let persist = match self.action {
            Action::Fence { persist } => persist,
            Action::ShutDown => false,
            Action::Status | Action::Undo => return Ok(None),
        };
        let mut nodes = self.before.as_ref().map(|record| record.nodes.clone()).unwrap_or_default();
        let mut open = Vec::new();
        for (member, asked) in &self.members {
            let known = nodes.iter_mut().find(|node| match &member.id {
                Some(id) => node.id.as_ref() == Some(id),
                None => node.addr == member.addr,
            });
            match (asked, known) {
                // What was set before the first fence is what counts.
                (Ok(asked), Some(known)) if asked.to_write == NEVER => known.persisted |= persist,
                (Ok(asked), Some(known)) => {
                    let persisted = known.persisted || persist;
                    *known = asked.record(member, persisted);
                }
                (Ok(asked), None) if asked.to_write == NEVER => {
                    // Fenced by somebody whose record is lost: the servers' defaults are the best guess.
                    let mut record = asked.record(member, persist);
                    "0".clone_into(&mut record.min_replicas_to_write);
                    nodes.push(record);
                }
                (Ok(asked), None) => nodes.push(asked.record(member, persist)),
                (Err(_), _) => open.push(member.addr.to_string()),
            }
        }
        let id = new_backup_id(context)?;
        Ok(Some(FenceRecord { format_version: FENCE_VERSION, id, at: context.clock.now(), nodes, open }))
    }

    /// What would be done.
    pub fn preview(&self) -> Outcome {
        let nodes = self.members.iter().map(|(member, asked)| {
            let mut state = state(member, asked);
            state.changed = asked.is_ok()
                && match self.action {
                    Action::Status => false,
                    Action::Fence { .. } => state.writes != Writes::Fenced,
                    Action::Undo => state.writes == Writes::Fenced,
                    Action::ShutDown => true,
                };
            state
        });
        Outcome { action: self.action, nodes: nodes.collect(), dry_run: true, log: None }
    }

    /// Does it. What [`Plan::record`] gives must have been written down. Gives what is to be written down after undoing as well.
    pub async fn run(self, context: &Context) -> Result<(Outcome, Option<FenceRecord>)> {
        let Self { action, members, before } = self;
        let (mut done, mut left) = (Vec::new(), before.clone());
        // A replica that is promoted while this goes on is fenced already.
        let is_primary =
            |asked: &Result<Asked>| asked.as_ref().is_ok_and(|asked| asked.role == Role::Primary);
        let numbered = members.into_iter().enumerate();
        let (primaries, others): (Vec<_>, Vec<_>) = numbered.partition(|(_, (_, asked))| is_primary(asked));
        for group in [others, primaries] {
            let group = futures::stream::iter(group).map(async |(number, (member, asked))| {
                (number, act(context, action, member, asked, before.as_ref()).await)
            });
            let acted = async { Ok(group.buffer_unordered(NODES_IN_FLIGHT).collect::<Vec<_>>().await) };
            done.extend(context.unless_stopped(acted).await?);
        }
        done.sort_by_key(|(number, _)| *number);
        let nodes: Vec<NodeState> = done
            .into_iter()
            .map(|(_, (member, state))| {
                if let (Action::Undo, Some(record)) = (action, &mut left)
                    && state.writes != Writes::Fenced
                    && state.writes != Writes::Unknown
                {
                    record.nodes.retain(|node| match &member.id {
                        Some(id) => node.id.as_ref() != Some(id),
                        None => node.addr != member.addr,
                    });
                    record.open.clear();
                }
                state
            })
            .collect();
        let left = match (action, left) {
            (Action::Undo, Some(record)) => {
                Some(FenceRecord { id: new_backup_id(context)?, at: context.clock.now(), ..record })
            }
            _ => None,
        };
        Ok((Outcome { action, nodes, dry_run: false, log: None }, left))
    }
}

fn state(member: &Member, asked: &Result<Asked>) -> NodeState {
    let (role, writes, remark) = match asked {
        Ok(asked) => {
            let role = if asked.role == Role::Primary { "primary" } else { "replica" };
            (Some(role), asked.writes(), None)
        }
        Err(error) => (None, Writes::Unknown, Some(error.to_string())),
    };
    let (addr, slots) = (member.addr.clone(), member.slots.clone());
    NodeState { addr, role, slots, writes, changed: false, remark }
}

async fn act(
    context: &Context,
    action: Action,
    member: Member,
    asked: Result<Asked>,
    before: Option<&FenceRecord>,
) -> (Member, NodeState) {
    let mut state = state(&member, &asked);
    let Ok(mut asked) = asked else { return (member, state) };
    let outcome = match action {
        Action::Status => Ok(()),
        Action::Fence { persist } => {
            if !asked.is_fenced() || persist {
                let fenced = asked.fence(context, &member.slots, persist).await;
                state.changed = !matches!(state.writes, Writes::Fenced);
                fenced.map(|()| state.writes = Writes::Fenced)
            } else {
                Ok(())
            }
        }
        Action::Undo => undo(&mut asked, &member, before, &mut state).await,
        Action::ShutDown => {
            let fenced = asked.fence(context, &member.slots, false).await;
            state.changed = true;
            match fenced {
                Ok(()) => {
                    state.writes = Writes::Fenced;
                    let down = asked.shut_down(context, &member).await;
                    down.map(|()| state.writes = Writes::Down)
                }
                Err(error) => Err(error),
            }
        }
    };
    if let Err(error) = outcome {
        let hint = error.advice().map(|hint| format!(" ({hint})")).unwrap_or_default();
        state.remark = Some(format!("{error}{hint}"));
    }
    (member, state)
}

async fn undo(
    asked: &mut Asked,
    member: &Member,
    before: Option<&FenceRecord>,
    state: &mut NodeState,
) -> Result<()> {
    if asked.to_write != NEVER {
        return Ok(());
    }
    let known = before.and_then(|record| record.node(member.id.as_ref(), &member.addr)).cloned();
    if known.is_none() {
        state.remark = Some(
            "nothing says what it had set before: min-replicas-to-write is 0 now, the servers' default"
                .to_owned(),
        );
    }
    let known = known.unwrap_or_else(|| {
        let mut default = asked.record(member, false);
        "0".clone_into(&mut default.min_replicas_to_write);
        default
    });
    asked.lift(&known).await?;
    state.changed = true;
    state.writes = if asked.role == Role::Primary { Writes::Taken } else { Writes::IfPromoted };
    Ok(())
}
