//! Putting slots that were on their way on their way again.
//!
//! Invariant: a key that both sides hold is deleted where it was leaving: it was copied to the other side before it was deleted here, and
//! whatever was written to it since was written there.

use std::time::Duration;

use slotkeep_model::{NodeId, Slot, SlotSet};
use slotkeep_wire::resp::{Command, Value};

use super::{Recovery, surprise};
use crate::net::Connection;
use crate::recover::facts::Survey;
use crate::recover::moves::{Broken, broken};
use crate::{Error, ErrorKind, Result};

/// How many keys of a slot are compared; with more, the slot is left to a person.
const MOST_KEYS: u64 = 1 << 20;
/// How many keys are deleted at a time.
const DELETED_AT_A_TIME: usize = 500;
/// How long a new node may take until it takes writes: servers wait two seconds after their start (`CLUSTER_WRITABLE_DELAY`).
const WRITABLE_LIMIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Makes both sides of each broken move know each other. `leaving` are the slots that were on their way from a lost shard.
pub(super) async fn mend(recovery: &Recovery, survey: &Survey, leaving: &SlotSet) -> Result<String> {
    let moves = broken(survey);
    let mut dropped = 0_u64;
    for one in &moves {
        if one.was_lost || leaving.contains(one.slot) {
            dropped = dropped.saturating_add(drop_copies(recovery, survey, one).await?);
        }
        if one.takes_anew {
            // A node takes no other's word about a slot that it imports (`clusterUpdateSlotsConfigWith`).
            set_slot(recovery, survey, (&one.to, one.slot), "NODE", &one.from).await?;
            set_slot(recovery, survey, (&one.to, one.slot), "IMPORTING", &one.from).await?;
        }
        set_slot(recovery, survey, (&one.from, one.slot), "MIGRATING", &one.to).await?;
    }
    Ok(format!("moves that can go on: {}; older copies of keys deleted: {dropped}", moves.len()))
}

/// Deletes what the living side of a move holds from the side that it was leaving.
pub(super) async fn drop_copies(
    recovery: &Recovery,
    survey: &Survey,
    Broken { slot, from, to, .. }: &Broken,
) -> Result<u64> {
    let mut taking = connect(recovery, survey, to).await?;
    let count = taking
        .call(&Command::new("CLUSTER").arg("COUNTKEYSINSLOT").arg_number(slot))
        .await?
        .as_u64()
        .unwrap_or(0);
    if count > MOST_KEYS {
        let what = format!("slot {slot} holds {count} keys on {}: too many to compare", survey.name(to));
        return Err(Error::new(ErrorKind::Unsupported, what).hint(format!(
            "finish its move by hand: keys that both sides hold are newer on {}",
            survey.name(to)
        )));
    }
    let reply =
        taking.call(&Command::new("CLUSTER").arg("GETKEYSINSLOT").arg_number(slot).arg_number(count)).await?;
    let keys: Vec<&[u8]> = reply.as_array().unwrap_or_default().iter().filter_map(Value::as_bytes).collect();
    if keys.is_empty() {
        return Ok(0);
    }
    let mut giving = connect(recovery, survey, from).await?;
    let began = recovery.context.clock.elapsed();
    let mut dropped = 0_u64;
    for some in keys.chunks(DELETED_AT_A_TIME) {
        loop {
            let reply = giving.exchange(&Command::new("DEL").args(some)).await?;
            let Some(text) = reply.as_error() else {
                dropped = dropped.saturating_add(reply.as_u64().unwrap_or(0));
                break;
            };
            // While a slot moves, a command on several keys of which some have gone is to be tried key by key.
            if text.starts_with("TRYAGAIN") || text.starts_with("ASK ") {
                dropped = dropped.saturating_add(one_by_one(&mut giving, some).await?);
                break;
            }
            let waited = recovery.context.clock.elapsed().saturating_sub(began);
            if !text.starts_with("CLUSTERDOWN") || waited > WRITABLE_LIMIT {
                return Err(Error::new(ErrorKind::Failed, format!("{}: DEL: {text}", survey.name(from)))
                    .hint("run this again when the cluster is up: it deletes older copies of keys that have moved"));
            }
            recovery.context.clock.sleep(LOOK_EVERY).await;
        }
    }
    Ok(dropped)
}

/// Deletes those of the keys that are there.
async fn one_by_one(connection: &mut Connection, keys: &[&[u8]]) -> Result<u64> {
    let mut dropped = 0_u64;
    for key in keys {
        let reply = connection.exchange(&Command::new("DEL").arg(key)).await?;
        match reply.as_error() {
            None => dropped = dropped.saturating_add(reply.as_u64().unwrap_or(0)),
            // It is not there.
            Some(text) if text.starts_with("ASK ") => {}
            Some(text) => {
                return Err(Error::new(ErrorKind::Failed, format!("{}: DEL: {text}", connection.node())));
            }
        }
    }
    Ok(dropped)
}

async fn set_slot(
    recovery: &Recovery,
    survey: &Survey,
    (node, slot): (&NodeId, Slot),
    state: &str,
    other: &NodeId,
) -> Result<()> {
    let mut connection = connect(recovery, survey, node).await?;
    let command = Command::new("CLUSTER").arg("SETSLOT").arg_number(slot).arg(state).arg(other.as_str());
    connection.call(&command).await?;
    Ok(())
}

async fn connect(recovery: &Recovery, survey: &Survey, id: &NodeId) -> Result<Connection> {
    let addr = survey.node(id).map(|node| node.addr.clone());
    let addr = addr.ok_or_else(|| surprise(format!("node {id} is gone")))?;
    Ok(recovery.context.connector.connect(&addr).await?)
}
