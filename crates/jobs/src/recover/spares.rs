//! Addresses for new nodes: free, or with a node that runs and is empty or somebody has begun to fill, or to be left alone.

use std::net::{TcpListener, ToSocketAddrs};

use slotkeep_model::{NodeAddr, Role};
use slotkeep_wire::resp::{Command, Value};

use super::facts::{EmptyNode, LeftNode, SpareState, Word};
use crate::discover::read_info;
use crate::net::Connection;
use crate::{Context, Error, ErrorKind, Result};

/// How far a node's bus port lies above its port.
const BUS_OFFSET: u16 = 10_000;

/// What a node that answers and is none of the cluster's is good for. It is empty if it is in cluster mode, knows nobody, and holds neither
/// slots nor keys nor functions; and then it must be able to follow the others, which ask for a password if we need one.
pub(super) async fn look_at(context: &Context, addr: &NodeAddr, word: &Word) -> SpareState {
    if let Some(why) = occupied(word) {
        return SpareState::Taken(why);
    }
    match ask(context, addr, word).await {
        Ok(state) => state,
        Err(error) => SpareState::Taken(format!("a node runs there, which does not tell how it is: {error}")),
    }
}

/// Why a node is no place for a new one, by its own word.
fn occupied(word: &Word) -> Option<String> {
    let (id, others) = (&word.id, word.rows.len().saturating_sub(1));
    if others > 0 {
        return Some(format!("a node of another cluster runs there (id {id}, which knows {others} others)"));
    }
    if word.role != Role::Primary {
        return Some(format!("a replica runs there (id {id})"));
    }
    // Keys come after slots, and go before them.
    (word.keys > 0 && word.own_slots().is_empty()).then(|| {
        format!("a node runs there (id {id}) and holds {} keys: if they may go, FLUSHALL and CLUSTER RESET HARD there", word.keys)
    })
}

/// Asks a node that is alone for what it does not tell everybody.
async fn ask(context: &Context, addr: &NodeAddr, word: &Word) -> Result<SpareState> {
    let mut connection = context.connector.connect(addr).await?;
    let info = read_info(&mut connection).await?;
    let memory = info.memory().map_err(|error| Error::new(ErrorKind::Failed, format!("{addr}: {error}")))?;
    let (slots, epoch) = (word.own_slots(), word.own_row().map_or(0, |row| row.config_epoch));
    // Servers before 7.0 know no functions. Where they are filled in, the slots are there already.
    let functions = connection.exchange(&Command::new("FUNCTION").arg("LIST")).await?;
    if slots.is_empty() && functions.as_array().is_some_and(|libraries| !libraries.is_empty()) {
        let why = "an empty node runs there that holds function libraries: FUNCTION FLUSH there";
        return Ok(SpareState::Taken(why.to_owned()));
    }
    let of_default = context.connector.credentials().is_some_and(|known| known.user.is_none());
    if of_default && setting(&mut connection, "masterauth").await?.is_none_or(|value| value.is_empty()) {
        let kind = if slots.is_empty() { "an empty node" } else { "a node" };
        return Ok(SpareState::Taken(format!(
            "{kind} runs there that has no password for its primary, and the cluster wants one: set masterauth there"
        )));
    }
    // A config epoch can be set once only (`CLUSTER SET-CONFIG-EPOCH`): with one, it is not empty.
    let is_empty = slots.is_empty() && epoch == 0;
    let at_start = || info.get("used_memory_startup").and_then(|bytes| bytes.parse().ok());
    let used = if is_empty { memory.used_bytes } else { at_start().unwrap_or(0) };
    let free = memory.limit_bytes.saturating_sub(used);
    let node = EmptyNode {
        id: word.id.clone(),
        server: word.server,
        free_bytes: (memory.limit_bytes > 0).then_some(free),
    };
    Ok(if is_empty {
        SpareState::Empty(node)
    } else {
        SpareState::Left(LeftNode { node, slots, epoch, keys: word.keys })
    })
}

/// A setting of a server; nothing if it does not know it.
pub(super) async fn setting(connection: &mut Connection, name: &str) -> Result<Option<String>> {
    let reply = connection.call(&Command::new("CONFIG").arg("GET").arg(name)).await?;
    Ok(reply.get(name).and_then(Value::as_text).map(str::to_owned))
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
            return SpareState::Taken(format!(
                "no server answers there, and none can be started from here: port {port}: {error}"
            ));
        }
    }
    SpareState::Free
}
