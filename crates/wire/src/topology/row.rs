//! One node's line in `CLUSTER NODES` and in `nodes.conf`, which differ only in the extra fields of the address.

use slotkeep_model::{NodeAddr, NodeId, Role, Slot, SlotRange, SlotSet};

use super::error::TopologyError;

/// The bus port is the client port plus this unless it is given.
pub(crate) const BUS_PORT_DISTANCE: u16 = 10_000;

/// A node's flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the server's own flags, any of which may be set together")]
pub struct NodeFlags {
    /// It is the node that answers.
    pub myself: bool,
    /// `fail?`: the answering node cannot reach it.
    pub suspected: bool,
    /// `fail`: the majority of primaries cannot reach it.
    pub failed: bool,
    /// `handshake`: not yet a member; its id is not its own yet.
    pub handshake: bool,
    /// `noaddr`: its address is not known.
    pub no_address: bool,
    /// `nofailover`: a replica that will not be promoted.
    pub no_failover: bool,
    /// Flags that no version known here writes.
    pub unknown: Vec<String>,
}

/// One node, as the answering node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// The node's id.
    pub id: NodeId,
    /// The IP address; empty if it is not known.
    pub ip: String,
    /// The client port: the one that matches the asking connection since Redis 7.2 and in Valkey, before that the TLS port
    /// only with `tls-cluster yes`; 0 if it is not known.
    pub port: u16,
    /// The cluster bus port.
    pub bus_port: u16,
    /// The announced host name (7.0+).
    pub hostname: Option<String>,
    /// Further fields of the address (`shard-id`, `tcp-port`, `tls-port`, …), in their order.
    pub aux: Vec<(String, String)>,
    /// The flags, the role left out.
    pub flags: NodeFlags,
    /// Primary or replica; a node in handshake may be neither.
    pub role: Option<Role>,
    /// The id of the replica's primary.
    pub primary: Option<NodeId>,
    /// The epoch of a primary's slots; a replica shows its primary's.
    pub config_epoch: u64,
    /// Whether the bus link to it is up.
    pub link_up: bool,
    /// The slots it owns.
    pub slots: SlotSet,
    /// Slots on their way out, with their destinations. Shown for `myself` only.
    pub migrating: Vec<(Slot, NodeId)>,
    /// Slots on their way in, with their sources. Shown for `myself` only.
    pub importing: Vec<(Slot, NodeId)>,
}

impl NodeRow {
    /// Reads a line; `line` is its number, for errors.
    pub(crate) fn parse(text: &str, line: usize) -> Result<Self, TopologyError> {
        let bad = |found: &str, expected| TopologyError::BadField { line, found: found.to_owned(), expected };
        let mut fields = text.split_ascii_whitespace();
        let mut next = |expected| fields.next().ok_or_else(|| bad("", expected));
        let id = next(NODE_ID)?;
        let address = next(ADDRESS)?;
        let flags = next("the node's flags")?;
        let primary = next("the primary's id, or `-`")?;
        for expected in ["the time of a ping", "the time of a pong"] {
            let time = next(expected)?;
            time.parse::<u64>().map_err(|_| bad(time, expected))?;
        }
        let epoch = next(EPOCH)?;
        let bus_link = next("the bus link's state")?;

        let id: NodeId = id.parse().map_err(|_| bad(id, NODE_ID))?;
        let mut row = Self::unclaimed(id, address).ok_or_else(|| bad(address, ADDRESS))?;
        row.set_flags(flags);
        row.primary = match primary {
            "-" => None,
            id => Some(id.parse().map_err(|_| bad(id, "the primary's id, or `-`"))?),
        };
        row.config_epoch = epoch.parse().map_err(|_| bad(epoch, EPOCH))?;
        row.link_up = bus_link == "connected";
        let mut ranges = Vec::new();
        for item in fields {
            row.add_slots(item, &mut ranges)
                .ok_or_else(|| bad(item, "a slot, a range or a move of a slot"))?;
        }
        row.slots = ranges.into_iter().collect();
        Ok(row)
    }

    /// A row of that address without flags and slots.
    fn unclaimed(id: NodeId, address: &str) -> Option<Self> {
        let mut parts = address.split(',');
        let (endpoint, bus_port) = match parts.next()?.split_once('@') {
            Some((endpoint, bus_port)) => (endpoint, Some(bus_port.parse().ok()?)),
            None => (address, None),
        };
        let (ip, port) = endpoint.rsplit_once(':')?;
        let port: u16 = port.parse().ok()?;
        let hostname = parts.next().filter(|name| !name.is_empty()).map(str::to_owned);
        let aux =
            parts.map(|part| part.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())));
        Some(Self {
            id,
            ip: ip.to_owned(),
            port,
            bus_port: bus_port.unwrap_or_else(|| port.saturating_add(BUS_PORT_DISTANCE)),
            hostname,
            aux: aux.collect::<Option<_>>()?,
            flags: NodeFlags::default(),
            role: None,
            primary: None,
            config_epoch: 0,
            link_up: false,
            slots: SlotSet::default(),
            migrating: Vec::new(),
            importing: Vec::new(),
        })
    }

    fn set_flags(&mut self, text: &str) {
        for flag in text.split(',') {
            match flag {
                "myself" => self.flags.myself = true,
                "master" | "primary" => self.role = Some(Role::Primary),
                "slave" | "replica" => self.role = Some(Role::Replica),
                "fail?" => self.flags.suspected = true,
                "fail" => self.flags.failed = true,
                "handshake" => self.flags.handshake = true,
                "noaddr" => self.flags.no_address = true,
                "nofailover" => self.flags.no_failover = true,
                "noflags" | "" => {}
                unknown => self.flags.unknown.push(unknown.to_owned()),
            }
        }
    }

    /// Takes `5`, `0-4`, `[93->-id]` (migrating) or `[93-<-id]` (importing).
    fn add_slots(&mut self, item: &str, ranges: &mut Vec<SlotRange>) -> Option<()> {
        let slot = |digits: &str| digits.parse().ok().and_then(Slot::new);
        if let Some(moving) = item.strip_prefix('[') {
            let moving = moving.strip_suffix(']')?;
            if let Some((number, to)) = moving.split_once("->-") {
                self.migrating.push((slot(number)?, to.parse().ok()?));
            } else {
                let (number, from) = moving.split_once("-<-")?;
                self.importing.push((slot(number)?, from.parse().ok()?));
            }
            return Some(());
        }
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        ranges.push(SlotRange::new(slot(first)?, slot(last)?)?);
        Some(())
    }

    /// The value of a further field of the address, such as `shard-id`.
    pub fn aux(&self, name: &str) -> Option<&str> {
        self.aux.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether the cluster takes the node for a member that lives.
    pub const fn is_online(&self) -> bool {
        !(self.flags.suspected || self.flags.failed || self.flags.handshake || self.flags.no_address)
    }

    /// Where to dial the node. A node that does not know its own address is where it was dialled; a host that is not known
    /// is the empty text, and the node is then not online.
    pub fn addr(&self, dialled: &NodeAddr, tls: bool) -> NodeAddr {
        if self.flags.myself && self.ip.is_empty() {
            return dialled.clone();
        }
        let host = if self.ip.is_empty() { self.hostname.as_deref().unwrap_or_default() } else { &self.ip };
        let listed = self.aux(if tls { "tls-port" } else { "tcp-port" }).and_then(|port| port.parse().ok());
        NodeAddr::new(host, listed.filter(|port| *port != 0).unwrap_or(self.port))
    }
}

const NODE_ID: &str = "a node id of forty characters";
const ADDRESS: &str = "an address as in `ip:port@busport`";
const EPOCH: &str = "a config epoch";
