//! A recovery for people.

use std::time::Duration;

use slotkeep_jobs::recover::{Condition, Outcome, Plan, Remedy, ReplicaRow, ShardPlan, Verdict};

use crate::output::{bytes, count, seconds, table, table_text};

/// What was found and what is to be done.
pub(super) fn plan(plan: &Plan, only_looked: bool) -> String {
    let mut parts = vec![nodes(plan), shards(plan)];
    let losses: Vec<String> = plan
        .shards
        .iter()
        .filter_map(|shard| Some(format!("  slots {}: {}", shard.slots, shard.loss.as_ref()?.what)))
        .collect();
    if !losses.is_empty() {
        parts.push(format!("What is lost:\n{}", losses.join("\n")));
    }
    if !plan.steps.is_empty() {
        parts.push(steps(plan));
    }
    if !plan.open.is_empty() {
        parts.push(format!("Left to you:\n  {}", plan.open.join("\n  ")));
    }
    let closing = match plan.verdict {
        Verdict::Whole => "Every slot is served: there is nothing to recover.",
        Verdict::Recoverable if only_looked => "Nothing was changed. Add --yes to do it.",
        Verdict::NeedsDecision if only_looked && plan.steps.is_empty() => "Nothing was changed.",
        Verdict::NeedsDecision if only_looked => {
            "Nothing was changed. Add --yes to do these steps; what is left to you stays."
        }
        Verdict::Recoverable | Verdict::NeedsDecision => "",
    };
    parts.push(closing.to_owned());
    parts.retain(|part| !part.is_empty());
    parts.join("\n\n")
}

fn nodes(plan: &Plan) -> String {
    let mut rows = table(&["node", "role", "slots", "offset>", ""]);
    for node in &plan.nodes {
        rows.add_row([
            node.addr.to_string(),
            node.role.unwrap_or("?").to_owned(),
            node.slots.to_string(),
            node.offset.map(|offset| offset.to_string()).unwrap_or_default(),
            node.silent.as_deref().map(|why| without(why, &node.addr.to_string())).unwrap_or_default(),
        ]);
    }
    for stranger in &plan.strangers {
        rows.add_row(["", "stranger", "", "", stranger]);
    }
    table_text(&rows)
}

/// A reason without the address that it begins with.
fn without(why: &str, addr: &str) -> String {
    why.strip_prefix(addr).map_or(why, |rest| rest.trim_start_matches([':', ' '])).to_owned()
}

fn shards(plan: &Plan) -> String {
    let mut rows = table(&[
        "slots",
        "primary",
        "state",
        "replicas that answer",
        "in the repository up to",
        "to be done",
    ]);
    for shard in &plan.shards {
        rows.add_row([
            shard.slots.to_string(),
            shard.primary.clone().unwrap_or_else(|| "?".to_owned()),
            condition(shard.condition).to_owned(),
            replicas(&shard.replicas),
            archive(shard),
            to_do(shard),
        ]);
    }
    table_text(&rows)
}

const fn condition(condition: Condition) -> &'static str {
    match condition {
        Condition::Served => "served",
        Condition::NotJoined => "served, not known to all",
        Condition::PrimaryGone => "PRIMARY GONE",
        Condition::Lost => "LOST",
        Condition::Starting => "starting",
        Condition::OutOfReach => "OUT OF REACH",
        Condition::SplitBrain => "SPLIT BRAIN",
        Condition::Superseded => "SUPERSEDED",
    }
}

fn replicas(replicas: &[ReplicaRow]) -> String {
    let shown: Vec<String> = replicas
        .iter()
        .filter(|replica| replica.answers)
        .map(|replica| match (&replica.unfit, replica.lacks) {
            (Some(_), _) => format!("{} (unfit)", replica.addr),
            (None, Some(lack)) if lack.writes => format!("{} (lacks {})", replica.addr, bytes(lack.bytes)),
            (None, _) => replica.addr.clone(),
        })
        .collect();
    if shown.is_empty() { "-".to_owned() } else { shown.join(", ") }
}

fn archive(shard: &ShardPlan) -> String {
    let Some(reach) = &shard.archive else { return "-".to_owned() };
    let until = reach.written.and_then(|span| span.until.or(span.from));
    let until = until.map_or_else(
        || format!("offset {}", reach.end.offset),
        |until| until.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string(),
    );
    format!("{until} ({} + {} of log)", bytes(reach.rdb_bytes), bytes(reach.log_bytes))
}

fn to_do(shard: &ShardPlan) -> String {
    let replicas: Vec<String> = shard.new_replicas.iter().map(ToString::to_string).collect();
    match (&shard.remedy, replicas.as_slice()) {
        (remedy, []) => text_of(remedy),
        (Remedy::Nothing, _) => format!("new replicas: {}", replicas.join(", ")),
        (remedy, _) => format!("{}; new replicas: {}", text_of(remedy), replicas.join(", ")),
    }
}

fn text_of(remedy: &Remedy) -> String {
    match remedy {
        Remedy::Nothing => "-".to_owned(),
        Remedy::Promote { addr, .. } => format!("promote {addr}"),
        Remedy::Restore { nodes, .. } => {
            let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
            format!("restore to {}", nodes.join(", "))
        }
        Remedy::Fence { others, .. } if others.len() == 1 => "fence the other one".to_owned(),
        Remedy::Fence { .. } => "fence the others".to_owned(),
        Remedy::Join { .. } => "tell the others of it".to_owned(),
        Remedy::Wait { .. } => "see below".to_owned(),
    }
}

fn steps(plan: &Plan) -> String {
    let lines = plan.steps.iter().zip(1..).map(|(step, number): (_, u32)| {
        let time = seconds(Duration::from_millis(step.expected_ms));
        format!("  {number}. {} (about {time})\n     Risk: {}", step.what, step.risk)
    });
    let all: u64 = plan.steps.iter().fold(0, |sum, step| sum.saturating_add(step.expected_ms));
    let lines: Vec<String> = lines.collect();
    let restores = plan.shards.iter().any(|shard| matches!(shard.remedy, Remedy::Restore { .. }));
    let pace = format!(
        "\n  (data at {} a second, {})",
        bytes(plan.estimate.bytes_per_s),
        if plan.estimate.measured {
            "by the last drill"
        } else {
            "assumed: no drill has measured it (`slotkeep verify --depth drill`)"
        }
    );
    let pace = if restores { pace } else { String::new() };
    format!("Steps, about {} in all:\n{}{pace}", seconds(Duration::from_millis(all)), lines.join("\n"))
}

/// What was done.
pub(super) fn outcome(outcome: &Outcome) -> String {
    let mut lines: Vec<String> = outcome
        .done
        .iter()
        .map(|done| format!("{}: {} ({})", done.what, done.result, seconds(Duration::from_millis(done.ms))))
        .collect();
    if let Some(stopped) = &outcome.stopped {
        lines.push(format!("STOPPED before the end of: {}", stopped.what));
        lines.push(format!("  why: {}", stopped.why));
        lines.push(format!("  now: {}", stopped.now));
    }
    if !outcome.started.is_empty() {
        let nodes = outcome
            .started
            .iter()
            .map(|node| format!("{} with {} keys (process {})", node.addr, count(node.keys), node.pid));
        lines.push(format!("New nodes: {}", nodes.collect::<Vec<_>>().join(", ")));
    }
    if !outcome.filled.is_empty() {
        let nodes = outcome.filled.iter().map(|node| format!("{} with {} keys", node.addr, count(node.keys)));
        lines.push(format!("Nodes that were filled: {}", nodes.collect::<Vec<_>>().join(", ")));
    }
    format!("{}\n\n{}", lines.join("\n"), plan(&outcome.after, false))
}
