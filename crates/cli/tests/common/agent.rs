//! `slotkeep archive`, running.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use slotkeep_testkit::Cluster;
use slotkeep_testkit::deadline::{NotYet, wait_for};

use super::command;

const LIMIT: Duration = Duration::from_secs(120);
/// How long one that was asked to end, or has to, may take.
const END_LIMIT: Duration = Duration::from_secs(120);

/// An agent, and what it has said so far.
pub struct Agent {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
    err: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Agent {
    /// Starts one for that cluster, with its spool beside the repository.
    pub fn start(cluster: &Cluster, folder: &Path, more: &[&str]) -> Self {
        Self::start_as("spool", cluster, folder, more)
    }

    /// The same, with a spool of that name.
    pub fn start_as(spool: &str, cluster: &Cluster, folder: &Path, more: &[&str]) -> Self {
        let repo = folder.join("repo");
        Self::start_in(repo.to_str().unwrap(), &[], &folder.join(spool), cluster, more)
    }

    /// The same, for a repository at any address, with that environment and spool.
    pub fn start_in(
        repo: &str,
        environment: &[(&str, String)],
        spool: &Path,
        cluster: &Cluster,
        more: &[&str],
    ) -> Self {
        let mut archive = command();
        archive.envs(environment.iter().map(|(name, value)| (name, value)));
        let seeds: Vec<String> = cluster.nodes().iter().map(|node| node.addr().to_string()).collect();
        archive.args(["archive", "--json", "--status-every", "200ms"]);
        if !more.contains(&"--seal-after") {
            archive.args(["--seal-after", "500ms"]);
        }
        archive.args(["--jobs-per-host", "9", "--cluster", &seeds.join(",")]);
        archive.args(["--repo", repo, "--spool"]).arg(spool).args(more);
        Self::spawn(archive)
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let said = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                said.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        let mut errors = child.stderr.take().unwrap();
        let err = Arc::new(Mutex::new(String::new()));
        let text = Arc::clone(&err);
        let err_reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = errors.read(&mut buffer) {
                text.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        });
        Self { child, lines, err, readers: vec![reader, err_reader] }
    }

    /// Waits until what was said so far is as wanted.
    #[track_caller]
    pub fn wait(&self, what: &str, wanted: impl Fn(&[Value]) -> bool) {
        let outcome = wait_for(LIMIT, what, || {
            if wanted(&self.lines.lock().unwrap()) { Ok(()) } else { Err(NotYet::because("not said yet")) }
        });
        if let Err(error) = outcome {
            let lines = self.lines.lock().unwrap();
            let last: Vec<String> = lines.iter().rev().take(3).map(ToString::to_string).collect();
            panic!(
                "{error}\nsaid: {}\nnotices: {:#?}\nlast: {}",
                self.err.lock().unwrap(),
                notices(&lines, None),
                last.join("\n")
            );
        }
    }

    /// Waits until what was said so far is as wanted, or the agent has ended; whether it has not.
    #[track_caller]
    pub fn wait_while_it_lives(&mut self, what: &str, wanted: impl Fn(&[Value]) -> bool) -> bool {
        let (child, lines) = (&mut self.child, &self.lines);
        let outcome = wait_for(LIMIT, what, || match child.try_wait().unwrap() {
            Some(_) => Ok(false),
            None if wanted(&lines.lock().unwrap()) => Ok(true),
            None => Err(NotYet::because("not said yet")),
        });
        outcome.unwrap_or_else(|error| {
            let notices = notices(&lines.lock().unwrap(), None);
            panic!("{error}\nsaid: {}\nnotices: {notices:#?}", self.err.lock().unwrap())
        })
    }

    /// Asks it to end, if it has not ended; gives how it did.
    pub fn finish(&mut self) -> ExitStatus {
        if self.child.try_wait().unwrap().is_none() {
            // It may end just now.
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        }
        let status = self.wait_end();
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        status
    }

    /// Waits until the process has ended.
    #[track_caller]
    fn wait_end(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let ended = wait_for(END_LIMIT, "the agent to end", || {
            child.try_wait().unwrap().ok_or_else(|| NotYet::because("it runs"))
        });
        ended.unwrap_or_else(|error| panic!("{error}: {}", self.err.lock().unwrap()))
    }

    /// What it has said to people.
    pub fn said(&self) -> String {
        self.err.lock().unwrap().clone()
    }

    /// Waits until the last status is as wanted.
    #[track_caller]
    pub fn wait_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        self.wait(what, |lines| lines.iter().rev().find_map(|line| line.get("status")).is_some_and(&wanted));
    }

    /// Waits until every shard is followed and the first backup is written.
    #[track_caller]
    pub fn wait_ready(&self) {
        self.wait("the first backup", |lines| !notices(lines, Some("backup")).is_empty());
        self.wait_following();
    }

    #[track_caller]
    pub fn wait_following(&self) {
        self.wait_status("all shards to be followed", |status| {
            let shards = status["shards"].as_array().unwrap();
            !shards.is_empty()
                && shards.iter().all(|shard| shard["phase"] == "following" && shard["source"].is_string())
        });
    }

    /// What was said of that kind.
    pub fn notices(&self, kind: &str) -> Vec<String> {
        notices(&self.lines.lock().unwrap(), Some(kind))
    }

    /// All notices, in order.
    pub fn all(&self) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        lines.iter().filter_map(|line| Some(line.get("notice")?.to_string())).collect()
    }

    /// The last status.
    pub fn status(&self) -> Value {
        let lines = self.lines.lock().unwrap();
        lines.iter().rev().find_map(|line| line.get("status")).cloned().unwrap_or_default()
    }

    /// Stops it where it stands.
    pub fn freeze(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap();
    }

    /// Lets it go on.
    pub fn wake(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }

    /// Waits until it has ended by itself; gives its exit code and what it said.
    pub fn ended(mut self) -> (Option<i32>, String) {
        let code = self.wait_end().code();
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        (code, self.err.lock().unwrap().clone())
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and expects it to end well; gives the last status.
    #[track_caller]
    pub fn stop(mut self) -> Value {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = self.wait_end();
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        assert_eq!(status.code(), Some(0), "{}", self.err.lock().unwrap());
        self.status()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn notices(lines: &[Value], kind: Option<&str>) -> Vec<String> {
    let all = lines.iter().filter_map(|line| line.get("notice"));
    let fitting = all.filter(|notice| kind.is_none_or(|kind| notice["kind"] == kind));
    fitting.map(|notice| format!("{}: {}", notice["kind"], notice["what"].as_str().unwrap())).collect()
}
