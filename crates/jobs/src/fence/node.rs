//! One node: what it is, whether it would take writes, and how to keep it from that.
//!
//! `min-replicas-to-write` above any number of replicas makes a primary refuse every command that may write, in scripts and transactions
//! too, with `-NOREPLICAS`; it goes on expiring, replicating and serving reads (`processCommand` in `src/server.c`, `scriptVerifyWriteCommandAllow`
//! in `src/script.c`; tried on Redis 6.2 to 8.2 and Valkey 8.0 to 9.1). It needs `min-replicas-max-lag` other than 0, which turns it off. No
//! client command undoes it but `CONFIG SET`, and it does not run out. A replica keeps the setting for when it is promoted.

use std::time::Duration;

use serde::Serialize;
use slotkeep_format::FencedNode;
use slotkeep_model::{Role, Slot, SlotSet, key_slot};
use slotkeep_wire::resp::Command;

use super::Member;
use crate::discover::read_info;
use crate::net::{Connection, LinkError, LinkProblem};
use crate::ports::random_hex;
use crate::{Context, Error, ErrorKind, Result};

/// More replicas than any primary can have: the highest number that servers take.
pub(super) const NEVER: &str = "2147483647";
const TO_WRITE: &str = "min-replicas-to-write";
const MAX_LAG: &str = "min-replicas-max-lag";
/// What the lag is set to where it was 0: the servers' own default.
const LAG_S: &str = "10";
/// How long a server may take to be gone after `SHUTDOWN`; it waits ten seconds for its replicas.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(20);
const SHUTDOWN_LOOK: Duration = Duration::from_millis(100);

/// Whether a node may take writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Writes {
    /// It refuses them, and would as a primary.
    Fenced,
    /// It takes them.
    Taken,
    /// It is a replica and would take them if it were promoted.
    IfPromoted,
    /// It can't be asked: it may be gone, or be cut off with clients on its side.
    Unknown,
    /// It was shut down, and nothing answers there.
    Down,
}

impl Writes {
    /// Whether writes could land on the node, now or later.
    pub const fn are_possible(self) -> bool {
        matches!(self, Self::Taken | Self::IfPromoted | Self::Unknown)
    }
}

/// A node that was asked.
pub(super) struct Asked {
    pub(super) connection: Connection,
    pub(super) role: Role,
    pub(super) to_write: String,
    pub(super) max_lag: String,
}

impl Asked {
    /// Connects to a node and asks what it has set.
    pub(super) async fn ask(context: &Context, member: &Member) -> Result<Self> {
        let mut connection = context.connector.connect(&member.addr).await?;
        let info = read_info(&mut connection).await?;
        let replication = info.replication().map_err(|error| {
            let problem = LinkProblem::Protocol(error.to_string());
            Error::from(LinkError { node: member.addr.clone(), problem })
        })?;
        let to_write = setting(&mut connection, TO_WRITE).await?;
        let max_lag = setting(&mut connection, MAX_LAG).await?;
        Ok(Self { connection, role: replication.role, to_write, max_lag })
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.to_write == NEVER && self.max_lag != "0"
    }

    pub(super) fn writes(&self) -> Writes {
        match (self.is_fenced(), self.role) {
            (true, _) => Writes::Fenced,
            (false, Role::Primary) => Writes::Taken,
            (false, Role::Replica) => Writes::IfPromoted,
        }
    }

    /// What has to be put back.
    pub(super) fn record(&self, member: &Member, persisted: bool) -> FencedNode {
        FencedNode {
            addr: member.addr.clone(),
            id: member.id.clone(),
            min_replicas_to_write: self.to_write.clone(),
            min_replicas_max_lag: self.max_lag.clone(),
            persisted,
        }
    }

    /// Makes the node refuse writes, and looks whether it does.
    pub(super) async fn fence(&mut self, context: &Context, slots: &SlotSet, persist: bool) -> Result<()> {
        if self.max_lag == "0" {
            // Before the number: that alone would do nothing.
            set(&mut self.connection, MAX_LAG, LAG_S).await?;
        }
        set(&mut self.connection, TO_WRITE, NEVER).await?;
        if persist {
            rewrite(&mut self.connection).await?;
        }
        if self.role == Role::Primary { self.probe(context, slots).await } else { Ok(()) }
    }

    /// Tries to delete a key that does not exist: refused, it proves the fence; taken, it changes nothing.
    async fn probe(&mut self, context: &Context, slots: &SlotSet) -> Result<()> {
        let key = key_in(context, slots)?;
        let reply = self.connection.exchange(&Command::new("DEL").arg(key.as_str())).await?;
        match reply.as_error() {
            Some(_) => Ok(()),
            None => Err(Error::new(
                ErrorKind::Failed,
                format!("{}: it took a write although {TO_WRITE} is {NEVER}", self.connection.node()),
            )
            .hint("shut the node down, or cut it off from its clients")),
        }
    }

    /// Puts back what was set before.
    pub(super) async fn lift(&mut self, before: &FencedNode) -> Result<()> {
        set(&mut self.connection, TO_WRITE, &before.min_replicas_to_write).await?;
        if self.max_lag != before.min_replicas_max_lag {
            set(&mut self.connection, MAX_LAG, &before.min_replicas_max_lag).await?;
        }
        if before.persisted { rewrite(&mut self.connection).await } else { Ok(()) }
    }

    /// Shuts the node down, and waits until nothing answers there.
    pub(super) async fn shut_down(mut self, context: &Context, member: &Member) -> Result<()> {
        match self.connection.exchange(&Command::new("SHUTDOWN")).await {
            Ok(reply) => {
                if let Some(text) = reply.as_error() {
                    let problem = LinkProblem::from_reply("SHUTDOWN", text);
                    return Err(LinkError { node: member.addr.clone(), problem }.into());
                }
            }
            // That is the answer: it goes.
            Err(LinkError { problem: LinkProblem::Closed | LinkProblem::Io(_), .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let began = context.clock.elapsed();
        while context.connector.connect(&member.addr).await.is_ok() {
            if context.clock.elapsed().saturating_sub(began) > SHUTDOWN_LIMIT {
                return Err(Error::new(ErrorKind::Failed, format!("{}: it still answers", member.addr))
                    .hint("something starts it again (systemd, Kubernetes): stop it there"));
            }
            context.clock.sleep(SHUTDOWN_LOOK).await;
        }
        Ok(())
    }
}

/// A key of one of those slots that nobody has.
fn key_in(context: &Context, slots: &SlotSet) -> Result<String> {
    let stem = random_hex(&*context.rng, 32)?;
    let key = (0..=u32::from(Slot::COUNT) * 16)
        .map(|number| format!("slotkeep:fence:{stem}:{number}"))
        .find(|key| slots.is_empty() || slots.contains(key_slot(key.as_bytes())));
    Ok(key.unwrap_or(stem))
}

async fn setting(connection: &mut Connection, name: &'static str) -> Result<String> {
    let reply = connection.call(&Command::new("CONFIG").args(["GET", name])).await?;
    let value = reply.pairs().unwrap_or_default().into_iter().find_map(|(key, value)| {
        (key.as_text()? == name).then(|| value.as_text().map(str::to_owned)).flatten()
    });
    value.ok_or_else(|| {
        let problem = LinkProblem::Protocol(format!("CONFIG GET {name} gives no value"));
        LinkError { node: connection.node().clone(), problem }.into()
    })
}

async fn set(connection: &mut Connection, name: &str, value: &str) -> Result<()> {
    connection.call(&Command::new("CONFIG").args(["SET", name, value])).await?;
    Ok(())
}

async fn rewrite(connection: &mut Connection) -> Result<()> {
    let rewritten = connection.call(&Command::new("CONFIG").arg("REWRITE")).await;
    rewritten.map(drop).map_err(|error| {
        Error::from(error)
            .context("the setting holds, but could not be written to the node's configuration file")
            .hint("run it without --persist; a restart of the node then lifts the fence")
    })
}
