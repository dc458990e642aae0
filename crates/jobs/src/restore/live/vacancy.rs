//! What the target holds already: nothing, data in other slots, or data in the slots that are to be restored.

use slotkeep_model::{Slot, SlotSet, key_slot};
use slotkeep_wire::resp::Command;

use super::target::{SlotMap, TargetNode};
use crate::discover::{keys_of, read_info};
use crate::net::{LinkError, LinkProblem};
use crate::{Context, Error, ErrorKind, Result};

/// How many slots or keys are asked for at a time.
const ASKED_AT_A_TIME: usize = 1000;
/// How many slots a message names.
const NAMED_SLOTS: usize = 10;

/// How many keys a node holds, in all databases.
pub(super) async fn keys_on(context: &Context, node: &TargetNode) -> Result<u64> {
    let mut connection = context.connector.connect(&node.addr).await?;
    let info = read_info(&mut connection).await?;
    keys_of(&info).map_err(|error| {
        LinkError { node: node.addr.clone(), problem: LinkProblem::Protocol(error.to_string()) }.into()
    })
}

/// Refuses a target that holds keys: any at all, or with `allow_other_data` any in the slots `wanted`.
pub(super) async fn check(
    context: &Context,
    map: &SlotMap,
    wanted: &SlotSet,
    allow_other_data: bool,
) -> Result<()> {
    let mut found = Vec::new();
    let mut all = 0_u64;
    for node in &map.nodes {
        let keys = keys_on(context, node).await?;
        if keys > 0 {
            all = all.saturating_add(keys);
            found.push(format!("{}: {keys}", node.addr));
        }
    }
    if all == 0 {
        return Ok(());
    }
    if !allow_other_data {
        return Err(Error::new(ErrorKind::TargetNotEmpty, format!("the target holds {all} keys ({})", found.join(", ")))
            .hint("restore into an empty cluster; or, if that data is to stay, use --allow-other-data, or --on-conflict skip or replace"));
    }
    let mut taken: Vec<(Slot, u64)> = Vec::new();
    for node in &map.nodes {
        let slots: Vec<Slot> = node.slots.iter().filter(|slot| wanted.contains(*slot)).collect();
        taken.extend(if map.cluster_mode {
            count_by_slot(context, node, &slots).await?
        } else {
            scan_by_slot(context, node, &slots).await?
        });
    }
    if taken.is_empty() {
        return Ok(());
    }
    let keys: u64 = taken.iter().map(|(_, keys)| keys).sum();
    let mut named: Vec<String> =
        taken.iter().take(NAMED_SLOTS).map(|(slot, keys)| format!("{slot}: {keys}")).collect();
    if taken.len() > NAMED_SLOTS {
        named.push("…".to_owned());
    }
    let what = format!(
        "the target holds {keys} keys in {} slots of which the backup holds keys too ({})",
        taken.len(),
        named.join(", ")
    );
    Err(Error::new(ErrorKind::Conflict, what)
        .hint("restore into an empty cluster, or say what to do with keys that exist: --on-conflict skip or replace"))
}

/// The keys of those slots on a cluster node, slots without keys left out.
async fn count_by_slot(context: &Context, node: &TargetNode, slots: &[Slot]) -> Result<Vec<(Slot, u64)>> {
    let mut connection = context.connector.connect(&node.addr).await?;
    let mut taken = Vec::new();
    for some in slots.chunks(ASKED_AT_A_TIME) {
        let mut bytes = Vec::new();
        for slot in some {
            Command::new("CLUSTER").arg("COUNTKEYSINSLOT").arg_number(slot).encode_into(&mut bytes);
        }
        connection.send(&bytes).await?;
        for slot in some {
            let reply = connection.reply().await?;
            if let Some(text) = reply.as_error() {
                let problem = LinkProblem::from_reply("CLUSTER COUNTKEYSINSLOT", text);
                return Err(LinkError { node: node.addr.clone(), problem }.into());
            }
            if let Some(keys) = reply.as_u64().filter(|keys| *keys > 0) {
                taken.push((*slot, keys));
            }
        }
    }
    Ok(taken)
}

/// The same on a server without cluster mode, which does not know slots: by looking at every key of every database.
async fn scan_by_slot(context: &Context, node: &TargetNode, slots: &[Slot]) -> Result<Vec<(Slot, u64)>> {
    let mut connection = context.connector.connect(&node.addr).await?;
    let info = read_info(&mut connection).await?;
    let odd = |words: String| LinkError { node: node.addr.clone(), problem: LinkProblem::Protocol(words) };
    let databases = info.keyspace().map_err(|error| odd(error.to_string()))?;
    let mut counts = vec![0_u64; usize::from(Slot::COUNT)];
    for database in databases.keys() {
        connection.call(&Command::new("SELECT").arg_number(database)).await?;
        let mut cursor = "0".to_owned();
        loop {
            let scan = Command::new("SCAN").arg(&cursor).arg("COUNT").arg_number(ASKED_AT_A_TIME);
            let reply = connection.call(&scan).await?;
            let Some([next, keys]) = reply.as_array() else {
                return Err(odd("SCAN gives no keys".to_owned()).into());
            };
            for key in keys.as_array().unwrap_or_default().iter().filter_map(|key| key.as_bytes()) {
                if let Some(count) = counts.get_mut(key_slot(key).index()) {
                    *count = count.saturating_add(1);
                }
            }
            next.as_text().unwrap_or("0").clone_into(&mut cursor);
            if cursor == "0" {
                break;
            }
        }
    }
    let count =
        |slot: &Slot| counts.get(slot.index()).copied().filter(|keys| *keys > 0).map(|keys| (*slot, keys));
    Ok(slots.iter().filter_map(count).collect())
}
