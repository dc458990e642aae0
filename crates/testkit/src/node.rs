//! One server process of a cluster, and what can happen to it.
//!
//! Invariant: a process in `Process::Running` or `Process::Paused` has not been reaped, so its number is still its own and
//! may be signalled.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::client::{Client, Endpoint};
use crate::deadline::{NotYet, wait_for};
use crate::error::{Error, Result};
use crate::ports::PortLease;
use crate::proxy::Proxy;
use crate::servers::Server;
use crate::watchdog::Watchdog;

/// How long a server may take to answer after its start, with the data that tests have.
const START_LIMIT: Duration = Duration::from_mins(1);

/// How long a server may take to end when it was asked to; replicas that lag hold it up to ten seconds (`shutdown-timeout`).
const SHUTDOWN_LIMIT: Duration = Duration::from_mins(1);

/// How long a look at a node may take. Nodes are on this machine, which may stand still for seconds.
pub(crate) const LOOK_TIMEOUT: Duration = Duration::from_secs(20);

/// A server process of a cluster. It may be stopped and started again; its folder and its port stay.
#[derive(Debug)]
pub struct Node {
    pub(crate) number: usize,
    pub(crate) shard: usize,
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    pub(crate) server: Server,
    pub(crate) endpoint: Endpoint,
    pub(crate) lease: PortLease,
    pub(crate) watchdog: Arc<Watchdog>,
    pub(crate) process: Mutex<Process>,
}

/// What became of a node's process.
#[derive(Debug)]
pub(crate) enum Process {
    Stopped,
    Running(Child),
    Paused(Child),
}

impl Process {
    fn name(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Running(_) => "running",
            Self::Paused(_) => "paused",
        }
    }

    fn child(&mut self) -> Option<&mut Child> {
        match self {
            Self::Stopped => None,
            Self::Running(child) | Self::Paused(child) => Some(child),
        }
    }
}

impl Node {
    /// Its number in the cluster: primaries first, then the replicas of the first shard, and so on.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The number of the shard it belongs to, from 0.
    pub fn shard(&self) -> usize {
        self.shard
    }

    /// Its cluster node id, forty hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it listens for clients: 127.0.0.1 and its port, the TLS port if the cluster speaks TLS.
    pub fn addr(&self) -> SocketAddr {
        self.endpoint.addr
    }

    /// Its port for clients.
    pub fn port(&self) -> u16 {
        self.lease.port()
    }

    /// Its folder: `server.conf`, `server.log`, `nodes.conf`, and its data.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where and how to connect to it, as the default user.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Its process, unless it is stopped.
    pub fn pid(&self) -> Option<u32> {
        self.lock().child().map(|child| child.id())
    }

    /// Whether its process exists and is not paused.
    pub fn is_running(&self) -> bool {
        matches!(*self.lock(), Process::Running(_))
    }

    /// What it has written to its log.
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Connects to it as the default user.
    pub fn client(&self) -> Result<Client> {
        Client::connect(&self.endpoint)
    }

    /// Puts a proxy before it: a link that can be cut, slowed down, or made to lose bytes.
    pub fn proxy(&self) -> Result<Proxy> {
        Proxy::start(self.addr())
    }

    /// Starts it again after [`Self::kill`] or [`Self::shutdown`], and waits until it answers and has loaded its data.
    pub fn start(&self) -> Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Kills it (`SIGKILL`), snapshot children included: what it had not written to its disk is lost.
    pub fn kill(&self) -> Result<()> {
        self.signal_group()?;
        self.reap()
    }

    /// Stops it in its tracks (`SIGSTOP`): its connections stay open and nothing answers.
    pub fn pause(&self) -> Result<()> {
        let mut process = self.lock();
        match std::mem::replace(&mut *process, Process::Stopped) {
            Process::Running(child) => {
                let signalled = signal(self.number, &child, Signal::STOP);
                *process = Process::Paused(child);
                signalled
            }
            other => Err(self.put_back(&mut process, other, "running")),
        }
    }

    /// Lets it go on after [`Self::pause`].
    pub fn resume(&self) -> Result<()> {
        let mut process = self.lock();
        match std::mem::replace(&mut *process, Process::Stopped) {
            Process::Paused(child) => {
                let signalled = signal(self.number, &child, Signal::CONT);
                *process = Process::Running(child);
                signalled
            }
            other => Err(self.put_back(&mut process, other, "paused")),
        }
    }

    /// Asks it to end (`SIGTERM`), which saves what its configuration says, and waits until it has.
    pub fn shutdown(&self) -> Result<()> {
        {
            let mut process = self.lock();
            let Process::Running(child) = &mut *process else {
                return Err(self.wrong_state(&process, "running"));
            };
            signal(self.number, child, Signal::TERM)?;
        }
        self.wait_end()
    }

    /// Makes it write an RDB file, whatever its configuration says, and end.
    pub fn shutdown_saving(&self) -> Result<()> {
        let mut client = self.client()?;
        client.send(&["SHUTDOWN", "SAVE"])?;
        // A server that obeys closes the connection without a word.
        if let Ok(crate::resp::Value::Error(message)) = client.receive() {
            return Err(Error::Reply { command: "SHUTDOWN SAVE".to_owned(), message });
        }
        self.wait_end()
    }

    /// [`Self::shutdown`], then [`Self::start`].
    pub fn restart(&self) -> Result<()> {
        self.shutdown()?;
        self.start()
    }

    /// Starts the process and does not wait for it.
    pub(crate) fn spawn(&self) -> Result<()> {
        let mut process = self.lock();
        if !matches!(*process, Process::Stopped) {
            return Err(self.wrong_state(&process, "stopped"));
        }
        let path = self.log_path();
        let log = File::options()
            .append(true)
            .create(true)
            .open(&path)
            .map_err(Error::io(format!("open {}", path.display())))?;
        let errors = log.try_clone().map_err(Error::io(format!("open {}", path.display())))?;
        let config = self.dir.join("server.conf");
        let child = self.watchdog.spawn(
            self.server.program(),
            &[config.as_os_str()],
            Stdio::from(log),
            Stdio::from(errors),
        )?;
        *process = Process::Running(child);
        Ok(())
    }

    /// Waits until it answers and has loaded its data.
    pub(crate) fn wait_ready(&self) -> Result<()> {
        wait_for(START_LIMIT, &format!("node {} to answer", self.number), || {
            self.check_alive()?;
            Client::connect(&self.endpoint.with_timeout(LOOK_TIMEOUT))?.command(&["PING"])?;
            Ok(())
        })
    }

    /// [`Error::ServerDied`] if it ended although nobody asked it to.
    pub(crate) fn check_alive(&self) -> Result<()> {
        let mut process = self.lock();
        let Some(child) = process.child() else { return Ok(()) };
        let ended = child.try_wait().map_err(Error::io("look after a server"))?;
        let Some(status) = ended else { return Ok(()) };
        self.watchdog.forget(child.id())?;
        *process = Process::Stopped;
        Err(Error::ServerDied { node: self.number, status: status.to_string(), log: self.log_tail() })
    }

    /// Kills its process group, if it has one, without waiting for the end.
    pub(crate) fn signal_group(&self) -> Result<()> {
        match self.lock().child() {
            Some(child) => kill_process_group(Pid::from_child(child), Signal::KILL)
                .map_err(|errno| Error::io(format!("kill node {}", self.number))(errno.into())),
            None => Ok(()),
        }
    }

    /// Waits for the end of a process that was killed.
    pub(crate) fn reap(&self) -> Result<()> {
        let mut process = self.lock();
        let Some(child) = process.child() else { return Ok(()) };
        child.wait().map_err(Error::io(format!("wait for the end of node {}", self.number)))?;
        self.watchdog.forget(child.id())?;
        *process = Process::Stopped;
        Ok(())
    }

    fn wait_end(&self) -> Result<()> {
        wait_for(SHUTDOWN_LIMIT, &format!("the end of node {}", self.number), || {
            let mut process = self.lock();
            let Some(child) = process.child() else { return Ok(()) };
            if child.try_wait().map_err(Error::io("look after a server"))?.is_none() {
                return Err(NotYet::because("it runs"));
            }
            self.watchdog.forget(child.id())?;
            *process = Process::Stopped;
            Ok(())
        })
    }

    fn lock(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_back(&self, process: &mut Process, found: Process, expected: &'static str) -> Error {
        *process = found;
        self.wrong_state(process, expected)
    }

    fn wrong_state(&self, process: &Process, expected: &'static str) -> Error {
        Error::NodeState { node: self.number, state: process.name(), expected }
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    fn log_tail(&self) -> String {
        const LINES: usize = 12;
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n")
    }
}

fn signal(number: usize, child: &Child, signal: Signal) -> Result<()> {
    kill_process(Pid::from_child(child), signal)
        .map_err(|errno| Error::io(format!("signal node {number}"))(errno.into()))
}
