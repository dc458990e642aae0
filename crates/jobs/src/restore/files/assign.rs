//! Which new address takes which part: primaries spread over hosts, no replica on its primary's host where that can be avoided.

use std::collections::BTreeMap;

use slotkeep_model::NodeAddr;

/// The new addresses of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ShardAddrs {
    pub(super) primary: NodeAddr,
    pub(super) replicas: Vec<NodeAddr>,
}

/// Gives each shard its addresses: `replicas` says how many replicas each has. `None` unless there are exactly as many
/// addresses as nodes.
pub(super) fn assign(addrs: &[NodeAddr], replicas: &[usize]) -> Option<Vec<ShardAddrs>> {
    let wanted = replicas.iter().fold(replicas.len(), |sum, count| sum.saturating_add(*count));
    if wanted != addrs.len() {
        return None;
    }
    let mut spread = round_robin(addrs);
    let rest = spread.split_off(replicas.len());
    let mut shards: Vec<ShardAddrs> =
        spread.into_iter().map(|primary| ShardAddrs { primary, replicas: vec![] }).collect();
    // One row a replica: the shard it belongs to.
    let owners: Vec<usize> =
        replicas.iter().enumerate().flat_map(|(shard, count)| std::iter::repeat_n(shard, *count)).collect();
    let allowed = |replica: usize, addr: usize| {
        let primary = owners.get(replica).and_then(|shard| shards.get(*shard));
        primary.zip(rest.get(addr)).is_some_and(|(shard, addr)| shard.primary.host() != addr.host())
    };
    let taken = match_up(owners.len(), rest.len(), allowed);
    for (addr, shard) in
        rest.iter().zip(taken).filter_map(|(addr, replica)| Some((addr, owners.get(replica?)?)))
    {
        if let Some(shard) = shards.get_mut(*shard) {
            shard.replicas.push(addr.clone());
        }
    }
    Some(shards)
}

/// [`assign`], each shard's addresses in a row, its primary's first.
pub(crate) fn assign_nodes(addrs: &[NodeAddr], replicas: &[usize]) -> Option<Vec<Vec<NodeAddr>>> {
    let row = |shard: ShardAddrs| std::iter::once(shard.primary).chain(shard.replicas).collect();
    Some(assign(addrs, replicas)?.into_iter().map(row).collect())
}

/// The addresses in an order that visits every host before it visits one again; as given where there is but one host.
fn round_robin(addrs: &[NodeAddr]) -> Vec<NodeAddr> {
    let mut visits: BTreeMap<&str, usize> = BTreeMap::new();
    let mut turns: Vec<(usize, &NodeAddr)> = addrs
        .iter()
        .map(|addr| {
            let turn = visits.entry(addr.host()).or_default();
            *turn += 1;
            (*turn, addr)
        })
        .collect();
    // A stable sort: within a turn the order is as given.
    turns.sort_by_key(|(turn, _)| *turn);
    turns.into_iter().map(|(_, addr)| addr.clone()).collect()
}

/// Which replica takes each address: as many as possible where it is allowed, the others anywhere (augmenting paths).
fn match_up(replicas: usize, addrs: usize, allowed: impl Fn(usize, usize) -> bool) -> Vec<Option<usize>> {
    let mut taken: Vec<Option<usize>> = vec![None; addrs];
    let mut left_over = Vec::new();
    for replica in 0..replicas {
        let mut seen = vec![false; addrs];
        if !place(replica, &mut taken, &mut seen, &allowed) {
            left_over.push(replica);
        }
    }
    let mut left_over = left_over.into_iter();
    for free in taken.iter_mut().filter(|taken| taken.is_none()) {
        *free = left_over.next();
    }
    taken
}

/// Finds a place for a replica, moving others if need be. The depth of the recursion is at most the number of addresses.
fn place(
    replica: usize,
    taken: &mut [Option<usize>],
    seen: &mut [bool],
    allowed: &impl Fn(usize, usize) -> bool,
) -> bool {
    for addr in 0..taken.len() {
        if !allowed(replica, addr) || seen.get(addr).copied().unwrap_or(true) {
            continue;
        }
        if let Some(seen) = seen.get_mut(addr) {
            *seen = true;
        }
        let holder = taken.get(addr).copied().flatten();
        if holder.is_none_or(|holder| place(holder, taken, seen, allowed)) {
            if let Some(taken) = taken.get_mut(addr) {
                *taken = Some(replica);
            }
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(text: &str) -> Vec<NodeAddr> {
        text.split(' ').map(|addr| addr.parse().unwrap()).collect()
    }

    fn apart(shards: &[ShardAddrs]) -> bool {
        shards.iter().all(|shard| shard.replicas.iter().all(|replica| replica.host() != shard.primary.host()))
    }

    #[test]
    fn on_one_host_the_first_addresses_become_primaries() {
        let shards = assign(&addrs("h:1 h:2 h:3 h:4"), &[1, 1]).unwrap();
        assert_eq!(shards[0], ShardAddrs { primary: addrs("h:1")[0].clone(), replicas: addrs("h:3") });
        assert_eq!(shards[1], ShardAddrs { primary: addrs("h:2")[0].clone(), replicas: addrs("h:4") });
    }

    #[test]
    fn replicas_keep_away_from_their_primaries_where_hosts_allow() {
        for (nodes, replicas) in [
            ("a:1 a:2 b:1 b:2 c:1 c:2", &[1, 1, 1][..]),
            ("a:1 a:2 a:3 b:1 b:2 b:3", &[1, 1, 1]),
            ("a:1 b:1 c:1", &[2]),
            ("a:1 a:2 a:3 b:1 c:1 c:2", &[0, 2, 1]),
        ] {
            let shards = assign(&addrs(nodes), replicas).unwrap();
            assert!(apart(&shards), "{nodes}: {shards:?}");
            let counts: Vec<usize> = shards.iter().map(|shard| shard.replicas.len()).collect();
            assert_eq!(counts, replicas);
        }
    }

    #[test]
    fn where_hosts_do_not_allow_it_every_node_still_has_its_part() {
        let shards = assign(&addrs("a:1 a:2 a:3 a:4 a:5 b:1"), &[1, 1, 1]).unwrap();
        assert!(!apart(&shards));
        assert!(shards.iter().all(|shard| shard.replicas.len() == 1));
    }

    #[test]
    fn another_number_of_addresses_is_refused() {
        assert_eq!(assign(&addrs("a:1 a:2"), &[1, 1]), None);
        assert_eq!(assign(&addrs("a:1 a:2 a:3"), &[1]), None);
    }
}
