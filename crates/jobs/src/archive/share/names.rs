//! Which line a shard is: a name that lasts.
//!
//! Nothing that a server says of a shard lasts as long as the shard. Histories end with failovers and restarts, primaries and slots change, and
//! ids of shards are told from Redis 7.2 and Valkey 7.2 on only. So a line's name is chosen once (its first primary's id), and its lease says which
//! nodes the shard had when its holder saw it last. A shard is the line with which it has its primary in common, or its primary once was a replica of, or
//! else any node ([`match_lines`]); a shard that is no line's gets a new one. All agents read the same leases, and come to the same names.
//!
//! Two that see different things for a moment may come to two names for one shard. Then two lines hold the same bytes for a while, which
//! is waste and no harm: segments may overlap. The one that is not found again ends.

use slotkeep_model::Shard;

use crate::archive::fleet::match_lines;

/// The name of the only shard of a standalone server.
const STANDALONE: &str = "standalone";

/// A line that there is a lease of.
#[derive(Clone, Debug)]
pub(crate) struct KnownLine {
    pub(crate) name: String,
    /// Its shard; nothing if that is gone.
    pub(crate) shard: Option<Shard>,
    /// Whether somebody follows it.
    pub(crate) is_followed: bool,
}

/// The name of the line of each shard.
pub(crate) fn name_shards(mut known: Vec<KnownLine>, shards: &[Shard]) -> Vec<String> {
    // The same order for all: what is followed first.
    known.sort_by(|one, other| (!one.is_followed, &one.name).cmp(&(!other.is_followed, &other.name)));
    let living: Vec<(&String, Shard)> =
        known.iter().filter_map(|line| Some((&line.name, line.shard.clone()?))).collect();
    let followed: Vec<Shard> = living.iter().map(|(_, shard)| shard.clone()).collect();
    let matched = match_lines(&followed, shards);
    let mut names: Vec<String> = Vec::new();
    for (shard, number) in shards.iter().zip(matched) {
        let name = number.and_then(|number| living.get(number)).map(|(name, _)| (*name).clone());
        names.push(name.unwrap_or_else(|| new_name(shard, &known, &names)));
    }
    names
}

fn new_name(shard: &Shard, known: &[KnownLine], given: &[String]) -> String {
    let id = shard.primary.id.as_ref().map_or(STANDALONE, |id| id.as_str());
    let is_free = |name: &String| {
        let of_another =
            known.iter().any(|line| line.name == *name && (line.shard.is_some() || line.is_followed));
        !of_another && !given.contains(name)
    };
    let numbered = (2_u64..).map(|number| format!("{id}-{number}"));
    std::iter::once(id.to_owned()).chain(numbered).find(is_free).unwrap_or_else(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use slotkeep_model::{Node, NodeAddr, Role, SlotSet};

    fn id(number: u16) -> String {
        format!("{number:040}")
    }

    fn shard(primary: u16, replicas: &[u16]) -> Shard {
        let node = |number: u16, role| Node {
            id: Some(id(number).parse().unwrap()),
            addr: NodeAddr::new("h", number),
            role,
            online: true,
        };
        Shard {
            slots: SlotSet::default(),
            config_epoch: 0,
            primary: node(primary, Role::Primary),
            replicas: replicas.iter().map(|number| node(*number, Role::Replica)).collect(),
        }
    }

    fn line(name: u16, shard: Shard, is_followed: bool) -> KnownLine {
        KnownLine { name: id(name), shard: Some(shard), is_followed }
    }

    #[test]
    fn a_name_outlives_failovers_and_all_nodes() {
        assert_eq!(name_shards(vec![], &[shard(1, &[4])]), [id(1)]);
        // The holder has said what it saw last; who was there at the first is gone.
        let known = vec![line(1, shard(4, &[7]), true), line(2, shard(2, &[]), false)];
        assert_eq!(name_shards(known.clone(), &[shard(7, &[]), shard(2, &[5])]), [id(1), id(2)]);
        assert_eq!(name_shards(known, &[shard(2, &[]), shard(9, &[]), shard(4, &[])]), [id(2), id(9), id(1)]);
    }

    #[test]
    fn a_node_that_comes_back_as_another_shard_gets_another_name() {
        let known = vec![line(1, shard(4, &[]), true)];
        assert_eq!(name_shards(known, &[shard(4, &[]), shard(1, &[])]), [id(1), format!("{}-2", id(1))]);
        // The name of a line that has ended is free.
        let ended = KnownLine { name: id(1), shard: None, is_followed: false };
        assert_eq!(name_shards(vec![ended], &[shard(1, &[])]), [id(1)]);
    }

    #[test]
    fn of_two_lines_of_one_shard_all_choose_the_one_that_is_followed() {
        let known = vec![line(1, shard(1, &[4]), false), line(4, shard(4, &[1]), true)];
        assert_eq!(name_shards(known, &[shard(4, &[1])]), [id(4)]);
        let both = vec![line(4, shard(4, &[1]), true), line(1, shard(4, &[1]), true)];
        assert_eq!(name_shards(both, &[shard(4, &[1])]), [id(1)]);
    }
}
