//! What is wrong with each shard, what is to be done about it, and what that costs: data, for people and programs.

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use slotkeep_model::{NodeAddr, NodeId, SlotSet};

use super::archive::Estimate;
use crate::log::point::shards::{Lack, Reach};
use crate::log::tail::Tail;

/// What is to be done with a cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// What it comes to.
    pub verdict: Verdict,
    /// Every node that was found or heard of.
    pub nodes: Vec<NodeRow>,
    /// Addresses at which others answer than the cluster's nodes, and who.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub strangers: Vec<String>,
    /// The shards, in the order of their first slots.
    pub shards: Vec<ShardPlan>,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// How fast a restore is expected to be.
    pub estimate: Estimate,
    /// What is left to a person: decisions, and what is missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<String>,
}

/// What a cluster comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every slot is served, and there is nothing to do.
    Whole,
    /// The steps bring every slot back.
    Recoverable,
    /// The steps don't bring every slot back: some wait for a person.
    NeedsDecision,
}

/// A node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeRow {
    /// Its address.
    #[serde(serialize_with = "as_text")]
    pub addr: NodeAddr,
    /// Its id.
    #[serde(serialize_with = "as_text")]
    pub id: NodeId,
    /// What it runs.
    pub server: Option<String>,
    /// `primary` or `replica`, by its own word; absent if it has none.
    pub role: Option<&'static str>,
    /// The slots that it calls its own.
    #[serde(serialize_with = "as_text")]
    pub slots: SlotSet,
    /// The last byte of the stream that it holds.
    pub offset: Option<u64>,
    /// Why it says nothing, if it doesn't.
    pub silent: Option<String>,
}

/// What is wrong with a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Its primary answers.
    Served,
    /// Its primary answers, and some of the cluster's nodes don't know it.
    NotJoined,
    /// Its primary does not answer, and a replica does.
    PrimaryGone,
    /// None of its nodes answers.
    Lost,
    /// A node's process lives and reads its dataset.
    Starting,
    /// A node does not answer here, and the others reach it.
    OutOfReach,
    /// Two nodes that answer call its slots their own.
    SplitBrain,
    /// The node that answers calls its slots its own, and others know a newer owner, which does not answer.
    Superseded,
}

/// A replica of a shard.
#[derive(Clone, Debug, Serialize)]
pub struct ReplicaRow {
    /// Its address.
    pub addr: String,
    /// Whether it answers.
    pub answers: bool,
    /// The last byte of the stream that it holds.
    pub offset: Option<u64>,
    /// What the repository holds and it lacks; absent if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lacks: Option<Lack>,
    /// Why it can't be promoted, if it can't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unfit: Option<String>,
}

/// One shard.
#[derive(Clone, Debug, Serialize)]
pub struct ShardPlan {
    /// Its slots.
    #[serde(serialize_with = "as_text")]
    pub slots: SlotSet,
    /// What is wrong with it.
    pub condition: Condition,
    /// Its primary, or who was.
    pub primary: Option<String>,
    /// Its replicas.
    pub replicas: Vec<ReplicaRow>,
    /// What the repository holds of it; absent without a repository, or if it holds nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<Reach>,
    /// What is done about it.
    pub remedy: Remedy,
    /// Addresses at which it gets replicas once it has its primary.
    #[serde(serialize_with = "as_texts", skip_serializing_if = "Vec::is_empty")]
    pub new_replicas: Vec<NodeAddr>,
    /// The log behind what its primary has, or the replica that is to be promoted, which can be applied to it (`--apply-tail`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail: Option<Tail>,
    /// What is lost by that; absent if nothing is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
}

/// What is done about a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Remedy {
    /// Nothing: it is served.
    Nothing,
    /// A replica becomes its primary.
    Promote {
        /// The replica.
        #[serde(serialize_with = "as_text")]
        node: NodeId,
        /// Its address.
        addr: String,
        /// In which way.
        how: How,
    },
    /// It is restored from the repository, to new nodes.
    Restore {
        /// Whether its primary is an empty node that runs already, and not one that is started.
        running: bool,
        /// Their addresses, the primary's first.
        #[serde(serialize_with = "as_texts")]
        nodes: Vec<NodeAddr>,
    },
    /// The cluster's nodes are told of its primary.
    Join {
        /// The primary.
        #[serde(serialize_with = "as_text")]
        node: NodeId,
    },
    /// The other claimants are kept from taking writes, as one was chosen.
    Fence {
        /// The one that was chosen.
        #[serde(serialize_with = "as_text")]
        keep: NodeId,
        /// The others.
        #[serde(serialize_with = "as_texts")]
        others: Vec<NodeId>,
    },
    /// Nothing, until what is written here has come about or been given.
    Wait {
        /// What.
        on: String,
    },
}

/// How a replica becomes a primary, the gentlest way first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// `CLUSTER FAILOVER`: with the primary's help; nothing is lost.
    Graceful,
    /// `CLUSTER FAILOVER FORCE`: by the votes of the primaries that live.
    Force,
    /// `CLUSTER FAILOVER TAKEOVER`: without anybody's vote.
    Takeover,
}

impl How {
    /// The command.
    pub const fn command(self) -> &'static str {
        match self {
            Self::Graceful => "CLUSTER FAILOVER",
            Self::Force => "CLUSTER FAILOVER FORCE",
            Self::Takeover => "CLUSTER FAILOVER TAKEOVER",
        }
    }
}

/// What is preferred where a replica lives whose primary does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefer {
    /// The replica: at once, with what it has.
    #[default]
    Replica,
    /// The repository: later, with what that has.
    Archive,
}

/// What is lost.
#[derive(Clone, Debug, Serialize)]
pub struct Loss {
    /// In words.
    pub what: String,
    /// Bytes of the log that the repository holds and the shard will not have; absent if not known.
    pub bytes: Option<u64>,
    /// For how long they were written, or how long before now the shard will end, in ms; absent if not known.
    pub ms: Option<u64>,
    /// The last moment that will be there, where it comes from the repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// One thing to do.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// What is done.
    #[serde(flatten)]
    pub kind: StepKind,
    /// In words.
    pub what: String,
    /// What can go wrong, and what then is the case.
    pub risk: String,
    /// How long it is expected to take, in ms.
    pub expected_ms: u64,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum StepKind {
    /// Makes a replica a primary.
    Promote {
        /// The replica.
        #[serde(serialize_with = "as_text")]
        node: NodeId,
        /// The slots it takes.
        #[serde(serialize_with = "as_text")]
        slots: SlotSet,
        /// In which way.
        how: How,
    },
    /// Keeps nodes from taking writes (`slotkeep fence`).
    Fence {
        /// Those nodes.
        #[serde(serialize_with = "as_texts")]
        nodes: Vec<NodeId>,
    },
    /// Restores shards from the repository and starts their nodes, which nobody knows yet.
    Restore {
        /// The shards' slots, one set each.
        #[serde(serialize_with = "as_texts")]
        shards: Vec<SlotSet>,
    },
    /// Empties nodes that a run left that was broken off, and that the user has named.
    Empty {
        /// Those nodes.
        nodes: Vec<Emptied>,
    },
    /// Restores shards from the repository into empty nodes that run, which nobody knows yet.
    Fill {
        /// The shards' slots, one set each.
        #[serde(serialize_with = "as_texts")]
        shards: Vec<SlotSet>,
    },
    /// Tells the living nodes of the new ones.
    Join,
    /// Gives a shard new replicas.
    Replicas {
        /// Its slots.
        #[serde(serialize_with = "as_text")]
        slots: SlotSet,
        /// Their addresses.
        #[serde(serialize_with = "as_texts")]
        nodes: Vec<NodeAddr>,
    },
    /// Restores the whole cluster and starts it.
    RestoreAll,
    /// Puts slots that were on their way between a living shard and a lost one on their way again.
    Moves {
        /// Those slots.
        #[serde(serialize_with = "as_text")]
        slots: SlotSet,
        /// Of those, the ones that were leaving the lost shard.
        #[serde(serialize_with = "as_text")]
        leaving: SlotSet,
    },
    /// Makes an old node that came back without slots a replica of the shard that it was of.
    Attach {
        /// The node.
        #[serde(serialize_with = "as_text")]
        node: NodeId,
        /// The shard's primary.
        #[serde(serialize_with = "as_text")]
        primary: NodeId,
    },
    /// Makes the living nodes forget nodes that do not answer and hold nothing.
    Forget {
        /// Those nodes.
        #[serde(serialize_with = "as_texts")]
        nodes: Vec<NodeId>,
    },
    /// Waits until all nodes agree.
    Settle,
    /// Applies what the repository holds, and a replica did not when it was promoted.
    ApplyTail {
        /// The primary.
        #[serde(serialize_with = "as_text")]
        node: NodeId,
        /// Its slots.
        #[serde(serialize_with = "as_text")]
        slots: SlotSet,
    },
}

/// A node that is to be emptied, as it was when that was planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Emptied {
    /// Its address.
    #[serde(serialize_with = "as_text")]
    pub addr: NodeAddr,
    /// Its id, which it changes by that.
    #[serde(serialize_with = "as_text")]
    pub id: NodeId,
    /// The slots that it calls its own.
    #[serde(serialize_with = "as_text")]
    pub slots: SlotSet,
    /// How many keys it holds.
    pub keys: u64,
}

impl ShardPlan {
    /// Whether it is served, and nothing is to be done.
    pub fn is_well(&self) -> bool {
        self.remedy == Remedy::Nothing
    }
}

pub(super) fn as_text<T: std::fmt::Display, S: Serializer>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn as_texts<T: std::fmt::Display, S: Serializer>(values: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(ToString::to_string))
}
