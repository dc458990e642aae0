//! Giving a shard that has its primary new replicas: empty nodes that the others have been told of, and servers that are started for it.

use std::time::Duration;

use slotkeep_model::{NodeAddr, NodeId, Role};
use slotkeep_wire::resp::Command;

use super::join::join;
use super::restore::start_replicas;
use super::{Made, Recovery, Watch, surprise};
use crate::discover::read_info;
use crate::recover::facts::{SpareState, Survey};
use crate::recover::plan::ShardPlan;
use crate::{Error, ErrorKind, Result};

/// How long a replica may stand still before its link to its primary is up.
const PATIENCE: Duration = Duration::from_mins(1);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Makes those nodes replicas of the shard's primary, and waits until each holds its dataset.
pub(super) async fn give(
    recovery: &Recovery,
    survey: &Survey,
    (shard, nodes): (&ShardPlan, &[NodeAddr]),
    watch: &dyn Watch,
    made: &mut Made,
) -> Result<String> {
    let slots = &shard.slots;
    let mut owners = survey.words().filter(|(_, word)| word.own_slots() == *slots);
    let (Some((primary, _)), None) = (owners.next(), owners.next()) else {
        return Err(surprise(format!("slots {slots} have no primary that could be followed")));
    };
    let (mut free, mut told) = (Vec::new(), Vec::new());
    for addr in nodes {
        match survey.spares.iter().find(|(spare, _)| spare == addr).map(|(_, state)| state) {
            Some(SpareState::Member(id)) => {
                if follow(recovery, survey, (addr, id), &primary.id).await? {
                    told.push(addr.clone());
                }
            }
            Some(SpareState::Free) => free.push(addr.clone()),
            Some(SpareState::Taken(why)) => {
                return Err(surprise(format!("{addr} can't be used any more: {why}")));
            }
            Some(SpareState::Empty(_) | SpareState::Left(_)) => {
                return Err(surprise(format!("the cluster has not been told of {addr}")));
            }
            None => return Err(surprise(format!("{addr} is not one of the addresses for new nodes"))),
        }
    }
    for addr in &told {
        wait_for(recovery, addr, watch).await?;
    }
    if !free.is_empty() {
        start_replicas(recovery, survey, (shard, &primary.id, &free), watch, made).await?;
        // They know the others, and only their primary knows them.
        let (survey, _) = recovery.look().await?;
        join(recovery, &survey, watch).await?;
    }
    let names: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    Ok(format!("{} follow {}", names.join(", "), primary.addr))
}

/// Has a node follow a primary; whether it did not yet.
async fn follow(
    recovery: &Recovery,
    survey: &Survey,
    (addr, id): (&NodeAddr, &NodeId),
    primary: &NodeId,
) -> Result<bool> {
    let word = survey.word(id).ok_or_else(|| surprise(format!("{addr} is gone again")))?;
    if word.role == Role::Replica {
        return match word.follows() {
            Some(followed) if followed == primary => Ok(false),
            _ => Err(surprise(format!("{addr} is a replica of another node by now"))),
        };
    }
    if !word.own_slots().is_empty() || word.keys > 0 {
        return Err(surprise(format!("{addr} holds slots or keys by now")));
    }
    let mut connection = recovery.context.connector.connect(addr).await?;
    connection.call(&Command::new("CLUSTER").arg("REPLICATE").arg(primary.as_str())).await?;
    Ok(true)
}

/// Waits until a replica holds its primary's dataset.
async fn wait_for(recovery: &Recovery, addr: &NodeAddr, watch: &dyn Watch) -> Result<()> {
    let context = &recovery.context;
    let mut still_since = context.clock.elapsed();
    let mut last_told = "";
    loop {
        let asked = async { Ok(read_info(&mut context.connector.connect(addr).await?).await?.replication()) };
        let replication = context.unless_stopped(asked).await?;
        let replication =
            replication.map_err(|error| Error::new(ErrorKind::Failed, format!("{addr}: {error}")))?;
        let waiting = match &replication.link {
            Some(link) if link.sync_in_progress => {
                still_since = context.clock.elapsed();
                "receives the dataset of its primary"
            }
            Some(link) if link.up => return Ok(()),
            _ => "its link to its primary is not up yet",
        };
        if waiting != last_told {
            watch.note(&format!("  {addr}: {waiting}"));
            last_told = waiting;
        }
        if context.clock.elapsed().saturating_sub(still_since) > PATIENCE {
            let what = format!("{addr}: after {} s: {waiting}", PATIENCE.as_secs());
            return Err(Error::new(ErrorKind::Failed, what)
                .hint("see its log for why: it may lack the password of its primary (masterauth). It is a replica, and goes on trying"));
        }
        let rest = async {
            context.clock.sleep(LOOK_EVERY).await;
            Ok(())
        };
        context.unless_stopped(rest).await?;
    }
}
