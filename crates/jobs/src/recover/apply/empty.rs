//! Emptying nodes that nobody knows: those that could not be filled, and those that a run left that was broken off, if the user has named them.
//!
//! Invariants: a node is emptied only while nobody knows it and it has the id that it was looked at with, which it loses when it is emptied: so of two
//! runs none empties what the other one fills. A node that was left is emptied only if it is alone still, the same, and no fuller than when that was planned.

use std::time::Duration;

use slotkeep_model::{NodeAddr, NodeId};
use slotkeep_wire::resp::Command;

use super::{Recovery, Watch, surprise};
use crate::Result;
use crate::recover::facts::{SpareState, Survey};
use crate::recover::left::emptied;
use crate::recover::plan::{Emptied, Plan};
use crate::recover::spares::setting;
use crate::recover::survey::ask;

/// The setting that keeps a node from serving what it has while slots have no owner.
pub(super) const COVERAGE: &str = "cluster-require-full-coverage";
/// What servers have that are not told otherwise.
const COVERAGE_BY_DEFAULT: &str = "yes";
/// For how long nobody may have written to a node that was left.
const QUIET: Duration = Duration::from_secs(1);

/// Makes a node empty, with a new id, if it is that node still and nobody else has made use of it. `coverage` is the setting to put back: first, as
/// nobody would know of it once the node counts as empty.
pub(super) async fn empty(
    recovery: &Recovery,
    (addr, id): (&NodeAddr, &NodeId),
    coverage: Option<&str>,
) -> Result<()> {
    let word = ask(&recovery.context, addr).await.map_err(|miss| miss.error)?;
    if word.id != *id || word.rows.len() > 1 {
        let what =
            format!("{addr} is not the node any more that was to be emptied, or others know it by now");
        return Err(surprise(what));
    }
    let mut connection = recovery.context.connector.connect(addr).await?;
    if let Some(coverage) = coverage {
        connection.call(&Command::new("CONFIG").arg("SET").arg(COVERAGE).arg(coverage)).await?;
    }
    connection.call(&Command::new("FLUSHALL")).await?;
    // Servers before 7.0 know no functions.
    connection.exchange(&Command::new("FUNCTION").arg("FLUSH")).await?;
    connection.call(&Command::new("CLUSTER").arg("RESET").arg("HARD")).await?;
    Ok(())
}

/// Empties what was left. `now` is the judgement that the step is based on.
pub(super) async fn empty_left(
    recovery: &Recovery,
    (survey, now): (&Survey, &Plan),
    nodes: &[Emptied],
    watch: &dyn Watch,
) -> Result<String> {
    let waiting: Vec<&Emptied> = nodes.iter().filter(|node| !is_done(survey, &node.addr)).collect();
    let found = emptied(survey, &now.shards);
    let found: Vec<&Emptied> = waiting.iter().map(|node| same(node, &found)).collect::<Result<Vec<_>>>()?;
    if found.is_empty() {
        return Ok("not needed any more: they are empty".to_owned());
    }
    // A run that is not over has written something by then.
    let rest = async {
        recovery.context.clock.sleep(QUIET).await;
        Ok(())
    };
    recovery.context.unless_stopped(rest).await?;
    let (survey, later) = recovery.look().await?;
    let later = emptied(&survey, &later.shards);
    for node in &found {
        same(node, &later)?;
    }
    let usual = coverage_of_living(recovery, &survey).await;
    let mut names = Vec::new();
    for Emptied { addr, id, keys, .. } in found {
        let mut connection = recovery.context.connector.connect(addr).await?;
        // Whether it had that before it was to be filled nobody knows any more.
        let changed = setting(&mut connection, COVERAGE).await?.is_some_and(|value| value == "no");
        empty(recovery, (addr, id), changed.then_some(usual.as_str())).await?;
        let told = if changed { format!(", {COVERAGE} {usual}") } else { String::new() };
        watch.note(&format!("  {addr} is empty again"));
        names.push(format!("{addr} ({keys} keys deleted{told})"));
    }
    Ok(names.join(", "))
}

fn is_done(survey: &Survey, addr: &NodeAddr) -> bool {
    let state = survey.spares.iter().find(|(spare, _)| spare == addr).map(|(_, state)| state);
    matches!(state, Some(SpareState::Empty(_) | SpareState::Member(_)))
}

/// The node as it is now, if it is the same and nobody has written to it. Keys may have expired.
fn same<'n>(node: &Emptied, now: &'n [Emptied]) -> Result<&'n Emptied> {
    let alike = |other: &&Emptied| {
        let stays = (&other.addr, &other.id, &other.slots) == (&node.addr, &node.id, &node.slots);
        stays && other.keys <= node.keys
    };
    now.iter().find(alike).ok_or_else(|| {
        surprise(format!(
            "{} is not as it was when this was planned: somebody uses it, maybe a run of this command that is not over",
            node.addr
        ))
    })
}

/// What the living nodes have set.
async fn coverage_of_living(recovery: &Recovery, survey: &Survey) -> String {
    for (node, _) in survey.words() {
        let Ok(mut connection) = recovery.context.connector.connect(&node.addr).await else { continue };
        if let Ok(Some(value)) = setting(&mut connection, COVERAGE).await {
            return value;
        }
    }
    COVERAGE_BY_DEFAULT.to_owned()
}
