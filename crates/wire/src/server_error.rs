//! What an error reply means.
//!
//! Source of the words: `createSharedObjects` in `src/server.c`, `clusterRedirectClient` in `src/cluster.c`,
//! `addAuthErrReply` and `aclErrorMsg` in `src/acl.c` of Redis 6.2 to 8.8 and Valkey 7.2 to 9.1.

use slotkeep_model::{NodeAddr, Slot};

/// An error reply, sorted by what one has to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerError {
    /// `NOAUTH`: the connection must authenticate first.
    AuthRequired,
    /// `WRONGPASS` or `invalid password`; also a password given to a server that has none.
    WrongPassword,
    /// `NOPERM`: the user may not run the command, or not on this key or channel.
    NoPermission {
        /// The command that is refused (`psync`, `config|get`), if the reply names it.
        command: Option<String>,
    },
    /// `LOADING`: the server is reading its dataset from disk.
    Loading,
    /// `MOVED`: another node serves the slot.
    Moved(Redirect),
    /// `ASK`: another node has the key while the slot moves; go there once, with `ASKING`.
    Ask(Redirect),
    /// `CLUSTERDOWN`: the cluster, or the slot, is not served.
    ClusterDown,
    /// `TRYAGAIN`: the keys of one command are split over two nodes while the slot moves.
    TryAgain,
    /// `CROSSSLOT`: the keys of one command are in more than one slot.
    CrossSlot,
    /// `BUSYKEY`: `RESTORE` without `REPLACE` on a key that exists.
    BusyKey,
    /// `OOM`: `maxmemory` is reached.
    OutOfMemory,
    /// `MASTERDOWN`: a replica without its primary, with `replica-serve-stale-data no`.
    PrimaryDown,
    /// `NOMASTERLINK`: a replica without its primary, or one in a failover, is asked to feed a replica.
    NoPrimaryLink,
    /// `READONLY`: a write to a replica.
    ReadOnly,
    /// `MISCONF`: the server cannot save to disk and therefore refuses writes.
    CannotPersist,
    /// `NOREPLICAS`: fewer replicas than `min-replicas-to-write`.
    NotEnoughReplicas,
    /// `BUSY`: a script or function has been running for too long.
    Busy,
    /// `max number of clients reached`.
    TooManyClients,
    /// The server could not fork or save for a replica (`BGSAVE failed, replication can't continue`).
    SnapshotFailed,
    /// The command or subcommand does not exist on this server, or is renamed or blocked.
    UnknownCommand {
        /// The command or subcommand, if the reply names it.
        command: Option<String>,
    },
    /// Anything else, as it came.
    Other(String),
}

/// Where `MOVED` and `ASK` point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The slot in question.
    pub slot: Slot,
    /// The host; `None` when the server leaves it out, as `cluster-preferred-endpoint-type unknown-endpoint` makes it do, or
    /// gives `?`: then it is the host that was dialled.
    pub host: Option<String>,
    /// The TCP port.
    pub port: u16,
}

impl Redirect {
    /// The address to go to, for a connection that was made to `dialled`.
    pub fn addr(&self, dialled: &NodeAddr) -> NodeAddr {
        NodeAddr::new(self.host.as_deref().unwrap_or(dialled.host()), self.port)
    }

    /// Reads `<slot> <host>:<port>`; an IPv6 address stands there without brackets.
    fn parse(text: &str) -> Option<Self> {
        let (slot, endpoint) = text.split_once(' ')?;
        let slot = Slot::new(slot.parse().ok()?)?;
        let (host, port) = endpoint.trim_end().rsplit_once(':')?;
        let host = Some(host).filter(|host| !host.is_empty() && *host != "?").map(str::to_owned);
        Some(Self { slot, host, port: port.parse().ok()? })
    }
}

impl ServerError {
    /// Sorts the text of an error reply, with or without its leading `-`.
    pub fn classify(text: &str) -> Self {
        let text = text.strip_prefix('-').unwrap_or(text).trim_end();
        let (code, rest) = text.split_once(' ').unwrap_or((text, ""));
        let other = || Self::Other(text.to_owned());
        match code {
            "NOAUTH" => Self::AuthRequired,
            "WRONGPASS" => Self::WrongPassword,
            "NOPERM" => Self::NoPermission { command: denied_command(rest) },
            "LOADING" => Self::Loading,
            "MOVED" => Redirect::parse(rest).map_or_else(other, Self::Moved),
            "ASK" => Redirect::parse(rest).map_or_else(other, Self::Ask),
            "CLUSTERDOWN" => Self::ClusterDown,
            "TRYAGAIN" => Self::TryAgain,
            "CROSSSLOT" => Self::CrossSlot,
            "BUSYKEY" => Self::BusyKey,
            "OOM" => Self::OutOfMemory,
            "MASTERDOWN" => Self::PrimaryDown,
            "NOMASTERLINK" => Self::NoPrimaryLink,
            "READONLY" => Self::ReadOnly,
            "MISCONF" => Self::CannotPersist,
            "NOREPLICAS" => Self::NotEnoughReplicas,
            "BUSY" => Self::Busy,
            "ERR" => Self::classify_generic(rest).unwrap_or_else(other),
            _ => other(),
        }
    }

    /// Sorts what servers send under the general code `ERR`.
    fn classify_generic(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let names = |part: &str| lower.contains(part);
        Some(if names("unknown command") || names("unknown subcommand") {
            Self::UnknownCommand { command: quoted(text) }
        } else if names("invalid password")
            || (names("auth") && names("password") && names("without any"))
            || names("no password is set")
        {
            Self::WrongPassword
        } else if names("operation not permitted") {
            Self::AuthRequired
        } else if names("max number of clients") {
            Self::TooManyClients
        } else if names("bgsave failed")
            || names("replication can't continue")
            || names("unable to perform background save")
        {
            Self::SnapshotFailed
        } else {
            return None;
        })
    }

    /// Whether the same request may succeed a little later without anybody changing anything.
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Loading
                | Self::ClusterDown
                | Self::TryAgain
                | Self::PrimaryDown
                | Self::NoPrimaryLink
                | Self::NotEnoughReplicas
                | Self::Busy
                | Self::TooManyClients
                | Self::SnapshotFailed
        )
    }
}

/// The command in `… no permissions to run the 'psync' command`.
fn denied_command(text: &str) -> Option<String> {
    let (_, after) = text.split_once("run the ")?;
    quoted(after)
}

/// What stands between the first quotation mark (`'` or a backquote, by version) and the next one.
fn quoted(text: &str) -> Option<String> {
    let (_, after) = text.split_once(['\'', '`'])?;
    let (name, _) = after.split_once(['\'', '`'])?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests;
