//! Starting restored nodes on this machine.
//!
//! Invariant: either all of them run when this returns, or none does.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use slotkeep_model::NodeAddr;
use slotkeep_wire::info::InfoError;
use slotkeep_wire::resp::Command;
use slotkeep_wire::topology::ClusterInfo;
use tokio::process::Child;

use super::conf::LOG_FILE;
use super::plan::{FilesPlan, NodePlan};
use super::write::failed;
use crate::discover::{keys_of, read_info};
use crate::guard::{Guard, Guarded};
use crate::net::{Connector, ConnectorOptions};
use crate::stock_server::{StockServer, last_lines};
use crate::{Context, Error, ErrorKind, Result};

/// How often the nodes are asked how they are.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the nodes may stand still, none of them loading or synchronising, before the start counts as failed.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long a server may take to end when asked to.
const END_LIMIT: Duration = Duration::from_secs(15);

/// A node that runs.
#[derive(Debug, Serialize)]
pub struct StartedNode {
    /// Where clients reach it.
    pub addr: String,
    /// Its process.
    pub pid: u32,
    /// How many keys it holds.
    pub keys: u64,
}

/// Refuses to start nodes where it can't succeed: before anything is written.
pub fn check_start(context: &Context, plan: &FilesPlan) -> Result<()> {
    if plan.needs_password && plan.credentials.is_none() && context.connector.credentials().is_none() {
        return Err(Error::new(
            ErrorKind::Usage,
            "the restored nodes need a password, and the backup holds only its hash",
        )
        .hint("give it in SLOTKEEP_PASSWORD, or restore without --start"));
    }
    for node in &plan.nodes {
        let ports = [Some(node.addr.port()), node.bus_port()];
        for port in ports.into_iter().flatten() {
            TcpListener::bind((node.ip, port)).map_err(|error| {
                Error::new(ErrorKind::Usage, format!("node {} can't be started here: {}:{port}: {error}", node.addr, node.ip))
                    .hint("give addresses of this machine with free ports, or restore without --start and start the nodes where they belong")
            })?;
        }
    }
    Ok(())
}

/// Starts every node of a plan that has been applied, and waits until each says that the cluster is whole and every replica
/// follows its primary. `tell` is called with what is awaited whenever that changes.
pub async fn start(
    context: &Context,
    plan: &FilesPlan,
    server: &StockServer,
    tell: impl FnMut(&str),
) -> Result<Vec<StartedNode>> {
    let context = context_for(context, plan)?;
    Nodes::new(&context, plan).start(server, tell).await
}

/// The same for nodes that are to end with this process, however that ends, or with `guard`.
pub(crate) async fn start_guarded(
    context: &Context,
    plan: &FilesPlan,
    server: &StockServer,
    guard: &Guard,
) -> Result<Vec<StartedNode>> {
    let context = context_for(context, plan)?;
    let nodes = Nodes { guard: Some(guard), ..Nodes::new(&context, plan) };
    nodes.start(server, |_| ()).await
}

/// The same context, with connections as the nodes of the plan want them.
pub(super) fn context_for(context: &Context, plan: &FilesPlan) -> Result<Context> {
    // A password that nobody asks for is an error to the server.
    let given = context.connector.credentials().filter(|_| plan.needs_password);
    let credentials = plan.credentials.as_ref().or(given).cloned();
    if plan.tls.is_some() {
        let connector = context.connector.as_another(credentials, ANSWER_TIMEOUT);
        return Ok(Context { connector: Arc::new(connector), ..context.clone() });
    }
    let options =
        ConnectorOptions { credentials, timeout: Some(ANSWER_TIMEOUT), ..ConnectorOptions::default() };
    Ok(Context { connector: Arc::new(Connector::new(options)?), ..context.clone() })
}

fn not_started(error: Error, folder: &Path) -> Error {
    let folder = folder.display();
    if error.kind() == ErrorKind::Interrupted {
        return error
            .context(format!(
                "the nodes were restored to {folder} and stopped again before the cluster was up"
            ))
            .hint("start each node with its configuration file, or remove the folder and restore again");
    }
    error
        .context(format!("the nodes were restored to {folder} but could not be started; none of them runs"))
        .hint("mend what the message says, then start each node with its configuration file; or remove the folder and restore again")
}

/// The processes of a plan's nodes.
pub(super) struct Nodes<'a> {
    context: &'a Context,
    plan: &'a FilesPlan,
    /// Those that were started, by their numbers in the plan.
    children: BTreeMap<usize, Child>,
    /// What ends them with this process; without it they go on.
    guard: Option<&'a Guard>,
}

impl<'a> Nodes<'a> {
    pub(super) const fn new(context: &'a Context, plan: &'a FilesPlan) -> Self {
        Self { context, plan, children: BTreeMap::new(), guard: None }
    }

    async fn start(mut self, server: &StockServer, tell: impl FnMut(&str)) -> Result<Vec<StartedNode>> {
        let started = match self.spawn(server, |_| true).await {
            Ok(()) => self.wait_ready(tell).await,
            Err(error) => Err(error),
        };
        self.all_or_none(started).await
    }

    /// What was started, or nothing if that failed: then every node is stopped again.
    pub(super) async fn all_or_none(mut self, started: Result<Vec<StartedNode>>) -> Result<Vec<StartedNode>> {
        match started {
            Ok(started) => Ok(started),
            Err(error) => {
                self.stop().await;
                Err(not_started(error, &self.plan.folder))
            }
        }
    }

    /// Starts the nodes that are wanted.
    pub(super) async fn spawn(
        &mut self,
        server: &StockServer,
        wanted: impl Fn(&NodePlan) -> bool,
    ) -> Result<()> {
        for (number, node) in self.plan.nodes.iter().enumerate().filter(|(_, node)| wanted(node)) {
            let log_path = node.folder.join(LOG_FILE);
            let open = || std::fs::File::options().append(true).create(true).open(&log_path);
            let (log, errors) = open()
                .and_then(|log| Ok((log, open()?)))
                .map_err(|error| failed("write", &log_path, &error))?;
            let (output, errors) = (Stdio::from(log), Stdio::from(errors));
            let child = match self.guard {
                Some(guard) => {
                    let guarded = Guarded {
                        program: &server.program,
                        config_file: &node.config_file,
                        folder: &node.folder,
                        output,
                        errors,
                        ends_with_handle: false,
                    };
                    guard.spawn(guarded).await
                }
                // A process group of its own: Ctrl-C here is not meant for it, and it goes on when this process has ended.
                None => tokio::process::Command::new(&server.program)
                    .arg(&node.config_file)
                    .current_dir(&node.folder)
                    .stdin(Stdio::null())
                    .stdout(output)
                    .stderr(errors)
                    .process_group(0)
                    .spawn(),
            };
            let child = child.map_err(|error| failed("start", &server.program, &error))?;
            self.children.insert(number, child);
        }
        Ok(())
    }

    /// Waits until every node of the plan is as it should be.
    pub(super) async fn wait_ready(&mut self, mut tell: impl FnMut(&str)) -> Result<Vec<StartedNode>> {
        let mut still_since = self.context.clock.elapsed();
        let mut last_told = String::new();
        loop {
            self.check_alive()?;
            let states = futures::future::join_all(self.plan.nodes.iter().map(|node| self.look(node))).await;
            let states: Vec<State> = states.into_iter().collect::<Result<_>>()?;
            let waiting = self.plan.nodes.iter().zip(&states).find_map(|(node, state)| match state {
                State::NotYet { why, .. } => Some(format!("{}: {why}", node.addr)),
                State::Ready { .. } => None,
            });
            let Some(waiting) = waiting else { return self.started(states) };
            let now = self.context.clock.elapsed();
            if waiting != last_told
                || states.iter().any(|state| matches!(state, State::NotYet { busy: true, .. }))
            {
                still_since = now;
            }
            if waiting != last_told {
                tell(&waiting);
                last_told.clone_from(&waiting);
            }
            if now.saturating_sub(still_since) > PATIENCE {
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    format!("after {} s without a change: {waiting}", PATIENCE.as_secs()),
                ));
            }
            tokio::select! {
                () = self.context.stop.cancelled() => return Err(Error::interrupted()),
                () = self.context.clock.sleep(LOOK_EVERY) => {}
            }
        }
    }

    fn started(&self, states: Vec<State>) -> Result<Vec<StartedNode>> {
        let gone = || Error::new(ErrorKind::Failed, "a server ended just after its start");
        let nodes = self.plan.nodes.iter().zip(self.children.values()).zip(states);
        let started = nodes.map(|((node, child), state)| {
            let State::Ready { keys } = state else { return Err(gone()) };
            Ok(StartedNode { addr: node.addr.to_string(), pid: child.id().ok_or_else(gone)?, keys })
        });
        started.collect()
    }

    /// An error if a server has ended, with the last lines of its log.
    pub(super) fn check_alive(&mut self) -> Result<()> {
        for (number, child) in &mut self.children {
            let Some(node) = self.plan.nodes.get(*number) else { continue };
            let ended = child.try_wait().map_err(|error| failed("look after", &node.folder, &error))?;
            if let Some(status) = ended {
                let log = last_lines(&node.folder.join(LOG_FILE));
                return Err(Error::new(
                    ErrorKind::Failed,
                    format!("the server of {} ended ({status}); its log ends with\n{log}", node.addr),
                ));
            }
        }
        Ok(())
    }

    /// How a node is. Only what waiting can't mend is an error.
    async fn look(&self, node: &NodePlan) -> Result<State> {
        let addr = NodeAddr::new(node.ip.to_string(), node.addr.port());
        match self.ask(&addr).await {
            Err(error) if error.kind() == ErrorKind::Unreachable => Ok(State::still("does not answer yet")),
            looked => looked,
        }
    }

    async fn ask(&self, addr: &NodeAddr) -> Result<State> {
        let mut connection = self.context.connector.connect(addr).await?;
        let info = read_info(&mut connection).await?;
        let odd = |error: InfoError| Error::new(ErrorKind::Failed, format!("{addr}: {error}"));
        if info.persistence().map_err(odd)?.loading {
            return Ok(State::busy("loads its dataset"));
        }
        if self.plan.cluster_mode && !self.plan.joins {
            let reply = connection.call(&Command::new("CLUSTER").arg("INFO")).await?;
            let cluster = ClusterInfo::parse(reply.as_text().unwrap_or_default())
                .map_err(|error| Error::new(ErrorKind::Failed, format!("{addr}: CLUSTER INFO: {error}")))?;
            let (known, all) = (cluster.known_nodes, self.plan.nodes.len());
            if !cluster.ok {
                return Ok(State::still("cluster_state is not ok yet"));
            }
            if u32::try_from(all) != Ok(known) {
                return Ok(State::still(&format!("it knows {known} of {all} nodes")));
            }
        }
        match info.replication().map_err(odd)?.link {
            Some(link) if link.sync_in_progress => Ok(State::busy("receives the dataset of its primary")),
            Some(link) if !link.up => Ok(State::still("its link to its primary is not up yet")),
            _ => Ok(State::Ready { keys: keys_of(&info).map_err(odd)? }),
        }
    }

    /// Ends every server that runs.
    pub(super) async fn stop(&mut self) {
        for child in self.children.values() {
            let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
            if let Some(pid) = pid {
                // One that has ended already needs no signal.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        for child in self.children.values_mut() {
            let limit = self.context.clock.sleep(END_LIMIT);
            let ended = tokio::select! {
                ended = child.wait() => ended.is_ok(),
                () = limit => false,
            };
            if !ended {
                let _ = child.kill().await;
            }
        }
    }
}

/// How a node is.
enum State {
    Ready {
        keys: u64,
    },
    /// `busy` while it does something that takes as long as its dataset is big.
    NotYet {
        why: String,
        busy: bool,
    },
}

impl State {
    fn still(why: &str) -> Self {
        Self::NotYet { why: why.to_owned(), busy: false }
    }

    fn busy(why: &str) -> Self {
        Self::NotYet { why: why.to_owned(), busy: true }
    }
}
