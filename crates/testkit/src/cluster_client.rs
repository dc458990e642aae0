//! A client of a whole cluster: sends each command to the node that serves its key, and follows redirections.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use slotkeep_model::{Slot, key_slot};

use crate::client::{Client, Endpoint, command_name};
use crate::deadline::{Deadline, NotYet};
use crate::error::{Error, Result};
use crate::resp::Value;

/// How long a command is tried again while the cluster cannot serve it.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long one node may take to answer before another look at the cluster.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of a cluster, or of one server without cluster mode.
#[derive(Debug)]
pub struct ClusterClient {
    seeds: Vec<Endpoint>,
    connections: HashMap<SocketAddr, Client>,
    /// Where each slot is served; empty when that is to be looked up.
    owners: Vec<Option<SocketAddr>>,
    patience: Duration,
}

/// A command and the key that decides where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyedCommand {
    key: Vec<u8>,
    args: Vec<Vec<u8>>,
}

impl KeyedCommand {
    /// A command whose first argument is its key.
    pub fn new<A: AsRef<[u8]>>(args: &[A]) -> Self {
        let key = args.get(1).map(|key| key.as_ref().to_vec()).unwrap_or_default();
        Self::on(key, args)
    }

    /// A command whose key stands elsewhere.
    pub fn on<A: AsRef<[u8]>>(key: impl Into<Vec<u8>>, args: &[A]) -> Self {
        Self { key: key.into(), args: args.iter().map(|arg| arg.as_ref().to_vec()).collect() }
    }

    /// How many bytes its arguments have, without its name.
    pub(crate) fn payload_bytes(&self) -> u64 {
        let bytes: usize = self.args.iter().skip(1).map(Vec::len).sum();
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

/// Where a command was told to go instead.
enum Redirect {
    Moved(SocketAddr),
    Ask(SocketAddr),
}

impl ClusterClient {
    /// Connects to a cluster through any of these nodes. How to log in is taken from the first and holds for all.
    pub fn connect(seeds: Vec<Endpoint>) -> Result<Self> {
        let seeds = seeds.into_iter().map(|seed| seed.with_timeout(NODE_TIMEOUT)).collect();
        let mut client = Self { seeds, connections: HashMap::new(), owners: Vec::new(), patience: PATIENCE };
        client.refresh()?;
        Ok(client)
    }

    /// How long a command is tried again while its slot has no node that serves it; 30 s unless set.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Sends a command whose first argument is its key.
    ///
    /// It is tried again when a connection breaks or the slot is not served for a moment: a write may be done twice then.
    pub fn command<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<Value> {
        let key = args.get(1).map(|key| key.as_ref().to_vec()).unwrap_or_default();
        self.command_on(&key, args)
    }

    /// Sends a command to the node that serves `key`, for commands whose key is not their first argument.
    pub fn command_on<A: AsRef<[u8]>>(&mut self, key: &[u8], args: &[A]) -> Result<Value> {
        let slot = key_slot(key);
        Deadline::after(self.patience).wait_for(&format!("slot {slot} to be served"), || {
            match self.attempt(slot, args) {
                Ok(Value::Error(message)) if is_passing(&message) => {
                    self.owners.clear();
                    Err(NotYet::because(message))
                }
                Ok(Value::Error(message)) => {
                    Err(NotYet::Never(Error::Reply { command: command_name(args), message }))
                }
                Ok(value) => Ok(value),
                Err(error) => {
                    self.owners.clear();
                    self.connections.clear();
                    Err(error.into())
                }
            }
        })
    }

    /// Sends a command to the node that serves `key`, once: it is sent again only where a server has refused to do it. An error that
    /// is no reply leaves open whether it was done.
    pub fn command_once_on<A: AsRef<[u8]>>(&mut self, key: &[u8], args: &[A]) -> Result<Value> {
        let slot = key_slot(key);
        let mut broken = None;
        let outcome =
            Deadline::after(self.patience).wait_for(&format!("slot {slot} to be served"), || {
                match self.attempt(slot, args) {
                    Ok(Value::Error(message)) if is_passing(&message) => {
                        self.owners.clear();
                        Err(NotYet::because(message))
                    }
                    Ok(Value::Error(message)) => {
                        Err(NotYet::Never(Error::Reply { command: command_name(args), message }))
                    }
                    Ok(value) => Ok(Some(value)),
                    Err(error) => {
                        self.owners.clear();
                        self.connections.clear();
                        broken = Some(error);
                        Ok(None)
                    }
                }
            })?;
        match (outcome, broken) {
            (Some(value), _) => Ok(value),
            (None, Some(error)) => Err(error),
            (None, None) => Err(Error::Protocol { reason: "no reply and no error".to_owned() }),
        }
    }

    /// Sends commands to their nodes all at once, in order for each node. An error reply is an [`Error::Reply`], except that
    /// what was sent to the wrong node or at a bad moment is sent again.
    pub fn pipeline(&mut self, commands: &[KeyedCommand]) -> Result<Vec<Value>> {
        let owners: Vec<SocketAddr> =
            commands.iter().map(|command| self.owner(key_slot(&command.key))).collect::<Result<_>>()?;
        for (addr, command) in owners.iter().zip(commands) {
            self.connection(*addr)?.send(&command.args)?;
        }
        let mut replies = Vec::with_capacity(commands.len());
        for addr in &owners {
            replies.push(self.connection(*addr)?.receive()?);
        }
        for (reply, command) in replies.iter_mut().zip(commands) {
            let Value::Error(message) = &*reply else { continue };
            if !is_passing(message) && redirect(reply).is_none() {
                let command = command_name(&command.args);
                return Err(Error::Reply { command, message: message.clone() });
            }
            *reply = self.command_on(&command.key, &command.args)?;
        }
        Ok(replies)
    }

    /// The node that serves a slot, as last heard.
    pub fn owner(&mut self, slot: Slot) -> Result<SocketAddr> {
        if self.owners.is_empty() {
            self.refresh()?;
        }
        self.owners
            .get(slot.index())
            .copied()
            .flatten()
            .ok_or_else(|| Error::Setup { reason: format!("nobody serves slot {slot}") })
    }

    /// The addresses of all nodes that serve slots.
    pub fn primaries(&mut self) -> Result<Vec<SocketAddr>> {
        self.refresh()?;
        let mut primaries: Vec<SocketAddr> = self.owners.iter().flatten().copied().collect();
        primaries.sort_unstable();
        primaries.dedup();
        Ok(primaries)
    }

    /// How to connect to a node of this cluster.
    pub fn endpoint(&self, addr: SocketAddr) -> Result<Endpoint> {
        self.seeds
            .first()
            .map(|seed| seed.at(addr))
            .ok_or_else(|| Error::Setup { reason: "a client needs a node to start from".to_owned() })
    }

    /// The connection to a node, made if there is none.
    pub fn connection(&mut self, addr: SocketAddr) -> Result<&mut Client> {
        let endpoint = self.endpoint(addr)?;
        match self.connections.entry(addr) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => Ok(entry.insert(Client::connect(&endpoint)?)),
        }
    }

    fn attempt<A: AsRef<[u8]>>(&mut self, slot: Slot, args: &[A]) -> Result<Value> {
        let addr = self.owner(slot)?;
        let reply = self.exchange(addr, args, false)?;
        match redirect(&reply) {
            None => Ok(reply),
            Some(Redirect::Ask(addr)) => self.exchange(addr, args, true),
            Some(Redirect::Moved(addr)) => {
                // One slot that moved is a hint that others did too.
                self.owners.clear();
                self.exchange(addr, args, false)
            }
        }
    }

    fn exchange<A: AsRef<[u8]>>(&mut self, addr: SocketAddr, args: &[A], asking: bool) -> Result<Value> {
        let client = self.connection(addr)?;
        if asking {
            client.command(&["ASKING"])?;
        }
        client.send(args)?;
        client.receive()
    }

    /// Asks the nodes, one after another, until one says who serves what.
    fn refresh(&mut self) -> Result<()> {
        let mut last = Error::Setup { reason: "a client needs a node to start from".to_owned() };
        for seed in self.seeds.clone() {
            match self.read_owners(seed.addr) {
                Ok(owners) => {
                    self.owners = owners;
                    return Ok(());
                }
                Err(error) => {
                    self.connections.remove(&seed.addr);
                    last = error;
                }
            }
        }
        Err(last)
    }

    fn read_owners(&mut self, from: SocketAddr) -> Result<Vec<Option<SocketAddr>>> {
        let client = self.connection(from)?;
        match client.command(&["CLUSTER", "SLOTS"]) {
            Ok(reply) => parse_owners(&reply, from),
            Err(Error::Reply { message, .. }) if message.contains("cluster support disabled") => {
                Ok(vec![Some(from); usize::from(Slot::COUNT)])
            }
            Err(error) => Err(error),
        }
    }
}

/// Errors that go away by themselves: an election, a slot in flight, a server that loads.
fn is_passing(message: &str) -> bool {
    const PASSING: [&str; 6] = ["CLUSTERDOWN", "TRYAGAIN", "LOADING", "MASTERDOWN", "READONLY", "MOVED"];
    PASSING.iter().any(|word| message.starts_with(word))
}

fn redirect(reply: &Value) -> Option<Redirect> {
    let Value::Error(message) = reply else { return None };
    let mut words = message.split(' ');
    let kind = words.next()?;
    let addr = words.nth(1)?.parse().ok()?;
    match kind {
        "MOVED" => Some(Redirect::Moved(addr)),
        "ASK" => Some(Redirect::Ask(addr)),
        _ => None,
    }
}

/// Reads `CLUSTER SLOTS`: for each range its first and last slot, then its nodes, the primary first.
fn parse_owners(reply: &Value, from: SocketAddr) -> Result<Vec<Option<SocketAddr>>> {
    let mut owners = vec![None; usize::from(Slot::COUNT)];
    for range in reply.array()? {
        let [first, last, primary, ..] = range.array()? else {
            return Err(range.unexpected("a range of slots with its nodes"));
        };
        let [host, port, ..] = primary.array()? else { return Err(primary.unexpected("a node")) };
        // A node that has no address to tell is the one that was asked.
        let ip = host.text().ok().and_then(|host| host.parse().ok()).unwrap_or(from.ip());
        let port = u16::try_from(port.int()?).map_err(|_| port.unexpected("a port"))?;
        let index = |slot: &Value| usize::try_from(slot.int()?).map_err(|_| slot.unexpected("a slot"));
        let slots = owners.get_mut(index(first)?..=index(last)?).ok_or_else(|| range.unexpected("slots"))?;
        slots.fill(Some(SocketAddr::new(ip, port)));
    }
    Ok(owners)
}
