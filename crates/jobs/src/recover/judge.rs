//! From what was found to what is to be done. Pure.

use jiff::Timestamp;
use slotkeep_model::{NodeAddr, NodeId, Product, Role, SlotSet};

use super::archive::Held;
use super::claims::{Holding, holdings, replicas_of};
use super::facts::{Answer, SpareState, Survey, Word};
use super::left::{emptied, settled};
use super::losses::{loss_of_promotion, loss_of_restore};
use super::place::{place, replace_replicas};
use super::plan::{Condition, How, Loss, NodeRow, Plan, Prefer, Remedy, ReplicaRow, ShardPlan, Verdict};
use super::steps::{steps, tails};
use crate::log::point::shards::{Reach, recorded_shard};
use crate::log::tail::Tail;

/// What the user wants.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// What is preferred where a replica lives whose primary does not.
    pub prefer: Prefer,
    /// Nodes that are to be the primaries of their shards.
    pub choose: Vec<NodeAddr>,
    /// The moment to which shards are restored; the last one that each one's log leads to, if not given.
    pub at: Option<Timestamp>,
    /// Whether nodes that do not answer and hold nothing are to be forgotten.
    pub forget: bool,
    /// Whether what the repository holds and a replica lacks is applied to it once it is the primary.
    pub apply_tail: ApplyTail,
    /// Nodes that may be emptied if a run left them so that was broken off.
    pub refill: Vec<NodeAddr>,
    /// Whether there is a folder for new nodes.
    pub folder: bool,
    /// Whether the cluster speaks TLS, and servers that are started can't for want of certificates.
    pub tls: bool,
}

/// When the log is applied that a replica lacked when it became the primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ApplyTail {
    /// Never.
    #[default]
    No,
    /// If the primary has taken no writes since.
    Untouched,
    /// Also over what it has taken since.
    Anyway,
}

/// Judges what was found.
pub fn judge(survey: &Survey, held: &Held, wishes: &Wishes) -> Plan {
    let holdings = holdings(survey);
    let judge = Judge { survey, held, wishes };
    let restored: Vec<&SlotSet> =
        holdings.iter().filter(|holding| judge.is_restored(holding)).map(|holding| &holding.slots).collect();
    let found = survey;
    let survey = &settled(found, &restored, wishes);
    let judge = Judge { survey, held, wishes };
    let mut shards: Vec<ShardPlan> = Vec::new();
    // Votes: a promotion counts for those that come after it.
    let mut living = holdings.iter().filter(|holding| judge.condition(holding) == Condition::Served).count();
    for holding in &holdings {
        let shard = judge.shard(holding, living.saturating_mul(2) > holdings.len());
        living += usize::from(matches!(&shard.remedy, Remedy::Promote { how, .. } if *how != How::Graceful));
        shards.push(shard);
    }
    let mut unusable = Vec::new();
    place((survey, held, wishes), &mut shards, &mut unusable);
    let returned = judge.returned(&shards);
    replace_replicas((survey, wishes), &mut shards, &returned);
    let mut open: Vec<String> = shards
        .iter()
        .filter_map(|shard| match &shard.remedy {
            Remedy::Wait { on } => Some(format!("slots {}: {on}", shard.slots)),
            Remedy::Fence { keep, .. } => Some(format!(
                "slots {}: the fenced node becomes a replica of {} when they hear each other: see to that, then lift its fence (`slotkeep fence --undo`)",
                shard.slots,
                survey.name(keep)
            )),
            _ => None,
        })
        .collect();
    open.extend(unusable);
    for (addr, state) in &survey.spares {
        match state {
            SpareState::Taken(why) => open.push(format!("{addr} can't be used for a new node: {why}")),
            SpareState::Free if wishes.tls => open.push(format!(
                "{addr} can't be used for a new node: no server answers there, and one that is started needs certificates, as the cluster speaks TLS: give \
                 --spare-tls-cert, --spare-tls-key and --spare-tls-ca"
            )),
            SpareState::Free if !wishes.folder => open.push(format!(
                "{addr} can't be used for a new node: no server answers there, and to start one a folder is needed: give --to-dir DIR"
            )),
            _ => {}
        }
    }
    for chosen in judge.unknown_choices() {
        open.push(format!("--choose {chosen}: no node answers there that could be the primary of a shard"));
    }
    let forget = if wishes.forget { judge.forgotten(&shards) } else { vec![] };
    let mut steps = steps(survey, held, &shards, &returned, forget, emptied(found, &shards));
    if wishes.apply_tail != ApplyTail::No {
        open.extend(judge.refused_tails(&shards));
        steps.extend(tails(survey, &shards));
    }
    let waiting = shards.iter().any(|shard| matches!(shard.remedy, Remedy::Wait { .. }));
    let verdict = match (waiting || !open.is_empty(), steps.is_empty()) {
        (true, _) => Verdict::NeedsDecision,
        (false, true) => Verdict::Whole,
        (false, false) => Verdict::Recoverable,
    };
    let strangers = survey.strangers.iter().map(|(addr, who)| format!("{addr}: {who}")).collect();
    Plan { verdict, nodes: node_rows(survey), strangers, shards, steps, estimate: held.estimate, open }
}

struct Judge<'a> {
    survey: &'a Survey,
    held: &'a Held,
    wishes: &'a Wishes,
}

impl Judge<'_> {
    fn condition(&self, holding: &Holding) -> Condition {
        match (holding.claimants.as_slice(), &holding.silent) {
            ([_], None) if self.is_unknown_to_some(holding) => Condition::NotJoined,
            ([_], None) => Condition::Served,
            ([_], Some(_)) => Condition::Superseded,
            ([], silent) => {
                let nodes: Vec<NodeId> =
                    silent.iter().flat_map(|id| replicas_of(self.survey, id)).chain(silent.clone()).collect();
                let reached = |id: &NodeId| self.survey.is_reached_by_others(id);
                if nodes.iter().any(|id| self.survey.is_busy(id)) {
                    Condition::Starting
                } else if silent.as_ref().is_some_and(reached) {
                    Condition::OutOfReach
                } else if nodes.iter().any(|id| self.fit(id).is_ok()) {
                    Condition::PrimaryGone
                } else if nodes.iter().any(reached) {
                    Condition::OutOfReach
                } else {
                    Condition::Lost
                }
            }
            (_, _) => Condition::SplitBrain,
        }
    }

    /// Whether a shard comes back from the repository, if that can be.
    fn is_restored(&self, holding: &Holding) -> bool {
        match self.condition(holding) {
            Condition::Lost => true,
            Condition::PrimaryGone => self.wishes.prefer == Prefer::Archive,
            _ => false,
        }
    }

    /// Whether a node that answers does not know the one that holds these slots.
    fn is_unknown_to_some(&self, holding: &Holding) -> bool {
        holding.claimants.iter().any(|id| self.survey.words().any(|(_, word)| !word.knows(id)))
    }

    /// The word of a replica that can be promoted, or why it can't.
    fn fit(&self, id: &NodeId) -> Result<&Word, String> {
        let word = match self.survey.node(id).map(|node| &node.answer) {
            Some(Answer::Word(word)) => word,
            Some(Answer::Busy(why) | Answer::Silent(why)) => return Err(why.clone()),
            None => return Err("nobody knows where it is".to_owned()),
        };
        match word.role {
            Role::Primary => Err("it is a primary".to_owned()),
            Role::Replica if word.syncing => {
                Err("it was taking a snapshot from its primary: what it holds is not whole".to_owned())
            }
            Role::Replica if word.offset == 0 && word.keys == 0 => {
                Err("it holds nothing: it never had a snapshot of its primary".to_owned())
            }
            Role::Replica => Ok(word),
        }
    }

    fn shard(&self, holding: &Holding, majority: bool) -> ShardPlan {
        let condition = self.condition(holding);
        let primary = holding.claimants.first().or(holding.silent.as_ref());
        let primary = if condition == Condition::Superseded { holding.silent.as_ref() } else { primary };
        let replicas = primary.map(|id| replicas_of(self.survey, id)).unwrap_or_default();
        let (remedy, loss) = match condition {
            Condition::Served => self.served(&replicas),
            Condition::NotJoined => match primary {
                Some(node) => (Remedy::Join { node: node.clone() }, None),
                None => (Remedy::Nothing, None),
            },
            Condition::Starting => {
                wait("a node reads its dataset: run this again when it has (INFO persistence, loading:0)")
            }
            Condition::OutOfReach => wait(
                "a node of it does not answer here, and the others reach it, or have not missed it yet: look from where it can be reached, or, if it is \
                 gone, again when the cluster-node-timeout is over",
            ),
            Condition::PrimaryGone => self.primary_gone(holding, &replicas, majority),
            Condition::Lost => self.lost(holding),
            Condition::SplitBrain => self.split_brain(holding),
            Condition::Superseded => wait(&self.superseded(holding)),
        };
        ShardPlan {
            slots: holding.slots.clone(),
            condition,
            tail: self.tail(primary, &remedy),
            primary: self.primary_name(holding, primary),
            replicas: replicas.iter().map(|id| self.replica_row(id)).collect(),
            archive: self.reach(&holding.slots).cloned(),
            remedy,
            new_replicas: vec![],
            loss,
        }
    }

    /// What could be applied to the shard's primary.
    fn tail(&self, primary: Option<&NodeId>, remedy: &Remedy) -> Option<Tail> {
        let node = match remedy {
            Remedy::Promote { node, how, .. } if *how != How::Graceful => node,
            Remedy::Nothing => primary?,
            _ => return None,
        };
        self.held.tails.get(node).filter(|tail| !tail.is_idle() && self.refuses_tail(node).is_none()).cloned()
    }

    /// Why the log behind what a node has can't be applied to it: Redis before 7.0 passes relative times on (`propagateExpire` and others).
    fn refuses_tail(&self, node: &NodeId) -> Option<String> {
        let server = self.survey.word(node)?.server;
        let is_old = server.product == Product::Redis && server.major < 7;
        is_old.then(|| {
            format!(
                "--apply-tail can't be done to {}, which runs {server}, whose log says for how long keys shall live from then on",
                self.survey.name(node)
            )
        })
    }

    /// Why nothing is applied to primaries that have been promoted already, where there is something.
    fn refused_tails(&self, shards: &[ShardPlan]) -> Vec<String> {
        let served = shards.iter().filter(|shard| shard.condition == Condition::Served);
        let owner = |shard: &ShardPlan| {
            self.survey.words().find(|(_, word)| word.own_slots() == shard.slots).map(|(node, _)| &node.id)
        };
        served
            .filter_map(|shard| {
                let node = owner(shard)?;
                self.held.tails.get(node).filter(|tail| !tail.is_idle())?;
                let why = self.refuses_tail(node)?;
                Some(format!(
                    "slots {}: {why}. `slotkeep restore --to` with --at and --on-conflict brings single keys back",
                    shard.slots
                ))
            })
            .collect()
    }

    fn primary_name(&self, holding: &Holding, primary: Option<&NodeId>) -> Option<String> {
        if holding.claimants.len() > 1 {
            let names: Vec<String> = holding.claimants.iter().map(|id| self.survey.name(id)).collect();
            return Some(names.join(" and "));
        }
        let recorded =
            || Some(recorded_shard(&self.survey.recorded.shards, &holding.slots)?.primary.addr.to_string());
        primary.map(|id| self.survey.name(id)).or_else(recorded)
    }

    fn replica_row(&self, id: &NodeId) -> ReplicaRow {
        ReplicaRow {
            addr: self.survey.name(id),
            answers: self.survey.word(id).is_some(),
            offset: self.survey.word(id).map(|word| word.offset),
            lacks: self.held.lacks.get(id).copied().flatten(),
            unfit: self.fit(id).err(),
        }
    }

    fn reach(&self, slots: &SlotSet) -> Option<&Reach> {
        self.held.of(slots)?.2.as_ref().ok()
    }

    fn is_chosen(&self, id: &NodeId) -> bool {
        self.survey.node(id).is_some_and(|node| self.wishes.choose.contains(&node.addr))
    }

    /// A shard that is served changes its primary only where the user says so.
    fn served(&self, replicas: &[NodeId]) -> (Remedy, Option<Loss>) {
        let chosen = replicas.iter().find(|id| self.is_chosen(id) && self.fit(id).is_ok());
        let Some(node) = chosen else { return (Remedy::Nothing, None) };
        let loss = Loss {
            what: "nothing: the primary waits until the replica has all it has".to_owned(),
            bytes: Some(0),
            ms: Some(0),
            until: None,
        };
        let addr = self.survey.name(node);
        (Remedy::Promote { node: node.clone(), addr, how: How::Graceful }, Some(loss))
    }

    fn primary_gone(&self, holding: &Holding, replicas: &[NodeId], majority: bool) -> (Remedy, Option<Loss>) {
        if self.wishes.prefer == Prefer::Archive {
            return self.lost(holding);
        }
        let fit = || replicas.iter().filter_map(|id| Some((id, self.fit(id).ok()?)));
        let best =
            fit().find(|(id, _)| self.is_chosen(id)).or_else(|| fit().max_by_key(|(_, word)| word.offset));
        let Some((node, _)) = best else { return self.lost(holding) };
        let addr = self.survey.name(node);
        let lack = self.held.lacks.get(node).copied().flatten();
        let (tail, refusal) = (self.held.tails.get(node), self.refuses_tail(node));
        if let (true, Some(_), Some(why)) = (self.wishes.apply_tail != ApplyTail::No, tail, &refusal) {
            return wait(&format!(
                "{why}. Leave it out to have {addr} promoted with what it has, or say --prefer archive to restore the shard with the log, onto new \
                 nodes"
            ));
        }
        let tail = tail.filter(|_| refusal.is_none());
        let loss = loss_of_promotion((&addr, tail), lack, self.held.given);
        let how = if majority { How::Force } else { How::Takeover };
        (Remedy::Promote { node: node.clone(), addr, how }, Some(loss))
    }

    /// To be restored, if that can be; to which nodes is settled for all shards together.
    fn lost(&self, holding: &Holding) -> (Remedy, Option<Loss>) {
        if !self.held.given {
            return wait("no node of it answers: give the repository with --repo, to restore it from there");
        }
        if let Some((_, _, Err(why))) = self.held.of(&holding.slots) {
            return wait(&format!("no node of it answers, and the repository can't bring it back: {why}"));
        }
        let Some(reach) = self.reach(&holding.slots) else {
            return wait("no node of it answers, and the repository holds nothing of it");
        };
        let runs = |state: &SpareState| matches!(state, SpareState::Empty(_));
        if self.wishes.tls && !self.survey.spares.iter().any(|(_, state)| runs(state)) {
            return wait(
                "no node of it answers, and nodes that are started here can't join a cluster that speaks TLS, for want of certificates: \
                 give --spare-tls-cert, --spare-tls-key and --spare-tls-ca, or start empty nodes in cluster mode and give their addresses with --spare",
            );
        }
        (
            Remedy::Restore { running: false, nodes: vec![] },
            Some(loss_of_restore(reach, self.wishes.at, self.held.now)),
        )
    }

    /// The chosen one keeps the slots if its claim is the highest: then the others need only be kept from taking writes.
    fn split_brain(&self, holding: &Holding) -> (Remedy, Option<Loss>) {
        let epoch =
            |id: &NodeId| self.survey.word(id).and_then(Word::own_row).map_or(0, |row| row.config_epoch);
        let newest = holding.claimants.iter().max_by_key(|id| epoch(id));
        let Some(newest) = newest else { return wait("nobody claims them") };
        let (keep, name) = (newest, self.survey.name(newest));
        if self.is_chosen(keep) && self.held.given {
            let others: Vec<NodeId> = holding.claimants.iter().filter(|id| *id != keep).cloned().collect();
            let names: Vec<String> = others.iter().map(|id| self.survey.name(id)).collect();
            let names = names.join(", ");
            let what = format!(
                "what only {names} holds, as soon as the nodes hear each other: back it up before, if it matters"
            );
            let loss = Loss { what, bytes: None, ms: None, until: None };
            return (Remedy::Fence { keep: keep.clone(), others }, Some(loss));
        }
        let claims = holding.claimants.iter().filter_map(|id| {
            let word = self.survey.word(id)?;
            Some(format!(
                "{} (config epoch {}, offset {} of history {}, {} keys)",
                self.survey.name(id),
                epoch(id),
                word.offset,
                word.history,
                word.keys
            ))
        });
        let claims: Vec<String> = claims.collect();
        wait(&format!(
            "split brain: {} call them their own, and may both take writes. Nothing is done before you have chosen. The cluster will follow {name}, whose \
             epoch is the highest, as soon as the nodes hear each other; what only the other one holds is dropped then: back it up, if it matters. \
             To keep {name}: `--choose {name}` with --repo, which fences the other one, and let the nodes hear each other. To keep the other one: \
             shut {name} down, let the other one hear the cluster, and run this again",
            claims.join(" and ")
        ))
    }

    fn superseded(&self, holding: &Holding) -> String {
        let old = holding.claimants.first().map(|id| self.survey.name(id)).unwrap_or_default();
        let new = holding.silent.as_ref().map(|id| self.survey.name(id)).unwrap_or_default();
        format!(
            "{old} answers and calls them its own, but others know {new} as their newer owner, which does not answer. {old} becomes a replica \
             of it when it hears the others: see to the links between the nodes, or bring {new} back, and run this again"
        )
    }

    /// Nodes that answer, hold neither slots nor keys, and were of a shard that another node serves: with the primary to follow.
    fn returned(&self, shards: &[ShardPlan]) -> Vec<(NodeId, NodeId)> {
        let served: Vec<&ShardPlan> =
            shards.iter().filter(|shard| shard.condition == Condition::Served).collect();
        let empty = self
            .survey
            .words()
            .filter(|(_, word)| word.role == Role::Primary && word.own_slots().is_empty() && word.keys == 0);
        // Where slots have been spread anew since, it may be meant to be empty.
        let primary_of = |slots: &SlotSet| {
            let shard = served.iter().find(|shard| shard.slots == *slots)?;
            let owner = |word: &Word| word.own_slots() == shard.slots;
            self.survey.words().find(|(_, word)| owner(word)).map(|(node, _)| node.id.clone())
        };
        empty
            .filter_map(|(node, _)| {
                let own = self.survey.recorded.nodes.get(&node.id)?;
                Some((node.id.clone(), primary_of(own)?))
            })
            .collect()
    }

    /// Nodes that do not answer and whose slots, if they had any, are another node's once the plan is done.
    fn forgotten(&self, shards: &[ShardPlan]) -> Vec<NodeId> {
        if self.survey.words().next().is_none() {
            return vec![];
        }
        let kept: Vec<SlotSet> = shards
            .iter()
            .filter(|shard| matches!(shard.remedy, Remedy::Wait { .. }))
            .map(|shard| shard.slots.clone())
            .collect();
        let claims = |id: &NodeId| -> SlotSet {
            let rows = self.survey.words().flat_map(|(_, word)| word.rows.iter().filter(|row| row.id == *id));
            rows.flat_map(|row| row.slots.ranges().to_vec()).collect()
        };
        let silent = self.survey.nodes.iter().filter(|node| matches!(node.answer, Answer::Silent(_)));
        silent
            .filter(|node| self.survey.words().any(|(_, word)| word.knows(&node.id)))
            .filter(|node| kept.iter().all(|slots| slots.intersection(&claims(&node.id)).is_empty()))
            .map(|node| node.id.clone())
            .collect()
    }

    /// Choices that name neither a replica that can be promoted nor a primary.
    fn unknown_choices(&self) -> Vec<&NodeAddr> {
        let fits = |id: &NodeId| {
            self.fit(id).is_ok() || self.survey.word(id).is_some_and(|word| !word.own_slots().is_empty())
        };
        let unknown =
            |addr: &&NodeAddr| !self.survey.nodes.iter().any(|node| node.addr == **addr && fits(&node.id));
        self.wishes.choose.iter().filter(unknown).collect()
    }
}

fn wait(on: &str) -> (Remedy, Option<Loss>) {
    (Remedy::Wait { on: on.to_owned() }, None)
}

fn node_rows(survey: &Survey) -> Vec<NodeRow> {
    let row = |node: &super::facts::SeenNode| {
        let (word, silent) = match &node.answer {
            Answer::Word(word) => (Some(word), None),
            Answer::Busy(why) | Answer::Silent(why) => (None, Some(why.clone())),
        };
        NodeRow {
            addr: node.addr.clone(),
            id: node.id.clone(),
            server: word.map(|word| word.server.to_string()),
            role: word.map(|word| if word.role == Role::Primary { "primary" } else { "replica" }),
            slots: word.map(|word| word.own_slots()).unwrap_or_default(),
            offset: word.map(|word| word.offset),
            silent,
        }
    };
    survey.nodes.iter().map(row).collect()
}
