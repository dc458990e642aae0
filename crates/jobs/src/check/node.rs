//! The checks of one node, each on facts already gathered.
//!
//! Source of the limits' meaning: `src/replication.c`, `src/networking.c` and `src/config.c` of Redis 6.2 to 8.8 and Valkey 7.2
//! to 9.1.

use slotkeep_model::Role;
use slotkeep_rdb::{Level, Parser};

use super::facts::{Answers, NodeFacts};
use super::finding::{Finding, Findings, Subject, size, span};
use super::permissions;

/// How fast a snapshot is assumed to travel: what is slower only on a thin link. In bytes a second.
const TRANSFER_BYTES_PER_S: u64 = 50 << 20;
/// A snapshot's size against the memory its data takes, in per cent.
const SNAPSHOT_PERCENT: u64 = 80;
/// A backlog that holds less than this is too short for a reader that reconnects.
const LEAST_BACKLOG_S: u64 = 60;
/// What a suggested backlog should hold.
const GOOD_BACKLOG_S: u64 = 600;
/// A clock this far off is named.
pub(super) const CLOCK_TOLERANCE_MS: i64 = 1000;
/// A reader that is silent for less time than this must not be dropped.
const LEAST_REPL_TIMEOUT_S: u64 = 15;

/// Every finding about a node.
pub(super) fn judge(facts: &NodeFacts) -> Vec<Finding> {
    let mut out = Findings::about(Subject::Node(facts.addr.clone()));
    match &facts.answers {
        Err(error) => unreachable(facts, error, &mut out),
        Ok(answers) => {
            out.ok("reachable", format!("{}, {} keys", answers.server, answers.keys));
            version(answers, &mut out);
            permissions::judge(&answers.permissions, &mut out);
            persistence(answers, &mut out);
            memory(answers, &mut out);
            settings_readable(answers, &mut out);
            output_buffer(answers, &mut out);
            backlog(answers, &mut out);
            timeouts(answers, &mut out);
            diskless(answers, &mut out);
            enough_replicas(answers, &mut out);
            clock(answers, &mut out);
            replica_link(answers, &mut out);
        }
    }
    out.into_vec()
}

fn unreachable(facts: &NodeFacts, error: &crate::Error, out: &mut Findings) {
    if facts.online {
        let advice = error.advice().unwrap_or("check that it runs and can be reached from here");
        out.warning("reachable", error.to_string(), advice);
    } else {
        let what = format!("the cluster takes it for dead: {error}");
        out.warning("reachable", what, "bring it back, or remove it: CLUSTER FORGET on every other node");
    }
}

fn version(answers: &Answers, out: &mut Findings) {
    let rdb = answers.server.newest_rdb();
    let magic = rdb.to_string();
    let mut bytes = magic.as_bytes();
    match Parser::new(Level::Element).next(&mut bytes) {
        Ok(_) => out.ok("version", format!("{} writes {rdb}, which is understood", answers.server)),
        Err(_) => out.warning(
            "version",
            format!("{} writes {rdb}, which this Slotkeep does not know", answers.server),
            "a backup stores it whole, without index and digest; a newer Slotkeep may understand it",
        ),
    }
}

fn persistence(answers: &Answers, out: &mut Findings) {
    let state = answers.persistence;
    if state.loading {
        out.problem("snapshot", "it is loading its dataset", "wait until it has loaded");
    }
    if !state.last_bgsave_ok {
        out.warning(
            "snapshot",
            "its last snapshot failed: the next fork may fail too",
            "look into the server's log; usually memory (vm.overcommit_memory=1) or disk space is missing",
        );
    }
    if state.bgsave_in_progress || state.aof_rewrite_in_progress {
        out.note(
            "snapshot",
            "it is making a snapshot or rewriting its append-only file",
            "a backup that starts now waits for it to end",
        );
    } else if !state.loading && state.last_bgsave_ok {
        out.ok("snapshot", "nothing stands in the way of a fork");
    }
}

fn memory(answers: &Answers, out: &mut Findings) {
    let memory = answers.memory;
    let Some(system_bytes) = memory.system_bytes else {
        out.note(
            "memory",
            "the server does not tell its machine's memory",
            "see that there is room for a fork",
        );
        return;
    };
    let resident = memory.resident_bytes;
    let (resident_text, system_text) = (size(resident), size(system_bytes));
    if resident.saturating_mul(2) > system_bytes {
        out.warning(
            "memory",
            format!("it occupies {resident_text} of the machine's {system_text}: a fork under writes may run out"),
            "take the backup from a replica on another machine, or off-peak; vm.overcommit_memory=1 lets it fork at all",
        );
    } else {
        out.ok("memory", format!("it occupies {resident_text} of the machine's {system_text}: a fork fits"));
    }
}

fn settings_readable(answers: &Answers, out: &mut Findings) {
    if answers.settings.replica_buffer().is_none() && answers.settings.get("repl-timeout").is_none() {
        out.note(
            "limits",
            "its limits can't be read: no right to CONFIG GET, or the command is blocked",
            "allow +config|get, or check client-output-buffer-limit and repl-backlog-size by hand",
        );
    }
}

/// Seconds that a snapshot of the node takes to travel, and its size.
fn transfer(answers: &Answers) -> (u64, u64) {
    let snapshot_bytes = answers.memory.used_bytes / 100 * SNAPSHOT_PERCENT;
    (snapshot_bytes.div_ceil(TRANSFER_BYTES_PER_S).max(1), snapshot_bytes)
}

/// What is written during the transfer of a snapshot collects in the reader's output buffer.
fn output_buffer(answers: &Answers, out: &mut Findings) {
    let Some(limit) = answers.settings.replica_buffer() else { return };
    let rate = answers.written_bytes_per_s;
    let (seconds, snapshot_bytes) = transfer(answers);
    let collected = rate.saturating_mul(seconds);
    // From 7.0 on the hard limit is never taken lower than the backlog.
    let backlog = answers.settings.number("repl-backlog-size").unwrap_or(0);
    let hard = if limit.hard_bytes == 0 { u64::MAX } else { limit.hard_bytes.max(backlog) };
    let over_soft_after = if limit.soft_bytes == 0 { None } else { limit.soft_bytes.checked_div(rate) };
    let soft_cuts = over_soft_after.is_some_and(|after| after.saturating_add(limit.soft_seconds) < seconds);
    let exceeded = if collected > hard {
        format!("the hard limit {}", size(hard))
    } else if soft_cuts {
        format!("the soft limit {} for more than {}", size(limit.soft_bytes), span(limit.soft_seconds))
    } else {
        let text = format!(
            "{}/s written for some {} of transfer stays under the limits of class replica",
            size(rate),
            span(seconds)
        );
        return out.ok("output buffer", text);
    };
    let wanted = mebibytes(collected.saturating_mul(2));
    out.warning(
        "output buffer",
        format!(
            "at {}/s written, a snapshot of some {} that travels for {} lets {} collect in the reader's output \
             buffer, beyond {exceeded}: the server would cut the link",
            size(rate),
            size(snapshot_bytes),
            span(seconds),
            size(collected)
        ),
        format!(
            "take the backup off-peak, or raise the limit if memory allows: CONFIG SET client-output-buffer-limit \
             \"replica {wanted} {wanted} 60\""
        ),
    );
}

/// That many bytes rounded up to whole MiB.
const fn mebibytes(bytes: u64) -> u64 {
    (bytes >> 20).saturating_add(1) << 20
}

fn backlog(answers: &Answers, out: &mut Findings) {
    let active = answers.replication.backlog.map(|backlog| backlog.size_bytes);
    let Some(bytes) = active.or_else(|| answers.settings.number("repl-backlog-size")) else { return };
    let rate = answers.written_bytes_per_s;
    match bytes.checked_div(rate) {
        Some(seconds) if seconds < LEAST_BACKLOG_S => {
            let wanted = mebibytes(rate.saturating_mul(GOOD_BACKLOG_S));
            out.warning(
                "backlog",
                format!(
                    "its backlog of {} holds {} at {}/s: whoever reconnects later needs a full resynchronisation",
                    size(bytes),
                    span(seconds),
                    size(rate)
                ),
                format!("hold {}: CONFIG SET repl-backlog-size {wanted}", span(GOOD_BACKLOG_S)),
            );
        }
        Some(seconds) => {
            out.ok("backlog", format!("{} hold {} at {}/s", size(bytes), span(seconds), size(rate)));
        }
        None => out.ok("backlog", format!("{}; nothing was written while it was watched", size(bytes))),
    }
}

fn timeouts(answers: &Answers, out: &mut Findings) {
    let Some(timeout) = answers.settings.number("repl-timeout") else { return };
    let ping = answers.settings.number("repl-ping-replica-period").unwrap_or(0);
    if timeout < LEAST_REPL_TIMEOUT_S || timeout <= ping {
        out.warning(
            "timeouts",
            format!(
                "repl-timeout is {timeout} s, repl-ping-replica-period {ping} s: a short stall cuts the link"
            ),
            "CONFIG SET repl-timeout 60",
        );
    } else {
        out.ok("timeouts", format!("repl-timeout is {timeout} s"));
    }
}

fn diskless(answers: &Answers, out: &mut Findings) {
    if answers.settings.get("repl-diskless-sync") == Some("no") {
        out.note(
            "diskless",
            format!(
                "snapshots for replicas go through its disk, which needs some {} free",
                size(transfer(answers).1)
            ),
            "CONFIG SET repl-diskless-sync yes, if the disk is slow or nearly full",
        );
    }
}

/// A reader that acknowledges counts as a replica.
fn enough_replicas(answers: &Answers, out: &mut Findings) {
    let wanted = answers.settings.number("min-replicas-to-write").unwrap_or(0);
    if wanted > 0 {
        out.note(
            "replicas to write",
            format!("it takes writes only with {wanted} good replicas; while a backup follows it, that counts as one"),
            "do not count on min-replicas-to-write during a backup from this node",
        );
    }
}

fn clock(answers: &Answers, out: &mut Findings) {
    let Some(ahead_ms) = answers.clock_ahead_ms else { return };
    if ahead_ms.saturating_abs() > CLOCK_TOLERANCE_MS {
        let side = if ahead_ms > 0 { "ahead of" } else { "behind" };
        let off = ahead_ms.unsigned_abs();
        out.warning(
            "clock",
            format!("its clock is {}.{} s {side} this machine's", off / 1000, off % 1000 / 100),
            "expiry and times of backups are by the server's clock: synchronise the clocks (NTP)",
        );
    } else {
        out.ok("clock", format!("its clock and this machine's differ by {ahead_ms} ms"));
    }
}

fn replica_link(answers: &Answers, out: &mut Findings) {
    let replication = &answers.replication;
    let Some(link) = replication.link.as_ref().filter(|_| replication.role == Role::Replica) else { return };
    if link.sync_in_progress {
        out.note(
            "replica",
            "it is receiving a snapshot from its primary",
            "a backup passes it over until it has",
        );
    } else if !link.up {
        out.warning(
            "replica",
            format!("its link to its primary {} is down", link.primary),
            "see the server's log; a backup passes it over and takes the primary",
        );
    } else {
        out.ok("replica", format!("it follows {}", link.primary));
    }
}

#[cfg(test)]
pub(super) mod tests;
