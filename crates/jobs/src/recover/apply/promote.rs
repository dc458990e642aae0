//! Making a replica a primary.

use std::time::Duration;

use slotkeep_model::{NodeId, Role, SlotSet};
use slotkeep_wire::resp::Command;

use super::{Recovery, Watch};
use crate::recover::facts::Survey;
use crate::recover::plan::How;
use crate::recover::survey::ask;
use crate::{Error, ErrorKind, Result};

/// How long one attempt may take: a server gives a manual failover up after five seconds (`CLUSTER_MF_TIMEOUT`).
const ATTEMPT: Duration = Duration::from_secs(6);
/// How long it is tried in all. Primaries give no second vote in a shard for twice their node timeout, 15 s by default.
const PATIENCE: Duration = Duration::from_secs(45);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Makes a replica the primary of those slots, and waits until it calls them its own.
pub(super) async fn promote(
    recovery: &Recovery,
    survey: &Survey,
    (node, slots): (&NodeId, &SlotSet),
    how: How,
    watch: &dyn Watch,
) -> Result<String> {
    let context = &recovery.context;
    let addr = survey.node(node).map(|node| node.addr.clone());
    let addr =
        addr.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("nobody knows where node {node} is")))?;
    let began = context.clock.elapsed();
    let mut command = Command::new("CLUSTER").arg("FAILOVER");
    match how {
        How::Graceful => {}
        How::Force => command.push("FORCE"),
        How::Takeover => command.push("TAKEOVER"),
    }
    let mut refused = None;
    loop {
        let mut connection = context.connector.connect(&addr).await?;
        let reply = connection.exchange(&command).await?;
        if let Some(text) = reply.as_error() {
            refused = Some(text.to_owned());
        }
        let attempted = context.clock.elapsed();
        while context.clock.elapsed().saturating_sub(attempted) < ATTEMPT {
            let word = context
                .unless_stopped(async { ask(context, &addr).await.map_err(|miss| miss.error) })
                .await?;
            if word.role == Role::Primary && word.own_slots().intersection(slots) == *slots {
                return Ok(format!("{addr} is the primary, by {}, at offset {}", how.command(), word.offset));
            }
            context.clock.sleep(LOOK_EVERY).await;
        }
        if context.clock.elapsed().saturating_sub(began) > PATIENCE {
            break;
        }
        watch.note(&format!("  {addr} is not elected yet; asking again"));
    }
    let said = refused.map(|text| format!(" (it answers: {text})")).unwrap_or_default();
    Err(Error::new(
        ErrorKind::Failed,
        format!("{addr} has not become a primary within {} s by {}{said}", PATIENCE.as_secs(), how.command()),
    )
    .hint("it is a replica as before; see its log for why. Run this again when its links to the other primaries are up"))
}
