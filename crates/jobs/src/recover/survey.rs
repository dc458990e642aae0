//! Asking every node that can be heard of.
//!
//! Nodes are found from the addresses given, from what nodes say of others, and from the repository. A node counts as one of the cluster's
//! if the repository or one of its nodes knows its id, or if it knows one of theirs: at an old address another cluster may live by now.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use slotkeep_format::ShardState;
use slotkeep_model::{NodeAddr, NodeId, ReplId};
use slotkeep_wire::info::Info;
use slotkeep_wire::resp::Command;
use slotkeep_wire::topology::{ClusterInfo, NodeRow};

use super::facts::{Answer, Recorded, SeenNode, SpareState, Survey, Word};
use super::spares::{look_at, vacancy};
use crate::discover::{keys_of, read_info, read_view, version_of};
use crate::log::chain::Place;
use crate::net::{LinkError, LinkProblem};
use crate::{Context, Error, ErrorKind, Result};

/// How many nodes are asked at a time.
const QUESTIONS_IN_FLIGHT: usize = 64;
/// How long a node may take to answer: one that is stopped in its tracks takes connections and never answers.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Asks every node that can be heard of. `recorded` is what the repository says; `admitted` are nodes that count as the cluster's although
/// nobody may know them yet.
pub async fn survey(
    context: &Context,
    seeds: &[NodeAddr],
    recorded: Recorded,
    spares: &[NodeAddr],
    admitted: &BTreeSet<NodeId>,
) -> Result<Survey> {
    let mut asked: BTreeMap<NodeAddr, Result<Word, Miss>> = BTreeMap::new();
    let of_repository = nodes_of(&recorded.shards).map(|(addr, _)| addr.clone());
    let mut waiting: BTreeSet<NodeAddr> = seeds.iter().chain(spares).cloned().chain(of_repository).collect();
    while !waiting.is_empty() {
        let round = std::mem::take(&mut waiting);
        let answers = futures::stream::iter(round).map(async |addr| {
            let word = ask(context, &addr).await;
            (addr, word)
        });
        let answers = async { Ok(answers.buffered(QUESTIONS_IN_FLIGHT).collect::<Vec<_>>().await) };
        for (addr, word) in context.unless_stopped(answers).await? {
            for row in word.iter().flat_map(|word| &word.rows) {
                let known = row_addr(context, row, &addr);
                if known.port() != 0 && !known.host().is_empty() && !asked.contains_key(&known) {
                    waiting.insert(known);
                }
            }
            asked.insert(addr, word);
        }
        waiting.retain(|addr| !asked.contains_key(addr));
    }
    let mut states: BTreeMap<NodeAddr, SpareState> = BTreeMap::new();
    for spare in spares {
        if let Some(Ok(word)) = asked.get(spare) {
            states.insert(
                spare.clone(),
                context.unless_stopped(async { Ok(look_at(context, spare, word).await) }).await?,
            );
        }
    }
    sort(context, seeds, (recorded, admitted), (spares, &states), asked)
}

fn nodes_of(recorded: &[ShardState]) -> impl Iterator<Item = (&NodeAddr, Option<&NodeId>)> {
    let records = recorded.iter().flat_map(|shard| std::iter::once(&shard.primary).chain(&shard.replicas));
    records.map(|record| (&record.addr, record.id.as_ref()))
}

fn row_addr(context: &Context, row: &NodeRow, asked: &NodeAddr) -> NodeAddr {
    row.addr(asked, context.connector.is_tls())
}

/// Why a node says nothing.
#[derive(Debug)]
pub(super) struct Miss {
    pub(super) error: Error,
    /// Its process lives: it reads its dataset.
    busy: bool,
}

impl Miss {
    /// Whether somebody answers there all the same.
    fn answers(&self) -> bool {
        let kinds =
            [ErrorKind::NotACluster, ErrorKind::Authentication, ErrorKind::Permission, ErrorKind::Tls];
        self.busy || kinds.contains(&self.error.kind())
    }
}

impl<E: Into<Error>> From<E> for Miss {
    fn from(error: E) -> Self {
        Self { error: error.into(), busy: false }
    }
}

/// What a node says.
pub(super) async fn ask(context: &Context, addr: &NodeAddr) -> Result<Word, Miss> {
    let late = || {
        let problem = LinkProblem::Timeout { doing: "asking it how it is", after: ANSWER_LIMIT };
        Miss::from(LinkError { node: addr.clone(), problem })
    };
    context.within(ANSWER_LIMIT, ask_all(context, addr)).await.unwrap_or_else(|| Err(late()))
}

async fn ask_all(context: &Context, addr: &NodeAddr) -> Result<Word, Miss> {
    let mut connection = context.connector.connect(addr).await?;
    let info = read_info(&mut connection).await?;
    let odd =
        |words: String| Error::from(LinkError { node: addr.clone(), problem: LinkProblem::Protocol(words) });
    let replication = info.replication().map_err(|error| odd(error.to_string()))?;
    if !info.cluster_enabled().map_err(|error| odd(error.to_string()))? {
        let refused = Error::new(ErrorKind::NotACluster, format!("{addr} does not run in cluster mode"));
        return Err(refused.hint("`recover` is for clusters; a server by itself is restored (`slotkeep restore`), or its replica promoted (REPLICAOF NO ONE)").into());
    }
    if info.persistence().map_err(|error| odd(error.to_string()))?.loading {
        // While it does, servers before Redis 7.2 tell nothing of the cluster.
        return Err(Miss {
            error: Error::new(ErrorKind::Unreachable, format!("{addr} reads its dataset")),
            busy: true,
        });
    }
    let view = read_view(context, &mut connection).await?;
    let reply = connection.call(&Command::new("CLUSTER").arg("INFO")).await?;
    let cluster = ClusterInfo::parse(reply.as_text().unwrap_or_default());
    let cluster = cluster.map_err(|error| odd(error.to_string()))?;
    Ok(Word {
        id: view.myself,
        role: replication.role,
        server: version_of(&info, addr)?,
        syncing: replication.link.as_ref().is_some_and(|link| link.sync_in_progress),
        history: replication.replid,
        offset: replication.offset.0,
        former: former(&info),
        keys: keys_of(&info).map_err(|error| odd(error.to_string()))?,
        rows: view.rows,
        current_epoch: cluster.current_epoch,
        cluster_ok: cluster.ok,
    })
}

/// Where a node took over: its second history is the one that it had before (`shiftReplicationId` in `src/replication.c`).
fn former(info: &Info) -> Option<Place> {
    let history: ReplId = info.get("master_replid2")?.parse().ok()?;
    let first_own: u64 = info.get("second_repl_offset")?.parse().ok()?;
    Some(Place { history, offset: first_own.checked_sub(1)? })
}

/// Tells the cluster's nodes from strangers.
fn sort(
    context: &Context,
    seeds: &[NodeAddr],
    (recorded, admitted): (Recorded, &BTreeSet<NodeId>),
    (spares, states): (&[NodeAddr], &BTreeMap<NodeAddr, SpareState>),
    mut asked: BTreeMap<NodeAddr, Result<Word, Miss>>,
) -> Result<Survey> {
    let mut known: BTreeSet<NodeId> = nodes_of(&recorded.shards).filter_map(|(_, id)| id.cloned()).collect();
    let from_repository = !known.is_empty();
    if known.is_empty() {
        let first = seeds.iter().find_map(|seed| asked.get(seed)?.as_ref().ok());
        known.extend(first.map(|word| word.id.clone()));
    }
    known.extend(admitted.iter().cloned());
    let mut members: BTreeMap<NodeAddr, Word> = BTreeMap::new();
    loop {
        let next = asked.iter().find_map(|(addr, word)| {
            let word = word.as_ref().ok()?;
            let ours = known.contains(&word.id) || word.rows.iter().any(|row| known.contains(&row.id));
            ours.then(|| addr.clone())
        });
        let Some(addr) = next else { break };
        let Some(Ok(word)) = asked.remove(&addr) else { break };
        known.extend(word.rows.iter().filter(|row| !row.flags.handshake).map(|row| row.id.clone()));
        members.insert(addr, word);
    }
    refuse_others(seeds, &members, &asked, from_repository)?;
    let spares = spares.iter().map(|addr| {
        let state = match (members.get(addr), asked.get(addr)) {
            (Some(word), _) => SpareState::Member(word.id.clone()),
            (None, Some(Err(miss))) if miss.answers() => SpareState::Taken(miss.error.to_string()),
            _ => states.get(addr).cloned().unwrap_or_else(|| vacancy(addr)),
        };
        (addr.clone(), state)
    });
    let mut survey = Survey { recorded, spares: spares.collect(), ..Survey::default() };
    let mut announced: BTreeMap<NodeId, NodeAddr> = BTreeMap::new();
    for (addr, word) in &members {
        for row in word.rows.iter().filter(|row| !row.flags.handshake) {
            announced.entry(row.id.clone()).or_insert_with(|| row_addr(context, row, addr));
        }
    }
    for (addr, id) in nodes_of(&survey.recorded.shards) {
        if let Some(id) = id {
            announced.entry(id.clone()).or_insert_with(|| addr.clone());
        }
    }
    let addrs: Vec<(NodeId, NodeAddr)> =
        members.iter().map(|(addr, word)| (word.id.clone(), addr.clone())).collect();
    for (addr, word) in members {
        // A node may have been reached by two names.
        let usual =
            announced.get(&word.id).filter(|usual| addrs.contains(&(word.id.clone(), (*usual).clone())));
        if usual.is_none_or(|usual| *usual == addr) {
            survey.nodes.push(SeenNode { addr, id: word.id.clone(), answer: Answer::Word(Box::new(word)) });
        }
    }
    announced.retain(|id, _| !addrs.iter().any(|(known, _)| known == id));
    for (id, addr) in announced {
        let answer = match asked.get(&addr) {
            Some(Err(Miss { error, busy: true })) => Answer::Busy(error.to_string()),
            Some(Err(miss)) => Answer::Silent(miss.error.to_string()),
            Some(Ok(other)) => Answer::Silent(format!("{addr}: another node answers there: {}", other.id)),
            None => Answer::Silent(format!("{addr}: the node that answers there is another one")),
        };
        survey.nodes.push(SeenNode { addr, id, answer });
    }
    survey.nodes.sort_by(|one, other| one.addr.cmp(&other.addr).then_with(|| one.id.cmp(&other.id)));
    for (addr, word) in asked {
        if let (Ok(word), false) = (word, survey.spares.iter().any(|(spare, _)| *spare == addr)) {
            survey
                .strangers
                .push((addr, format!("node {}, which none of the cluster's nodes knows", word.id)));
        }
    }
    Ok(survey)
}

/// Refuses addresses that lead to another cluster, or to none.
fn refuse_others(
    seeds: &[NodeAddr],
    members: &BTreeMap<NodeAddr, Word>,
    asked: &BTreeMap<NodeAddr, Result<Word, Miss>>,
    from_repository: bool,
) -> Result<()> {
    for seed in seeds.iter().filter(|seed| !members.contains_key(seed)) {
        match asked.get(seed) {
            Some(Ok(word)) => {
                let known_to =
                    if from_repository { "the repository does not know" } else { "knows none of the others" };
                let what = format!(
                    "{seed} belongs to another cluster: it is node {}, and {known_to} any of its nodes",
                    word.id
                );
                return Err(Error::new(ErrorKind::Conflict, what).hint(
                    "check --cluster, --repo and --name: a cluster is recovered with its own repository",
                ));
            }
            Some(Err(miss @ Miss { error, busy: false })) if miss.answers() => {
                let refused = Error::new(error.kind(), error.to_string());
                return Err(match error.advice() {
                    Some(hint) => refused.hint(hint),
                    None => refused,
                });
            }
            _ => {}
        }
    }
    Ok(())
}
