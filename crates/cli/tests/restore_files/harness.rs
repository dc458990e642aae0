//! Running `slotkeep`, and looking at what it restored.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::Value;
use slotkeep_testkit::{Client, Cluster, ClusterClient, Endpoint, Server};
use tempfile::TempDir;

/// What a run of `slotkeep` came to.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// The JSON it printed; it must have succeeded.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// It must have failed with that code and said that.
    pub(crate) fn failed(&self, code: i32, words: &str) {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        assert!(self.stderr.contains(words), "`{words}` is not in:\n{}", self.stderr);
    }
}

/// A place for a repository and restored folders. Servers that were started there end with it.
pub(crate) struct Bench {
    folder: TempDir,
    password: Option<String>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), password: None }
    }

    pub(crate) fn with_password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn repo(&self) -> PathBuf {
        self.path("repo")
    }

    /// The bytes of the manifest of a backup.
    pub(crate) fn manifest_text(&self, manifest: &Value) -> String {
        let name = format!("{}.json", manifest["id"].as_str().unwrap());
        std::fs::read_to_string(self.object(&name)).unwrap()
    }

    /// Runs `slotkeep --json` with these arguments and the repository.
    pub(crate) fn slotkeep(&self, arguments: &[&str]) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slotkeep"));
        command.args(arguments).args(["--json", "--repo"]).arg(self.repo()).current_dir(self.folder.path());
        command.env_remove("SLOTKEEP_PASSWORD").stdin(Stdio::null());
        if let Some(password) = &self.password {
            command.env("SLOTKEEP_PASSWORD", password);
        }
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Run { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Backs up the cluster that this node belongs to; gives the manifest.
    pub(crate) fn backup(&self, node: SocketAddr, options: &[&str]) -> Value {
        let seed = node.to_string();
        let fixed = ["backup", "--jobs-per-host", "3", "--cluster", &seed];
        self.slotkeep(&[&fixed[..], options].concat()).json()
    }

    /// Restores to `name` at these addresses.
    pub(crate) fn restore(&self, name: &str, nodes: &[SocketAddr], options: &[&str]) -> Run {
        let folder = self.path(name);
        let nodes = nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let fixed = ["restore", "--to-dir", folder.to_str().unwrap(), "--nodes", &nodes];
        // Most clusters live on, to be compared with.
        let beside = if options.contains(&"--start") { &["--beside-old"][..] } else { &[] };
        self.slotkeep(&[&fixed[..], options, beside].concat())
    }

    /// Restores to `name` and starts the nodes with that server.
    pub(crate) fn restore_and_start(
        &self,
        name: &str,
        nodes: &[SocketAddr],
        server: &Server,
        options: &[&str],
    ) -> Value {
        let program = server.program().to_str().unwrap();
        self.restore(name, nodes, &[&["--start", "--server", program], options].concat()).json()
    }

    /// The running cluster holds what the latest backup holds, slot by slot.
    pub(crate) fn same_data(&self, node: SocketAddr, options: &[&str]) {
        let run = self.slotkeep(&[&["diff", "latest", &node.to_string()], options].concat());
        assert_eq!(run.code, 0, "{}\n{}", run.stdout, run.stderr);
    }

    /// What lies where folders are restored to, but for the repository.
    pub(crate) fn restored(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "repo").collect()
    }

    /// The first object of the backup whose name ends so.
    pub(crate) fn object(&self, suffix: &str) -> PathBuf {
        find(&self.repo(), suffix).unwrap()
    }
}

fn find(folder: &Path, suffix: &str) -> Option<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().find_map(|path| {
        if path.is_dir() {
            find(&path, suffix)
        } else {
            Some(path).filter(|path| path.to_str().unwrap().ends_with(suffix))
        }
    })
}

impl Drop for Bench {
    fn drop(&mut self) {
        while let Some(file) = find(self.folder.path(), "server.pid") {
            let pid = std::fs::read_to_string(&file).unwrap();
            Command::new("kill").args(["-9", pid.trim()]).status().unwrap();
            std::fs::remove_file(file).unwrap();
        }
    }
}

/// A number from the environment.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Shuts these nodes down.
pub(crate) fn stop_nodes(nodes: &[SocketAddr]) {
    let mut client = cluster_client(nodes, None);
    for node in nodes {
        // Its end closes the connection: there is no reply to wait for.
        let _ = client.connection(*node).unwrap().command(&["SHUTDOWN", "NOSAVE"]);
    }
}

/// Addresses whose ports and bus ports are free: apart from those that the testkit gives its nodes and their buses.
pub(crate) fn free_addrs(count: usize) -> Vec<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 700).unwrap();
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let candidates = std::iter::repeat_with(|| 22_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 700);
    candidates
        .take(700)
        .filter(|port| free(*port) && free(port + 10_000))
        .take(count)
        .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .collect()
}

/// A client of a restored cluster.
pub(crate) fn cluster_client(nodes: &[SocketAddr], password: Option<&str>) -> ClusterClient {
    ClusterClient::connect(nodes.iter().map(|node| endpoint(*node, None, password)).collect()).unwrap()
}

/// A client of one node.
pub(crate) fn client(node: SocketAddr, user: Option<&str>, password: Option<&str>) -> Client {
    Client::connect(&endpoint(node, user, password)).unwrap()
}

pub(crate) fn endpoint(node: SocketAddr, user: Option<&str>, password: Option<&str>) -> Endpoint {
    let plain = Endpoint::plain(node);
    Endpoint { user: user.map(str::to_owned), password: password.map(str::to_owned), ..plain }
}

pub(crate) fn config(client: &mut Client, name: &str) -> String {
    client.command(&["CONFIG", "GET", name]).unwrap().array().unwrap()[1].text().unwrap()
}

/// Lines of `CLUSTER NODES`: id, role and slots of each node.
pub(crate) fn topology(node: SocketAddr) -> Vec<(String, String, String)> {
    let text = client(node, None, None).command(&["CLUSTER", "NODES"]).unwrap().text().unwrap();
    text.lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let role = if words[2].contains("master") { "primary" } else { "replica" };
            (words[0].to_owned(), role.to_owned(), words[8..].join(" "))
        })
        .collect()
}

pub(crate) fn seed(cluster: &Cluster) -> SocketAddr {
    cluster.nodes()[0].addr()
}
