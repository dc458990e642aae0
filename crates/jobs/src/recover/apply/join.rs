//! Making the living nodes and the new ones known to each other, and waiting until all agree.

use std::collections::BTreeMap;
use std::time::Duration;

use slotkeep_model::{NodeAddr, NodeId, Role, SlotSet};
use slotkeep_wire::resp::Command;

use super::{Recovery, Watch, surprise};
use crate::recover::facts::{Survey, Word};
use crate::{Error, ErrorKind, Result};

/// How long nodes may take to agree while nothing changes. A node that was failing for the others comes back after their node timeout.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long two nodes may call a slot their own: whose place has been taken hears of it a little later.
const DOUBT: Duration = Duration::from_secs(5);

/// Tells every node of those that it does not know. Gossip would do so too, later.
pub(super) async fn join(recovery: &Recovery, survey: &Survey, watch: &dyn Watch) -> Result<String> {
    let mut told = 0_u32;
    for (node, word) in survey.words() {
        let strangers: Vec<_> = survey.words().filter(|(other, _)| !word.knows(&other.id)).collect();
        if strangers.is_empty() {
            continue;
        }
        let mut connection = recovery.context.connector.connect(&node.addr).await?;
        for (other, other_word) in strangers {
            let Some(row) = other_word.own_row() else { continue };
            let meet = Command::new("CLUSTER")
                .arg("MEET")
                .arg(ip_of(&other.addr, &row.ip).await?)
                .arg_number(row.port)
                .arg_number(row.bus_port);
            connection.call(&meet).await?;
            told += 1;
        }
    }
    let (waiting, _) = wait(recovery, watch, unknown).await?;
    match waiting {
        None if told == 0 => Ok("all nodes know each other already".to_owned()),
        None => Ok(format!("{told} introductions; all nodes know each other")),
        Some(waiting) => Err(late(&waiting)),
    }
}

/// The address that nodes are told: the one that a node announces, or, as one that was alone so far has heard none, the one that it was given by.
async fn ip_of(addr: &NodeAddr, announced: &str) -> Result<String> {
    if !announced.is_empty() {
        return Ok(announced.to_owned());
    }
    let found = tokio::net::lookup_host((addr.host(), addr.port())).await;
    found.ok().and_then(|mut found| found.next()).map(|found| found.ip().to_string()).ok_or_else(|| {
        let what = format!(
            "{addr} does not know its own address, which the others need, and its name can't be resolved here"
        );
        Error::new(ErrorKind::Failed, what).hint("set cluster-announce-ip on it, and run this again")
    })
}

/// Makes a node a replica.
pub(super) async fn attach(
    recovery: &Recovery,
    survey: &Survey,
    node: &NodeId,
    primary: &NodeId,
) -> Result<String> {
    let found = survey.node(node).map(|node| node.addr.clone());
    let addr = found.ok_or_else(|| surprise(format!("node {node} is gone again")))?;
    let mut connection = recovery.context.connector.connect(&addr).await?;
    let replicate = Command::new("CLUSTER").arg("REPLICATE").arg(primary.as_str());
    connection.call(&replicate).await?;
    Ok(format!("{addr} follows {}", survey.name(primary)))
}

/// Makes every node that answers forget those, unless one answers again. A node keeps out what it has forgotten, for a minute; but one that did
/// not know of it yet may hear of it from one that is told later, so all are asked until none knows it.
pub(super) async fn forget(recovery: &Recovery, survey: &Survey, nodes: &[NodeId]) -> Result<String> {
    let began = recovery.context.clock.elapsed();
    let count = |survey: &Survey| nodes.iter().filter(|id| survey.word(id).is_some()).count();
    let (mut back, mut knowing) = (count(survey), tell_to_forget(recovery, survey, nodes).await?);
    while let Some(addr) = knowing {
        if recovery.context.clock.elapsed().saturating_sub(began) > PATIENCE {
            return Err(late(&format!("{addr} still knows nodes that it was told to forget")));
        }
        let rest = async {
            recovery.context.clock.sleep(LOOK_EVERY).await;
            Ok(())
        };
        recovery.context.unless_stopped(rest).await?;
        let (survey, _) = recovery.look().await?;
        (back, knowing) = (count(&survey), tell_to_forget(recovery, &survey, nodes).await?);
    }
    let kept = if back == 0 { String::new() } else { format!("; {back} answer again and stay") };
    Ok(format!("{} forgotten{kept}", nodes.len().saturating_sub(back)))
}

/// Tells every node that knows one of those that do not answer to forget it. Gives a node that was told.
async fn tell_to_forget(recovery: &Recovery, survey: &Survey, nodes: &[NodeId]) -> Result<Option<NodeAddr>> {
    let mut told = None;
    for (node, word) in survey.words() {
        let known = nodes.iter().filter(|id| survey.word(id).is_none() && word.knows(id));
        let known: Vec<&NodeId> = known.collect();
        if known.is_empty() {
            continue;
        }
        told = Some(node.addr.clone());
        let mut connection = recovery.context.connector.connect(&node.addr).await?;
        for id in known {
            let reply = connection.exchange(&Command::new("CLUSTER").arg("FORGET").arg(id.as_str())).await?;
            // Newer servers pass it on: another node's word may have come first.
            if let Some(text) = reply.as_error().filter(|text| !text.contains("Unknown node")) {
                return Err(Error::new(ErrorKind::Failed, format!("{}: CLUSTER FORGET: {text}", node.addr)));
            }
        }
    }
    Ok(told)
}

/// Waits until all nodes that answer agree who serves which slot, and none calls the cluster down that could be up.
pub(super) async fn settle(recovery: &Recovery, watch: &dyn Watch) -> Result<String> {
    let (waiting, survey) =
        wait(recovery, watch, |survey| unknown(survey).or_else(|| disagreement(survey))).await?;
    if let Some(waiting) = waiting {
        return Err(late(&waiting));
    }
    let covered = served(&survey).len();
    Ok(format!("{} nodes agree: {covered} of 16384 slots are served", survey.words().count()))
}

fn late(waiting: &str) -> Error {
    Error::new(ErrorKind::Failed, format!("after {} s: {waiting}", PATIENCE.as_secs()))
        .hint("see the nodes' logs for why; run this again when it is mended")
}

/// Looks until nothing is waited for any more, or for too long; gives what is still waited for, and what was seen last.
async fn wait(
    recovery: &Recovery,
    watch: &dyn Watch,
    waiting_for: impl Fn(&Survey) -> Option<String>,
) -> Result<(Option<String>, Survey)> {
    let began = recovery.context.clock.elapsed();
    let mut last_told = String::new();
    let mut doubled_since = None;
    loop {
        let (survey, _) = recovery.look().await?;
        let Some(waiting) = waiting_for(&survey) else { return Ok((None, survey)) };
        let now = recovery.context.clock.elapsed();
        match doubly_served(&survey) {
            None => doubled_since = None,
            Some(slot) if now.saturating_sub(*doubled_since.get_or_insert(now)) > DOUBT => {
                return Err(surprise(format!("two nodes that answer call slot {slot} their own")));
            }
            Some(_) => {}
        }
        if waiting != last_told {
            watch.note(&format!("  {waiting}"));
            last_told.clone_from(&waiting);
        }
        if recovery.context.clock.elapsed().saturating_sub(began) > PATIENCE {
            return Ok((Some(waiting), survey));
        }
        let rest = async {
            recovery.context.clock.sleep(LOOK_EVERY).await;
            Ok(())
        };
        recovery.context.unless_stopped(rest).await?;
    }
}

/// A node that answers and that another one does not know yet.
fn unknown(survey: &Survey) -> Option<String> {
    survey.words().find_map(|(node, word)| {
        let (other, _) = survey.words().find(|(other, _)| !word.knows(&other.id))?;
        Some(format!("{} does not know {} yet", node.addr, other.addr))
    })
}

/// What nodes do not agree on yet.
fn disagreement(survey: &Survey) -> Option<String> {
    let owners: BTreeMap<&NodeId, SlotSet> =
        survey.words().map(|(node, word)| (&node.id, word.own_slots())).collect();
    let whole = served(survey).complement().is_empty();
    survey.words().find_map(|(node, word)| {
        let wrong = owners.iter().find(|(id, slots)| said_of(word, id) != **slots);
        if let Some((id, _)) = wrong {
            return Some(format!("{} sees other slots with {} than that itself", node.addr, survey.name(id)));
        }
        if whole && !word.cluster_ok {
            return Some(format!("{} does not call the cluster whole yet", node.addr));
        }
        let primary = word.follows().filter(|_| word.role == Role::Replica)?;
        // While slots are with it, nobody has taken its place, and that is not awaited here.
        let replaced = survey.word(primary).is_none() && said_of(word, primary).is_empty();
        replaced.then(|| format!("replica {} still follows a node that was replaced", node.addr))
    })
}

fn said_of(word: &Word, id: &NodeId) -> SlotSet {
    word.rows.iter().find(|row| row.id == *id).map(|row| row.slots.clone()).unwrap_or_default()
}

fn served(survey: &Survey) -> SlotSet {
    survey.words().flat_map(|(_, word)| word.own_slots().ranges().to_vec()).collect()
}

fn doubly_served(survey: &Survey) -> Option<slotkeep_model::Slot> {
    let mut seen = std::collections::BTreeSet::new();
    survey
        .words()
        .flat_map(|(_, word)| word.own_slots().iter().collect::<Vec<_>>())
        .find(|slot| !seen.insert(*slot))
}
