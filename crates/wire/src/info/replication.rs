//! Section `Replication`.

use slotkeep_model::{NodeAddr, ReplId, ReplOffset, Role};

use super::{Info, InfoError, part};

/// Where a server stands in its replication history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replication {
    /// Primary or replica.
    pub role: Role,
    /// The current history.
    pub replid: ReplId,
    /// The history before it, if the server can still continue that one.
    pub previous_replid: Option<ReplId>,
    /// The offset from which the previous history no longer counts: `PSYNC` with its id is accepted up to here.
    pub previous_valid_to: Option<ReplOffset>,
    /// A primary's last byte produced, a replica's last byte applied and passed on.
    pub offset: ReplOffset,
    /// The backlog; `None` while there is none.
    pub backlog: Option<Backlog>,
    /// A replica's link to its primary.
    pub link: Option<PrimaryLink>,
    /// The replicas that are attached, Slotkeep's own connections among them.
    pub replicas: Vec<ConnectedReplica>,
}

/// The part of the stream that the server still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// `repl-backlog-size`, in bytes.
    pub size_bytes: u64,
    /// The offset of the first byte held.
    pub first_offset: ReplOffset,
    /// How many bytes are held, which may be more than `size_bytes` while a slow replica needs them.
    pub held_bytes: u64,
}

impl Backlog {
    /// Whether the server can go on with the byte at `next_offset`, which may be one past the last byte it holds.
    pub fn continues_from(&self, next_offset: ReplOffset) -> bool {
        let first = self.first_offset.0;
        first <= next_offset.0 && next_offset.0 <= first.saturating_add(self.held_bytes)
    }
}

/// A replica's link to its primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrimaryLink {
    /// The primary's address, as the replica dials it.
    pub primary: NodeAddr,
    /// Whether the link is up: only then does the replica feed replicas of its own.
    pub up: bool,
    /// Whether the replica is receiving or loading a snapshot.
    pub sync_in_progress: bool,
    /// Seconds since something came from the primary; `None` if the link is down.
    pub idle_seconds: Option<u64>,
}

/// A replica, as its primary sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectedReplica {
    /// Its IP address, or what it announced.
    pub ip: String,
    /// The port it announced; 0 if none.
    pub port: u16,
    /// `wait_bgsave`, `send_bulk`, `online`, or a newer server's word.
    pub state: String,
    /// The offset it acknowledged last.
    pub offset: ReplOffset,
    /// Seconds since it acknowledged last.
    pub lag_seconds: Option<u64>,
}

impl Replication {
    pub(super) fn from_info(info: &Info) -> Result<Self, InfoError> {
        let role = match info.get("role") {
            Some("master" | "primary") => Role::Primary,
            Some("slave" | "replica") => Role::Replica,
            _ => return Err(info.wrong("role", "master or slave")),
        };
        let previous_replid = info.get("master_replid2").and_then(|id| id.parse().ok());
        let no_history = |id: &ReplId| id.as_str().bytes().all(|byte| byte == b'0');
        Ok(Self {
            role,
            replid: info.parsed("master_replid", "a replication id")?,
            previous_replid: previous_replid.filter(|id| !no_history(id)),
            // -1 while there is no previous history.
            previous_valid_to: info.number("second_repl_offset").ok().map(ReplOffset),
            offset: ReplOffset(info.number("master_repl_offset")?),
            backlog: backlog(info)?,
            link: if role == Role::Replica { Some(link(info)?) } else { None },
            replicas: replicas(info)?,
        })
    }
}

fn backlog(info: &Info) -> Result<Option<Backlog>, InfoError> {
    if !info.flag("repl_backlog_active")? {
        return Ok(None);
    }
    Ok(Some(Backlog {
        size_bytes: info.number("repl_backlog_size")?,
        first_offset: ReplOffset(info.number("repl_backlog_first_byte_offset")?),
        held_bytes: info.number("repl_backlog_histlen")?,
    }))
}

fn link(info: &Info) -> Result<PrimaryLink, InfoError> {
    let host = info.get("master_host").ok_or_else(|| info.wrong("master_host", "a host"))?;
    Ok(PrimaryLink {
        primary: NodeAddr::new(host, info.parsed("master_port", "a port")?),
        up: info.get("master_link_status") == Some("up"),
        sync_in_progress: info.flag("master_sync_in_progress")?,
        idle_seconds: info.number("master_last_io_seconds_ago").ok(),
    })
}

/// The fields `slave0`, `slave1` and so on.
fn replicas(info: &Info) -> Result<Vec<ConnectedReplica>, InfoError> {
    let fields = info.sections().iter().flat_map(|section| &section.fields);
    let numbered = |name: &str| {
        let digits = name.strip_prefix("slave").or_else(|| name.strip_prefix("replica"));
        digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
    };
    fields
        .filter(|(name, _)| numbered(name))
        .map(|(name, value)| replica(value).ok_or_else(|| info.wrong(name, "ip=…,port=…,state=…,offset=…")))
        .collect()
}

fn replica(value: &str) -> Option<ConnectedReplica> {
    Some(ConnectedReplica {
        ip: part(value, "ip")?.to_owned(),
        port: part(value, "port")?.parse().ok()?,
        state: part(value, "state")?.to_owned(),
        offset: ReplOffset(part(value, "offset")?.parse().ok()?),
        lag_seconds: part(value, "lag").and_then(|lag| lag.parse().ok()),
    })
}
