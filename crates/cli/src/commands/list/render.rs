//! A list as it is printed.

use slotkeep_format::Severity;
use slotkeep_jobs::log::windows::{HistoryNode, NodeLog, Restorable, ShardWindow};

use super::{ClusterMoments, List, Proved, Row};
use crate::commands::backup::source_text;
use crate::output::{bytes, count, seconds, table, table_text};

/// What marks an end of a log behind which there may be more.
const UNKNOWN: &str = " ??";

pub(super) fn render(list: &List, now: jiff::Timestamp) -> String {
    let mut parts = vec![render_backups(list, now)];
    parts.extend(list.restorable.iter().map(|of| {
        let mut unreadable = list.unreadable_histories.iter().map(|unread| &unread.cluster);
        let mut unseen = list.unreadable_topologies.iter().map(|unread| &unread.cluster);
        let is_doubtful =
            unreadable.any(|name| *name == of.cluster) || unseen.any(|name| *name == of.cluster);
        render_moments(of, is_doubtful)
    }));
    parts.join("\n\n")
}

/// `is_doubtful`: whether a record can't be read without which moments can't be told.
fn render_moments(of: &ClusterMoments, is_doubtful: bool) -> String {
    let mut lines = Vec::new();
    let Restorable { moments, shards } = &of.restorable;
    let shards: Vec<&ShardWindow> = shards.iter().filter(|shard| !is_base_alone(shard)).collect();
    if of.history.is_none() || !shards.is_empty() {
        let widest = shards.iter().filter_map(|shard| shard.uncertainty_ms).max();
        let width = widest.map(|ms| {
            format!(" (of writes that came just before a moment, the last {ms} ms may be missing)")
        });
        lines.push(format!(
            "Moments of `{}` that can be restored, by the servers' clocks{}:",
            of.cluster,
            width.unwrap_or_default()
        ));
        if moments.is_empty() {
            let none = if is_doubtful {
                "  none that can be told: where a history comes from, or how the cluster looked, can't be read"
            } else {
                "  none besides those of the backups: there is no other at which a base and the log of every shard are there"
            };
            lines.push(none.to_owned());
        }
        for (number, span) in moments.iter().enumerate() {
            if let Some(before) = number.checked_sub(1).and_then(|before| moments.get(before)) {
                let what = if is_doubtful { "GAP, or not known: " } else { "GAP " };
                lines.push(format!("  {what} {} to {}", moment(before.to), moment(span.from)));
            }
            lines.push(format!("  from {} to {}", moment(span.from), moment(span.to)));
        }
        let mut rows = table(&["  slots", "from", "to", "history", "offsets>"]);
        for shard in &shards {
            let ends = shard.moments.map(|span| (moment(span.from), moment(span.to)));
            let (mut from, mut to) = ends.unwrap_or_else(|| ("?".to_owned(), "?".to_owned()));
            from.push_str(if shard.unread_before.is_some() { UNKNOWN } else { "" });
            to.push_str(if shard.unread_behind.is_some() { UNKNOWN } else { "" });
            rows.add_row([
                format!("  {}", shard.slots),
                from,
                to,
                shard.history.to_string(),
                format!("{}-{}", shard.from.offset, shard.to.offset),
            ]);
        }
        lines.push(table_text(&rows));
        if shards.iter().any(|shard| shard.unread_before.is_some() || shard.unread_behind.is_some()) {
            lines.push(format!(
                " {UNKNOWN} what comes before, or where the log was left, can't be told until `slotkeep repair` has made a record again"
            ));
        }
    }
    for node in of.history.iter().flatten() {
        lines.push(render_node(node, of.history.as_deref().unwrap_or_default()));
    }
    lines.join("\n")
}

/// Whether nothing is there but a base, as of each backup of a shard to which nothing was written meanwhile: the backup is listed.
fn is_base_alone(shard: &ShardWindow) -> bool {
    shard.from.offset == shard.to.offset
        && shard.moments.is_none()
        && shard.unread_before.is_none()
        && shard.unread_behind.is_none()
}

/// A history, indented below the one that it comes from.
fn render_node(node: &HistoryNode, all: &[HistoryNode]) -> String {
    let mut depth = 0_usize;
    let mut above = node.parent.as_ref();
    while let Some(parent) = above.filter(|_| depth < all.len()) {
        let Some(next) = all.iter().find(|other| other.history == parent.history) else { break };
        depth += 1;
        above = next.parent.as_ref();
    }
    let indent = "   ".repeat(depth);
    let mut lines = vec![match &node.parent {
        Some(parent) => format!(
            "{indent}└─ {} goes on behind offset {} of {}",
            node.history, parent.offset, parent.history
        ),
        None => {
            let unread = node.unread.as_ref();
            let unread =
                unread.map(|object| format!("; where it comes from can't be told: {object} can't be read"));
            format!("\n{indent}{}, slots {}{}", node.history, node.slots, unread.unwrap_or_default())
        }
    }];
    let pad = format!("{indent}   ");
    let mut rows: Vec<(u64, String)> = node
        .bases
        .iter()
        .map(|base| {
            let of = base
                .backup
                .as_ref()
                .map_or_else(|| "in no backup yet".to_owned(), |id| format!("backup {id}"));
            (base.offset, format!("{pad}base at {} ({of})", base.offset))
        })
        .collect();
    let mut last: Option<u64> = None;
    for log in &node.log {
        if let Some(last) = last {
            rows.push((
                last.saturating_add(1),
                format!("{pad}GAP  {} to {}", last.saturating_add(1), log.first.saturating_sub(1)),
            ));
        }
        rows.push((log.first, format!("{pad}log  {}", stretch(log))));
        last = Some(log.last);
    }
    rows.sort_by_key(|(offset, _)| *offset);
    lines.extend(rows.into_iter().map(|(_, line)| line));
    if let Some(tail) = &node.divergent {
        lines.push(format!("{pad}not part of what followed: {}", stretch(tail)));
    }
    lines.join("\n")
}

fn stretch(log: &NodeLog) -> String {
    let when = log.written.map(|span| match (span.from, span.until) {
        (Some(from), Some(until)) => format!(", {} to {}", moment(from), moment(until)),
        (Some(at), None) | (None, Some(at)) => format!(", {}", moment(at)),
        (None, None) => String::new(),
    });
    let length = log.last.saturating_sub(log.first).saturating_add(1);
    format!("{} to {} ({}{})", log.first, log.last, bytes(length), when.unwrap_or_default())
}

fn moment(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

fn kind(backup: &Row) -> String {
    let source = backup.source.map(|source| format!(", {}", source_text(source))).unwrap_or_default();
    format!("{}{source}{}", backup.kind, if backup.partial { ", partial" } else { "" })
}

/// The moment that a backup holds; from when to when it was read, if it did not come over replication links.
fn as_of(backup: &Row) -> String {
    let moment = |at: jiff::Timestamp| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string();
    match backup.read {
        None => moment(backup.cut.unwrap_or(backup.finished_at)),
        Some(read) if moment(read.from) == moment(read.until) => moment(read.from),
        Some(read) => format!("{} to {}", moment(read.from), read.until.strftime("%H:%M:%SZ")),
    }
}

fn render_backups(list: &List, now: jiff::Timestamp) -> String {
    if list.backups.is_empty() && list.unreadable.is_empty() {
        return format!("{} holds no backup yet.", list.repository);
    }
    let mut rows =
        table(&["cluster", "id", "kind", "as of", "server", "shards>", "keys>", "RDB>", "stored>", "proved"]);
    for backup in &list.backups {
        rows.add_row([
            backup.cluster.clone(),
            backup.id.clone(),
            kind(backup),
            as_of(backup),
            backup.server.clone(),
            backup.shards.to_string(),
            backup.keys.map_or_else(|| "?".to_owned(), count),
            bytes(backup.rdb_bytes),
            bytes(backup.stored_bytes),
            proved_text(backup.proved.as_ref(), now),
        ]);
    }
    for backup in &list.unreadable {
        rows.add_row([backup.cluster.as_str(), &backup.id, "UNREADABLE"]);
    }
    table_text(&rows)
}

fn proved_text(proved: Option<&Proved>, now: jiff::Timestamp) -> String {
    let Some(proved) = proved else { return "never".to_owned() };
    let age = std::time::Duration::try_from(now.duration_since(proved.at)).unwrap_or_default();
    let sample = proved.sample_percent.map(|percent| format!(" ({percent} %)")).unwrap_or_default();
    let flaw = match proved.worst {
        Severity::Ok | Severity::Note => "",
        Severity::Warning => ": WARNING",
        Severity::Problem => ": PROBLEM",
    };
    let rto = proved.rto_ms.map(|ms| format!(", RTO {}", seconds(std::time::Duration::from_millis(ms))));
    let rto = rto.unwrap_or_default();
    format!("{}{sample}{flaw}, {} ago{rto}", proved.depth, indicatif::HumanDuration(age))
}
