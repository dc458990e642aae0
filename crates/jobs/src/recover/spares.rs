//! Addresses for new nodes: free, or to be left alone.

use std::net::{TcpListener, ToSocketAddrs};

use slotkeep_model::NodeAddr;

use super::facts::{SpareState, Word};

/// How far a node's bus port lies above its port.
const BUS_OFFSET: u16 = 10_000;

/// Why a node that answers and is none of the cluster's is no place for a new one.
pub(super) fn occupied(word: &Word) -> String {
    let others = word.rows.len().saturating_sub(1);
    match (others, word.keys) {
        (0, 0) => format!(
            "a node runs there (id {}): it is empty, but recover starts its nodes by itself: shut it down, or name another address",
            word.id
        ),
        (0, keys) => format!("a node runs there (id {}) and holds {keys} keys", word.id),
        (others, _) => {
            format!("a node of another cluster runs there (id {}, which knows {others} others)", word.id)
        }
    }
}

/// Whether a node can be started at an address: it is one of this machine's, and nobody listens there. What listened is let go at once.
pub(super) fn vacancy(addr: &NodeAddr) -> SpareState {
    let Some(bus_port) = addr.port().checked_add(BUS_OFFSET) else {
        return SpareState::Taken("its bus port, 10000 above, would be more than 65535".to_owned());
    };
    for port in [addr.port(), bus_port] {
        let resolved = (addr.host(), port).to_socket_addrs().ok().and_then(|mut found| found.next());
        let Some(socket) = resolved else {
            return SpareState::Taken("its name can't be resolved here".to_owned());
        };
        if let Err(error) = TcpListener::bind(socket) {
            return SpareState::Taken(format!("no node can be started there: port {port}: {error}"));
        }
    }
    SpareState::Free
}
