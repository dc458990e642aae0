//! A server that is made to save and to load RDBs.

use std::path::PathBuf;
use std::process::Command;

use slotkeep_testkit::{Client, Cluster, ClusterBuilder, Server, servers};

/// A single server.
pub struct Single {
    pub cluster: Cluster,
    pub client: Client,
    pub server: Server,
}

impl Single {
    pub fn start(name: &str) -> Self {
        Self::start_with(name, |builder| builder.cluster_mode(false))
    }

    /// One that is set up further.
    pub fn start_with(name: &str, set_up: impl FnOnce(ClusterBuilder) -> ClusterBuilder) -> Self {
        let server = servers::require(name).unwrap();
        let builder = set_up(ClusterBuilder::new(server.clone()).primaries(1));
        let cluster = builder.config("dbfilename", "dump.rdb").start().unwrap();
        let client = cluster.node(0).unwrap().client().unwrap();
        Self { cluster, client, server }
    }

    fn file(&self) -> PathBuf {
        self.cluster.node(0).unwrap().dir().join("dump.rdb")
    }

    /// The RDB that the server writes now.
    pub fn save(&mut self) -> Vec<u8> {
        self.client.command(&["SAVE"]).unwrap();
        std::fs::read(self.file()).unwrap()
    }

    /// Makes the server replace its data by that RDB.
    pub fn load(&mut self, rdb: &[u8], what: &str) {
        std::fs::write(self.file(), rdb).unwrap();
        if let Err(error) = self.client.command(&["DEBUG", "RELOAD", "NOSAVE"]) {
            panic!("{what}: {error}\n{}", self.cluster.node(0).unwrap().log());
        }
    }

    /// Stops the server, puts the RDB in its place, and starts it.
    pub fn start_on(&mut self, rdb: &[u8]) {
        let node = self.cluster.node(0).unwrap();
        node.shutdown().unwrap();
        std::fs::write(self.file(), rdb).unwrap();
        node.start().unwrap();
        self.client = node.client().unwrap();
    }

    /// What the server's own checking tool says of an RDB: the server itself under the tool's name.
    pub fn check_rdb(&self, rdb: &[u8]) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("checked.rdb");
        std::fs::write(&file, rdb).unwrap();
        let program = self.server.program();
        let script = std::fs::read_to_string(program).unwrap();
        let here = program.parent().unwrap().display();
        let tool = if script.contains("valkey-server") { "valkey-check-rdb" } else { "redis-check-rdb" };
        let script = script
            .replace("here=${0%/*}", &format!("here='{here}'"))
            .replace("--argv0 redis-server", &format!("--argv0 {tool}"))
            .replace("--argv0 valkey-server", &format!("--argv0 {tool}"))
            .replace("exec \"$here", &format!("exec -a {tool} \"$here"));
        let output = Command::new("bash").args(["-c", &script, tool]).arg(&file).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() && text.contains("RDB looks OK") { Ok(()) } else { Err(text) }
    }
}
