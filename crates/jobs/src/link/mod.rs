//! Being the primary of one server: it follows our link, gets a base and then a log, and says when it has applied the last byte.
//!
//! The bytes come from [`ByteSource`]s and are sent at the pace of the follower: at most one piece of a source and what the
//! kernel buffers is on its way, whatever the size of the dataset.
//!
//! Invariants: only a replica that has shown the expected password (where one is expected) is fed; every byte sent after the snapshot
//! is in [`Follower::sent`], keep-alives among them, so that an acknowledged offset can be compared exactly.

mod edit;
mod follower;

pub use edit::{LogEditor, TimeOf};
pub use follower::Follower;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use slotkeep_model::{ReplId, ReplOffset};
use slotkeep_wire::primary::ReplicaFacts;
use slotkeep_wire::replica::Credentials;

use crate::net::Listener;
use crate::source::ByteSource;
use crate::{Context, Error, ErrorKind, Result};

/// How long a peer may take to introduce itself before the next one has its turn.
const INTRODUCTION_LIMIT: Duration = Duration::from_secs(10);

/// How a link is kept.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// How the follower has to authenticate; anybody may follow if there are none.
    pub credentials: Option<Credentials>,
    /// The port that the follower says it listens on; any if not given.
    pub listening_port: Option<u16>,
    /// How long nothing at all may happen: no byte taken, no sign of life, no progress.
    pub patience: Duration,
    /// After how long without a byte to send a `PING` keeps the link alive. Not needed by a follower whose `repl-timeout` is long,
    /// and each adds to the offset.
    pub keep_alive: Option<Duration>,
}

/// A base to send.
pub struct Snapshot<B> {
    /// Its bytes.
    pub source: B,
    /// How many bytes that are.
    pub len_bytes: u64,
    /// The history it belongs to.
    pub history: ReplId,
    /// The last byte whose effect it holds.
    pub offset: ReplOffset,
}

/// Waits for the one follower that is expected.
pub struct LinkListener {
    listener: Listener,
    options: LinkOptions,
}

impl LinkListener {
    /// Takes a free port of the address `ip`.
    pub async fn bind(ip: IpAddr, options: LinkOptions) -> Result<Self> {
        Ok(Self { listener: Listener::bind(ip).await?, options })
    }

    /// Expects another follower: by these credentials, and on that port.
    pub fn expect(&mut self, credentials: Option<Credentials>, listening_port: Option<u16>) {
        self.options.credentials = credentials;
        self.options.listening_port = listening_port;
    }

    /// Where the follower is to connect to.
    pub const fn addr(&self) -> SocketAddr {
        self.listener.addr()
    }

    /// Waits until the follower has connected, introduced itself and wants to follow. Whoever else connects is turned away. Cancel-safe:
    /// a follower that was being talked to connects again.
    pub async fn accept(&self, context: &Context) -> Result<Follower> {
        let give_up = context.clock.sleep(self.options.patience);
        let accept = async {
            loop {
                let (stream, peer) = self.listener.accept().await?;
                let mut follower = Follower::new(context, stream, peer, &self.options);
                let introduced = tokio::select! {
                    introduced = follower.introduce() => introduced,
                    () = context.clock.sleep(INTRODUCTION_LIMIT) => {
                        Err(Error::new(ErrorKind::Failed, format!("{peer} connected and said nothing")))
                    }
                };
                match introduced.and_then(|()| self.check(peer, follower.facts())) {
                    Ok(()) => return Ok(follower),
                    Err(error) => tracing::debug!(%error, "turned away"),
                }
            }
        };
        tokio::select! {
            follower = accept => follower,
            () = context.stop.cancelled() => Err(Error::interrupted()),
            () = give_up => Err(Error::new(
                ErrorKind::Unreachable,
                format!("no server came to {} to follow within {} s", self.addr(), self.options.patience.as_secs()),
            )),
        }
    }

    fn check(&self, peer: SocketAddr, facts: &ReplicaFacts) -> Result<()> {
        let expected = self.options.listening_port;
        if expected.is_none() || facts.listening_port == expected {
            return Ok(());
        }
        let says = facts.listening_port.map_or_else(|| "no port".to_owned(), |port| format!("port {port}"));
        Err(Error::new(
            ErrorKind::Failed,
            format!("{peer} listens on {says}: it is not the expected follower"),
        ))
    }
}

/// The sources of one shard: what a follower gets, up to the cut.
pub struct Feed<B, L> {
    /// The base.
    pub base: Snapshot<B>,
    /// The log from the byte after the base on, up to and including the cut.
    pub log: L,
    /// The last byte of the log; the base's own offset if there is none.
    pub cut: ReplOffset,
}

impl<B: ByteSource, L: ByteSource> Feed<B, L> {
    /// Sends everything to the follower, and gives the offset that it will acknowledge when it has applied the cut.
    pub async fn send(
        mut self,
        follower: &mut Follower,
        editor: &mut LogEditor,
        sent_bytes: &std::sync::atomic::AtomicU64,
    ) -> Result<ReplOffset> {
        follower.send_base(&mut self.base, sent_bytes).await?;
        follower.send_log(&mut self.log, editor, sent_bytes).await?;
        editor.check_end(self.cut)?;
        Ok(follower.sent())
    }
}
