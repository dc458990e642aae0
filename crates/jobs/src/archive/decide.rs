//! Whether a stream goes on where it was left, and if not, why not.
//!
//! Source: `masterTryPartialResynchronization` in `src/replication.c` of Redis 6.2 to 8.8 (Valkey 7.2 to 9.1:
//! `primaryTryPartialResynchronization`): a request is granted for the server's own history, or for the one before up to where that
//! ended, if the backlog reaches back far enough and the server holds what was received already.

use std::fmt;

use slotkeep_model::{NodeAddr, ReplId, ReplOffset, Role};
use slotkeep_wire::info::{Backlog, Replication};

use crate::backup::Candidate;

/// Up to where a stream is held; a safe cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) history: ReplId,
    /// The last byte held.
    pub(crate) offset: u64,
    /// The database that is selected there, if it is known.
    pub(crate) database: Option<u32>,
}

impl Position {
    pub(crate) const fn next_offset(&self) -> u64 {
        self.offset.saturating_add(1)
    }
}

/// Why a node can't continue a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    node: NodeAddr,
    wanted: Position,
    current: ReplId,
    /// The node's last byte.
    offset: u64,
    reason: Reason,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Reason {
    /// The backlog begins later.
    Overrun(Backlog),
    /// There is none.
    NoBacklog,
    /// The node never had the last bytes that are held here.
    Diverged { fork: u64 },
    /// The node knows nothing of that history.
    OtherHistory,
}

impl Refusal {
    /// Whether bytes that are held here are no part of what the servers hold.
    pub(crate) const fn is_divergence(&self) -> bool {
        matches!(self.reason, Reason::Diverged { .. })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, wanted, current, offset, reason } = self;
        let next = wanted.next_offset();
        write!(f, "{node} can't continue history {} from offset {next} on: ", wanted.history)?;
        match reason {
            Reason::Overrun(backlog) => {
                let enough = offset.saturating_add(1).saturating_sub(next);
                write!(
                    f,
                    "its backlog holds offsets {} to {offset} (repl-backlog-size {}); {enough} bytes would have sufficed",
                    backlog.first_offset, backlog.size_bytes
                )
            }
            Reason::NoBacklog => f.write_str(
                "it holds no backlog (no replica was attached for repl-backlog-ttl, or it was restarted)",
            ),
            Reason::Diverged { fork } => write!(
                f,
                "it never had offsets {} to {} of it, its history is {current} since: a failover or restart lost those writes",
                fork.saturating_add(1),
                wanted.offset
            ),
            Reason::OtherHistory => write!(
                f,
                "its history is {current} (it was restarted, or took its data from another node since)"
            ),
        }
    }
}

/// Where a node stands relative to what is held.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    Continues,
    /// It has not yet received what is held here; it will.
    Behind,
    Gone(Refusal),
}

fn standing(wanted: &Position, candidate: &Candidate) -> Standing {
    let Replication { replid, previous_replid, previous_valid_to, offset, backlog, .. } =
        &candidate.replication;
    let refuse = |reason| {
        Standing::Gone(Refusal {
            node: candidate.addr.clone(),
            wanted: wanted.clone(),
            current: replid.clone(),
            offset: offset.0,
            reason,
        })
    };
    let next = wanted.next_offset();
    if *replid != wanted.history {
        if previous_replid.as_ref() != Some(&wanted.history) {
            return refuse(Reason::OtherHistory);
        }
        let valid_to = previous_valid_to.unwrap_or_default().0;
        if next > valid_to {
            return refuse(Reason::Diverged { fork: valid_to.saturating_sub(1) });
        }
    }
    if next > offset.0.saturating_add(1) {
        return match candidate.role {
            Role::Replica => Standing::Behind,
            Role::Primary => refuse(Reason::Diverged { fork: offset.0 }),
        };
    }
    match backlog {
        None => refuse(Reason::NoBacklog),
        Some(backlog) if backlog.continues_from(ReplOffset(next)) => Standing::Continues,
        Some(backlog) => refuse(Reason::Overrun(*backlog)),
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Continue on the candidate of that number.
    Continue(usize),
    /// Take a base; nothing was held, or the stream can't be continued.
    Base(Option<Refusal>),
    /// Look again later.
    Wait(&'static str),
}

/// Decides, given the nodes that can be captured, the preferred one first.
pub(crate) fn decide(held: Option<&Position>, candidates: &[Candidate]) -> Decision {
    if candidates.is_empty() {
        return Decision::Wait("no node of the shard can be followed");
    }
    let Some(held) = held else { return Decision::Base(None) };
    let standings: Vec<Standing> = candidates.iter().map(|candidate| standing(held, candidate)).collect();
    if let Some(number) = standings.iter().position(|standing| *standing == Standing::Continues) {
        return Decision::Continue(number);
    }
    // The primary's word counts: a replica may have a shorter backlog, or be about to learn of a failover.
    let of_primary = candidates.iter().zip(&standings).find(|(candidate, _)| candidate.role == Role::Primary);
    match of_primary {
        Some((_, Standing::Gone(refusal))) => Decision::Base(Some(refusal.clone())),
        Some(_) => Decision::Wait("the primary has not yet what was received before"),
        None => Decision::Wait("the primary does not answer, and no replica holds what comes next"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slotkeep_model::{Product, ServerVersion};

    fn id(letter: &str) -> ReplId {
        letter.repeat(40).parse().unwrap()
    }

    fn held(offset: u64) -> Position {
        Position { history: id("a"), offset, database: None }
    }

    fn node(role: Role, offset: u64, first: u64) -> Candidate {
        let replication = Replication {
            role,
            replid: id("a"),
            previous_replid: None,
            previous_valid_to: None,
            offset: ReplOffset(offset),
            backlog: Some(Backlog {
                size_bytes: 1000,
                first_offset: ReplOffset(first),
                held_bytes: offset + 1 - first,
            }),
            link: None,
            replicas: vec![],
        };
        Candidate {
            addr: NodeAddr::new("h", if role == Role::Primary { 1 } else { 2 }),
            role,
            server: ServerVersion::parse(Product::Valkey, "9.1.2").unwrap(),
            keys: 0,
            offset,
            replication,
        }
    }

    fn promoted(mut candidate: Candidate, valid_to: u64) -> Candidate {
        candidate.replication.replid = id("b");
        candidate.replication.previous_replid = Some(id("a"));
        candidate.replication.previous_valid_to = Some(ReplOffset(valid_to));
        candidate
    }

    #[test]
    fn the_preferred_node_continues_if_it_can() {
        let nodes = [node(Role::Replica, 500, 100), node(Role::Primary, 500, 1)];
        assert_eq!(decide(None, &nodes), Decision::Base(None));
        assert_eq!(decide(Some(&held(500)), &nodes), Decision::Continue(0));
        assert_eq!(decide(Some(&held(99)), &nodes), Decision::Continue(0));
        assert_eq!(decide(Some(&held(98)), &nodes), Decision::Continue(1));
    }

    #[test]
    fn a_replica_that_lags_is_waited_for_if_the_primary_is_gone() {
        let lagging = node(Role::Replica, 400, 1);
        assert!(matches!(decide(Some(&held(500)), &[lagging]), Decision::Wait(_)));
        assert!(matches!(decide(Some(&held(500)), &[]), Decision::Wait(_)));
    }

    #[test]
    fn after_a_failover_the_history_goes_on_up_to_the_fork() {
        let new = promoted(node(Role::Primary, 600, 1), 501);
        assert_eq!(decide(Some(&held(500)), std::slice::from_ref(&new)), Decision::Continue(0));
        let Decision::Base(Some(refusal)) = decide(Some(&held(501)), &[new]) else { panic!() };
        assert!(refusal.is_divergence());
        assert!(refusal.to_string().contains("never had offsets 501 to 501"), "{refusal}");
    }

    #[test]
    fn an_overrun_names_every_figure() {
        let Decision::Base(Some(refusal)) = decide(Some(&held(98)), &[node(Role::Primary, 500, 100)]) else {
            panic!()
        };
        let words = refusal.to_string();
        for figure in ["from offset 99 on", "offsets 100 to 500", "repl-backlog-size 1000", "402 bytes"] {
            assert!(words.contains(figure), "{figure}: {words}");
        }
    }

    #[test]
    fn a_restarted_server_knows_nothing_of_the_history() {
        let mut other = node(Role::Primary, 0, 1);
        other.replication.replid = id("c");
        let decision = decide(Some(&held(98)), &[other]);
        assert!(matches!(decision, Decision::Base(Some(Refusal { reason: Reason::OtherHistory, .. }))));
    }
}
