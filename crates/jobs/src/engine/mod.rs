//! A stock server that runs privately: it follows a link of ours and is asked over its socket file.
//!
//! Invariants: nobody but us reaches it (no port, a socket file in a folder of its own, a configuration file that only its owner
//! reads); it dies with us, however we end (`guard`); it never writes its dataset to a disk, evicts nothing, and expires nothing
//! while it follows.

mod choose;
mod conf;

pub use choose::{EngineNeeds, EngineOptions, choose_engine};

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use slotkeep_model::{NodeAddr, ReplOffset, ServerVersion};
use slotkeep_wire::Info;
use slotkeep_wire::replica::Credentials;
use slotkeep_wire::resp::Command;
use tempfile::TempDir;
use tokio::process::Child;

use crate::guard::{Guard, Guarded};
use crate::net::{Connection, Connector, ConnectorOptions};
use crate::stock_server::{StockServer, last_lines};
use crate::{Context, Error, ErrorKind, Result};

const SOCKET_FILE: &str = "engine.sock";
const CONFIG_FILE: &str = "engine.conf";
const LOG_FILE: &str = "engine.log";
/// The longest path of a socket file on every system (`sun_path`, less its final zero).
const SOCKET_PATH_LIMIT_BYTES: usize = 103;
/// How long after its connections have broken an engine may seem to live.
const DYING: Duration = Duration::from_millis(300);
/// How often the engine is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A private server. Dropped, it is killed and its folder removed.
pub struct Engine {
    version: ServerVersion,
    client: EngineClient,
    child: Child,
    guard: Guard,
    folder: TempDir,
}

/// The way to an engine.
#[derive(Clone)]
pub struct EngineClient {
    node: NodeAddr,
    connector: Arc<Connector>,
}

/// How far an engine has come.
struct Place {
    link_up: bool,
    loading: bool,
    offset: ReplOffset,
    /// What has moved since the last look, if anything has.
    movement: (Option<String>, ReplOffset),
}

impl Engine {
    /// Starts `server`, to follow the link at `primary` with these credentials.
    pub async fn start(
        server: &StockServer,
        options: &EngineOptions,
        primary: SocketAddr,
        credentials: &Credentials,
    ) -> Result<Self> {
        let parent = options.folder.clone().unwrap_or_else(std::env::temp_dir);
        let failed = |error: std::io::Error| {
            let kind = match error.kind() {
                std::io::ErrorKind::StorageFull => ErrorKind::Full,
                _ => ErrorKind::Failed,
            };
            Error::new(kind, format!("can't prepare the engine in {}: {error}", parent.display()))
                .hint("name a folder that can be written to in TMPDIR")
        };
        let folder =
            tempfile::Builder::new().prefix("slotkeep-engine-").tempdir_in(&parent).map_err(failed)?;
        let socket_file = folder.path().join(SOCKET_FILE);
        if socket_file.as_os_str().len() > SOCKET_PATH_LIMIT_BYTES {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{} is too long a path for the engine's socket file", socket_file.display()),
            )
            .hint("name a folder with a shorter path in TMPDIR"));
        }
        let text = conf::render(folder.path(), &socket_file, primary, credentials, options);
        let config_file = folder.path().join(CONFIG_FILE);
        write_private(&config_file, &text).map_err(failed)?;
        let log = File::create(folder.path().join(LOG_FILE)).map_err(failed)?;
        let errors = log.try_clone().map_err(failed)?;
        let guard = Guard::start(folder.path()).map_err(failed)?;
        let child = guard
            .spawn(Guarded {
                program: &server.program,
                config_file: &config_file,
                folder: folder.path(),
                output: Stdio::from(log),
                errors: Stdio::from(errors),
                ends_with_handle: true,
            })
            .await
            .map_err(|error| {
                Error::new(ErrorKind::Failed, format!("can't start {}: {error}", server.program.display()))
            })?;
        let connector = Connector::new(ConnectorOptions {
            socket_file: Some(socket_file),
            ..ConnectorOptions::default()
        })?;
        Ok(Self {
            version: server.version,
            client: EngineClient { node: NodeAddr::new("engine", 0), connector: Arc::new(connector) },
            child,
            guard,
            folder,
        })
    }

    /// What it is.
    pub const fn version(&self) -> ServerVersion {
        self.version
    }

    /// The way to it.
    pub fn client(&self) -> EngineClient {
        self.client.clone()
    }

    /// Waits for the process to end, which it does not by itself, and gives the error that this is. Cancel-safe.
    pub async fn died(&mut self) -> Error {
        let words = match self.child.wait().await {
            Ok(status) => format!("{status}"),
            Err(error) => error.to_string(),
        };
        self.death(&words)
    }

    /// The same error, with what the engine's log says about it if its process has ended or it gave the link up.
    pub async fn explain(&mut self, context: &Context, error: Error) -> Error {
        // The connections of a process that ends break before its end is told.
        match context.within(DYING, self.child.wait()).await {
            Some(Ok(status)) => self.death(&status.to_string()),
            _ if error.kind() == ErrorKind::Failed => error.context(format!(
                "the log of the engine, {}, ends with\n{}\nbecause",
                self.version,
                self.log()
            )),
            _ => error,
        }
    }

    fn death(&self, status: &str) -> Error {
        let log = self.log();
        let error = Error::new(
            ErrorKind::Failed,
            format!("the engine, {}, ended ({status}); its log ends with\n{log}", self.version),
        );
        let out_of_memory =
            log.contains("Out Of Memory") || log.contains("Can't allocate") || status.contains("SIGKILL");
        if out_of_memory {
            error.hint("it may have run out of memory, of which it needs as much as the shard's server: use a machine with more, or fold fewer shards at a time")
        } else {
            error.hint("name another server of the same or a newer version with --engine PATH")
        }
    }

    fn log(&self) -> String {
        last_lines(&self.folder.path().join(LOG_FILE))
    }

    /// Ends it and removes its folder.
    pub async fn stop(mut self) {
        self.guard.kill();
        // It was killed: there is nothing to learn from how it ended.
        let _ = self.child.wait().await;
    }
}

impl EngineClient {
    /// Its name in messages, under which [`context`](Self::context) reaches it.
    pub const fn node(&self) -> &NodeAddr {
        &self.node
    }

    /// The same context, with the engine as the only server there is.
    pub fn context(&self, context: &Context) -> Context {
        Context { connector: Arc::clone(&self.connector), ..context.clone() }
    }

    /// Waits until it has applied exactly the byte at `offset`. An error if it stands still for longer than `patience`.
    pub async fn wait_applied(
        &self,
        context: &Context,
        offset: ReplOffset,
        patience: Duration,
    ) -> Result<()> {
        let mut connection = self.connect(context, patience).await?;
        let mut last = None;
        let mut since = context.clock.elapsed();
        loop {
            let place = place(&mut connection).await?;
            if place.link_up && !place.loading && place.offset == offset {
                return Ok(());
            }
            if place.offset > offset {
                return Err(Error::new(
                    ErrorKind::Failed,
                    format!(
                        "the engine has applied offset {}, but the last byte sent is {offset}",
                        place.offset
                    ),
                ));
            }
            let now = context.clock.elapsed();
            if last.as_ref() != Some(&place.movement) {
                since = now;
            }
            last = Some(place.movement);
            if now.saturating_sub(since) > patience {
                let words = format!(
                    "the engine has stayed at offset {} for {} s, expected {offset}",
                    place.offset,
                    patience.as_secs()
                );
                return Err(Error::new(ErrorKind::Failed, words));
            }
            context.clock.sleep(LOOK_EVERY).await;
        }
    }

    async fn connect(&self, context: &Context, patience: Duration) -> Result<Connection> {
        let began = context.clock.elapsed();
        loop {
            match self.connector.connect(&self.node).await {
                Ok(connection) => return Ok(connection),
                Err(error) if context.clock.elapsed().saturating_sub(began) > patience => {
                    return Err(error.into());
                }
                Err(_) => context.clock.sleep(LOOK_EVERY).await,
            }
        }
    }
}

/// Writes a file that only its owner may read.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

async fn place(connection: &mut Connection) -> Result<Place> {
    let mut text = String::new();
    for section in ["replication", "persistence"] {
        let reply = connection.call(&Command::new("INFO").arg(section)).await?;
        text.push_str(reply.as_text().unwrap_or_default());
    }
    let info = Info::parse(&text);
    let odd =
        |error: slotkeep_wire::info::InfoError| Error::new(ErrorKind::Failed, format!("the engine: {error}"));
    let replication = info.replication().map_err(odd)?;
    let applied = info.number("slave_repl_offset").map_err(odd)?;
    let loaded = info.get("loading_loaded_bytes").or_else(|| info.get("master_sync_read_bytes"));
    Ok(Place {
        link_up: replication.link.is_some_and(|link| link.up && !link.sync_in_progress),
        loading: info.get("loading") != Some("0"),
        // What it has applied, and what it passes on: the same once it is at rest.
        offset: ReplOffset(applied.min(replication.offset.0)),
        movement: (loaded.map(str::to_owned), replication.offset),
    })
}
