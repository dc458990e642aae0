//! `--files-from backup`, against a server that speaks `BACKUP` as its reference says: a real one of an older version, with a proxy before it that
//! answers these commands itself, out of the real one's append-only file. No server that has them could be had.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::{Client, Cluster, ClusterBuilder, Endpoint, servers};

use super::Place;
use super::common::{Run, command, server};

const LIMIT: Duration = Duration::from_secs(30);

/// How the fake one behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    AsDocumented,
    /// A rewrite that never ends.
    Slow,
    /// A rewrite that fails.
    Failing,
    /// Somebody else has begun a backup.
    Taken,
}

struct Fake {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    real: SocketAddr,
    dir: PathBuf,
    manner: Manner,
    name: &'static str,
    /// What was asked.
    asked: Vec<String>,
}

impl Fake {
    fn before(cluster: &Cluster, manner: Manner) -> Self {
        let node = &cluster.nodes()[0];
        let name = if manner == Manner::Taken { "incrementing" } else { "idle" };
        let state = State { real: node.addr(), dir: node.dir().to_owned(), manner, name, asked: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&shared);
                thread::spawn(move || serve(client, &state));
            }
        });
        Self { addr, state }
    }

    fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.state.lock().unwrap().dir.join("backupdir")).map_or(0, Iterator::count)
    }
}

/// Passes everything on but `BACKUP`. Clients ask one thing after the other, so no reply is under way when they ask for that.
fn serve(client: TcpStream, state: &Mutex<State>) {
    let real = TcpStream::connect(state.lock().unwrap().real).unwrap();
    let (mut replies, mut back) = (real.try_clone().unwrap(), client.try_clone().unwrap());
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(read @ 1..) = replies.read(&mut buffer) {
            if back.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
    });
    let (mut real, mut answers) = (real, client.try_clone().unwrap());
    let mut requests = BufReader::new(client);
    while let Some((raw, words)) = request(&mut requests) {
        let is_backup = words.first().is_some_and(|word| word.eq_ignore_ascii_case("BACKUP"));
        let answer = is_backup.then(|| state.lock().unwrap().answer(&words[1].to_uppercase()));
        let sent = match answer {
            Some(answer) => answers.write_all(answer.as_bytes()),
            None => real.write_all(&raw),
        };
        if sent.is_err() {
            break;
        }
    }
    let _ = real.shutdown(std::net::Shutdown::Both);
}

/// One request: its bytes, and its words.
fn request(from: &mut impl BufRead) -> Option<(Vec<u8>, Vec<String>)> {
    let (mut raw, mut words) = (Vec::new(), Vec::new());
    let number = |from: &mut dyn BufRead, raw: &mut Vec<u8>| -> Option<usize> {
        let start = raw.len();
        from.read_until(b'\n', raw).ok()?;
        std::str::from_utf8(raw.get(start + 1..)?).ok()?.trim().parse().ok()
    };
    for _ in 0..number(from, &mut raw)? {
        let length = number(from, &mut raw)?;
        let start = raw.len();
        raw.resize(start + length + 2, 0);
        from.read_exact(&mut raw[start..]).ok()?;
        words.push(String::from_utf8_lossy(&raw[start..start + length]).into_owned());
    }
    Some((raw, words))
}

impl State {
    fn answer(&mut self, what: &str) -> String {
        self.asked.push(what.to_owned());
        let folder = self.dir.join("backupdir");
        match (what, self.name) {
            ("STATUS", _) => {
                if self.name == "snapshotting" && self.manner == Manner::AsDocumented && !self.is_rewriting()
                {
                    self.pin_base();
                    self.name = "incrementing";
                }
                let error = if self.name == "failed" { "AOF rewrite failed" } else { "" };
                array(&["state", self.name, "error", error, "start_time", "1717921800", "end_time", "0"])
            }
            ("START", "idle" | "failed") => {
                std::fs::create_dir_all(&folder).unwrap();
                if folder.read_dir().unwrap().next().is_some() {
                    return "-ERR backup directory is not empty\r\n".to_owned();
                }
                // One that fails is not begun: it would be in the way of the next.
                self.name = if self.manner == Manner::Failing { "failed" } else { "snapshotting" };
                if self.name == "snapshotting" {
                    self.client().command(&["BGREWRITEAOF"]).unwrap();
                }
                ok()
            }
            ("SEAL", "incrementing") => {
                // What was written until now belongs to it.
                self.client().command(&["SET", "within", "1"]).unwrap();
                let names = self.live();
                // A copy, as the real one rotates its file.
                std::fs::copy(self.dir.join("appendonlydir").join(&names[1]), folder.join(&names[1]))
                    .unwrap();
                let manifest = format!("file {} seq 2 type b\nfile {} seq 2 type i\n", names[0], names[1]);
                std::fs::write(folder.join("appendonly.aof.manifest"), manifest).unwrap();
                self.client().command(&["SET", "after", "1"]).unwrap();
                self.name = "sealed";
                ok()
            }
            ("LIST", "sealed") => {
                let names = self.live();
                let paths = [&names[0], &names[1], "appendonly.aof.manifest"].map(|name| folder.join(name));
                array(&paths.each_ref().map(|path| path.to_str().unwrap()))
            }
            ("ABORT", "pending" | "snapshotting" | "incrementing") => {
                self.empty();
                self.name = "failed";
                ok()
            }
            ("CLEANUP", "idle" | "failed" | "sealed") => {
                self.empty();
                self.name = "idle";
                ok()
            }
            _ => format!("-ERR {what} is not allowed while the backup is {}\r\n", self.name),
        }
    }

    fn client(&self) -> Client {
        Client::connect(&Endpoint::plain(self.real)).unwrap()
    }

    fn is_rewriting(&self) -> bool {
        self.client().info_field("persistence", "aof_rewrite_in_progress").unwrap().as_deref() != Some("0")
    }

    /// The base and the commands of the live append-only file.
    fn live(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.join("appendonlydir/appendonly.aof.manifest")).unwrap();
        let lines = text.lines().filter(|line| !line.contains("type h"));
        lines.map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect()
    }

    fn pin_base(&self) {
        let name = &self.live()[0];
        let pinned = self.dir.join("backupdir").join(name);
        std::fs::hard_link(self.dir.join("appendonlydir").join(name), pinned).unwrap();
    }

    fn empty(&self) {
        for entry in std::fs::read_dir(self.dir.join("backupdir")).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
}

fn ok() -> String {
    "+OK\r\n".to_owned()
}

fn array(words: &[&str]) -> String {
    let bulk = |word: &&str| format!("${}\r\n{word}\r\n", word.len());
    format!("*{}\r\n{}", words.len(), words.iter().map(bulk).collect::<String>())
}

fn standalone() -> Cluster {
    ClusterBuilder::new(server("redis-7.0"))
        .cluster_mode(false)
        .config("appendonly", "yes")
        .config("appendfsync", "always")
        .start()
        .unwrap()
}

fn backup_of(place: &Place, addr: SocketAddr) -> std::process::Command {
    let seed = addr.to_string();
    let mut backup = command();
    backup.args(["backup", "--json", "--source", "files", "--files-from", "backup", "--cluster", &seed]);
    backup.args(["--repo", &place.path("repo"), "--spool", &place.path("spool")]);
    backup
}

#[test]
fn what_the_server_has_sealed_is_taken_and_cleaned_up() {
    let cluster = standalone();
    Mix::every_type().load(&cluster).unwrap();
    let fake = Fake::before(&cluster, Manner::AsDocumented);
    let place = Place::new();
    let manifest = Run::of(&backup_of(&place, fake.addr).output().unwrap()).expect_code(0).json();
    let shard = &manifest["shards"][0];
    assert_eq!((&shard["read"]["source"], &shard["read"]["anchored"]), (&"backup".into(), &true.into()));
    let asked: Vec<String> = fake.asked().into_iter().filter(|what| what != "STATUS").collect();
    assert_eq!(asked, ["START", "SEAL", "LIST", "CLEANUP"]);
    assert_eq!(fake.files(), 0);
    // But for what came after the seal it is what the server has.
    let engine = servers::require("redis-7.0").unwrap().program().to_str().unwrap().to_owned();
    let seed = cluster.nodes()[0].addr().to_string();
    let differing = place.run(&["diff", "latest", &seed, "--engine", &engine]).expect_code(40).json();
    let keys: Vec<&str> =
        differing["keys"].as_array().unwrap().iter().map(|key| key["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["\"after\""]);
}

#[test]
fn what_goes_wrong_leaves_nothing_on_the_server() {
    let cluster = standalone();
    let place = Place::new();
    let take =
        |fake: &Fake, code: i32| Run::of(&backup_of(&place, fake.addr).output().unwrap()).expect_code(code);

    let failing = Fake::before(&cluster, Manner::Failing);
    assert!(take(&failing, 1).stderr.contains("AOF rewrite failed"));
    assert_eq!((failing.asked().last().unwrap().as_str(), failing.files()), ("CLEANUP", 0));

    // Another's is left alone.
    let taken = Fake::before(&cluster, Manner::Taken);
    assert!(take(&taken, 1).stderr.contains("somebody else's, which is incrementing"));
    assert_eq!(taken.asked(), ["STATUS"]);

    let slow = Fake::before(&cluster, Manner::Slow);
    let child = backup_of(&place, slow.addr).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(LIMIT, "the snapshot", || {
        let waits = slow.asked().iter().filter(|what| *what == "STATUS").count() > 2;
        if waits { Ok(()) } else { Err(NotYet::because("it was not waited for yet")) }
    })
    .unwrap();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    Run::of(&child.wait_with_output().unwrap()).expect_code(130);
    let asked = slow.asked();
    assert_eq!(asked[asked.len() - 2..], ["ABORT", "CLEANUP"]);

    // A server that has no such command.
    let run = Run::of(&backup_of(&place, cluster.nodes()[0].addr()).output().unwrap()).expect_code(32);
    assert!(run.stderr.contains("8.10"), "{}", run.stderr);
    let list = place.run(&["list"]).expect_code(0).json();
    assert_eq!(list["backups"].as_array().unwrap().len(), 0);
}
