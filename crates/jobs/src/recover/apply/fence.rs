//! Keeping the claimants that were not chosen from taking writes.

use slotkeep_model::NodeId;

use super::Recovery;
use crate::fence::{Action, Member, Plan};
use crate::recover::facts::Survey;
use crate::{Error, ErrorKind, Result};

/// Fences those nodes; what they had set before is written to the repository first.
pub(super) async fn fence(recovery: &Recovery, survey: &Survey, nodes: &[NodeId]) -> Result<String> {
    let context = &recovery.context;
    let Some(past) = &recovery.past else {
        return Err(
            Error::new(ErrorKind::Usage, "nowhere to keep what the nodes have set now").hint("give --repo")
        );
    };
    let (repository, cluster) = (past.repository(), past.cluster.as_str());
    let members = survey.words().filter(|(node, _)| nodes.contains(&node.id)).map(|(node, word)| Member {
        addr: node.addr.clone(),
        id: Some(node.id.clone()),
        slots: word.own_slots(),
    });
    let before = repository.fence(cluster).await?;
    let plan = Plan::make(context, Action::Fence { persist: false }, members.collect(), before).await?;
    if let Some(record) = plan.record(context)? {
        repository.put_fence(cluster, &record).await?;
    }
    let (outcome, _) = plan.run(context).await?;
    match outcome.open().next() {
        Some(node) => {
            let why = node.remark.as_deref().unwrap_or("it may take writes");
            Err(Error::new(ErrorKind::Failed, format!("{} is not fenced: {why}", node.addr))
                .hint("cut it off from its clients, or shut it down"))
        }
        None => {
            let names: Vec<String> = outcome.nodes.iter().map(|node| node.addr.to_string()).collect();
            Ok(format!("fenced: {}", names.join(", ")))
        }
    }
}
