//! An encrypted repository from `init` to a restored cluster, and every way to get its keys wrong.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use std::path::{Path, PathBuf};

use common::{Run, command, files, server};
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::{Cluster, ClusterBuilder};

/// An identity of age's own making, and its public key.
struct Reader {
    file: PathBuf,
    public: String,
}

impl Reader {
    fn new(folder: &Path, name: &str) -> Self {
        let file = folder.join(name);
        let output = std::process::Command::new("age-keygen").arg("-o").arg(&file).output();
        assert!(output.unwrap().status.success(), "age-keygen");
        let text = std::fs::read_to_string(&file).unwrap();
        let public = text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned();
        Self { file, public }
    }

    fn file(&self) -> &str {
        self.file.to_str().unwrap()
    }
}

#[test]
fn an_encrypted_repository_serves_and_only_its_readers_read_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let repo = path("repo");
    let on = |machine: &str, arguments: &[&str]| {
        let mut command = command();
        command.args(arguments).args(["--json", "--repo", &repo]);
        Run::of(&command.env("SLOTKEEP_STATE", path(machine)).output().unwrap())
    };
    let [reader, other, later] = ["reader", "other", "later"].map(|name| Reader::new(folder.path(), name));
    let cluster = ClusterBuilder::new(server("valkey-9.1")).primaries(3).start().unwrap();
    Mix::every_type().load(&cluster).unwrap();
    let addr = cluster.nodes()[0].addr().to_string();
    let backup = ["backup", "--jobs-per-host", "3", "--cluster", &addr];

    let made = on("host", &["init", "--recipient", &reader.public]).expect_code(0).json();
    let fingerprint = made["fingerprint"].as_str().unwrap().to_owned();
    // Passwords are kept without being asked for, since they are encrypted.
    let mut client = cluster.client().unwrap();
    client.command_on(b"x", &["CONFIG", "SET", "maxmemory-policy", "allkeys-lfu"]).unwrap();
    client.command_on(b"x", &["ACL", "SETUSER", "app", "on", ">hunter2", "~*", "+@all"]).unwrap();
    let taken = on("host", &backup).expect_code(0).json();
    assert_eq!(taken["settings"][0]["secrets"], true);

    // The host lists and shows; it reads neither settings nor data, and a target stays as it was.
    let list = on("host", &["list"]).expect_code(0).json();
    assert_eq!(list["backups"][0]["keys"], taken["digest"]["keys"]);
    let shown = on("host", &["show"]).expect_code(0).json();
    assert_eq!(shown["settings"].as_array().unwrap().len(), 0);
    let target = path("target");
    let restore = ["restore", "--to-dir", &target, "--nodes", "127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003"];
    let locked = on("host", &restore).expect_code(25);
    assert!(locked.stderr.contains("--identity"), "{}", locked.stderr);
    assert!(!Path::new(&target).exists());
    on("host", &["diff", "latest", &addr]).expect_code(25);
    on("host", &["key", "export"]).expect_code(25);
    for (name, bytes) in files(Path::new(&repo)) {
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("allkeys-lfu") && !text.contains("user app"), "{name}");
    }

    // Its reader compares and restores, also by a command that prints the identity.
    let identity = ["--identity", reader.file()];
    on("laptop", &[&["diff", "latest", &addr][..], &identity].concat()).expect_code(0);
    let printed = format!("cat {}", reader.file());
    let by_command = ["show", "--identity-command", &printed, "--trust", &fingerprint];
    let shown = on("laptop", &by_command).expect_code(0).json();
    // It was set on one node, which therefore has a row of its own.
    let rows = shown["settings"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["config"]["maxmemory-policy"] == "allkeys-lfu"), "{rows:?}");
    on("laptop", &[&restore[..], &identity].concat()).expect_code(0);
    assert!(Path::new(&target).exists());

    // Wrong keys, each for what it is.
    let before = files(Path::new(&repo));
    on("laptop", &["show", "--identity", other.file()]).expect_code(25);
    // Neither is damage: nothing is said of the objects, and no record is written.
    for verify in [&["verify", "--identity", other.file()][..], &["verify"]] {
        let run = on("laptop", verify).expect_code(25);
        let error: serde_json::Value = serde_json::from_str(run.stderr.lines().last().unwrap()).unwrap();
        assert_eq!(error["error"]["kind"], "key", "{}", run.stderr);
    }
    on("laptop", &["show", "--identity", &path("nowhere")]).expect_code(25);
    on("laptop", &["show", "--identity-command", "exit 3"]).expect_code(25);
    on("laptop", &["show", "--trust", &"0".repeat(40)]).expect_code(26);
    let unsigned = on("third", &backup).expect_code(25);
    assert!(unsigned.stderr.contains("export-signing"), "{}", unsigned.stderr);
    assert_eq!(files(Path::new(&repo)), before);
    let checked = on("third", &["check", "--cluster", &addr]).expect_code(41).stdout;
    assert!(checked.contains("signing key"), "{checked}");
    // What another machine needs to write here.
    let key = on("host", &["key", "export-signing"]).expect_code(0).json();
    let file = path("signing.key");
    std::fs::write(&file, key["secret"].as_str().unwrap()).unwrap();
    on("third", &[&backup[..], &["--signing-key", &file]].concat()).expect_code(0);

    // Other readers, without a byte of a backup changed.
    let rekey = ["key", "rekey", "--recipient", &later.public, "--identity", reader.file()];
    on("laptop", &rekey).expect_code(0);
    on("laptop", &[&["diff", "latest", &addr][..], &identity].concat()).expect_code(25);
    on("laptop", &["diff", "latest", &addr, "--identity", later.file()]).expect_code(0);

    // The newest backup disappears: nobody takes the older one for the latest.
    let newest = on("host", &["list"]).expect_code(0).json()["backups"][1]["id"].as_str().unwrap().to_owned();
    std::fs::remove_file(Path::new(&repo).join(format!("main/backups/{newest}.json"))).unwrap();
    on("laptop", &["show", "--identity", later.file()]).expect_code(26);
}

/// Neither over replication nor from files does a backup that goes on with another need to read what is stored.
#[test]
fn a_host_that_only_writes_goes_on_with_backups() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let repo = path("repo");
    let on = |machine: &str, arguments: &[&str]| {
        let mut command = command();
        command.args(arguments).args(["--json", "--repo", &repo]);
        Run::of(&command.env("SLOTKEEP_STATE", path(machine)).output().unwrap())
    };
    let reader = Reader::new(folder.path(), "reader");
    on("host", &["init", "--recipient", &reader.public]).expect_code(0);
    let cluster =
        ClusterBuilder::new(server("valkey-9.1")).primaries(2).config("appendonly", "yes").start().unwrap();
    let mut client = cluster.client().unwrap();
    let addr = cluster.nodes()[0].addr().to_string();
    let program = server("valkey-9.1").program().to_str().unwrap().to_owned();
    let from_files = ["--source", "files", "--files-from", "aof"];
    for source in [&[][..], &from_files] {
        let full = [&["backup", "--jobs-per-host", "3", "--cluster", &addr], source].concat();
        client.command(&["INCR", "counter"]).unwrap();
        let base = on("host", &full).expect_code(0).json();
        // The base of append-only files is from before the first key.
        assert_eq!(base["digest"]["keys"], u64::from(source.is_empty()));
        // Each goes on with the one before it, and says of the bases what that said.
        for _ in 0..2 {
            client.command(&["INCR", "counter"]).unwrap();
            let next = [&full[..], &["--type", "incremental", "--no-fallback"]].concat();
            let taken = on("host", &next).expect_code(0).json();
            assert_eq!(taken["kind"], "incremental");
            assert_eq!(taken["digest"], base["digest"]);
        }
        let compared =
            ["diff", "latest", &addr, "--identity", reader.file(), "--engine", &program].map(str::to_owned);
        let compared: Vec<&str> = compared.iter().map(String::as_str).collect();
        on("laptop", &compared).expect_code(0);
    }
    let verify = ["verify", "--depth", "structure", "--identity", reader.file()];
    let proved = on("laptop", &verify).expect_code(0).json();
    assert_eq!(proved["findings"].as_array().unwrap().len(), 0, "{proved}");
}

/// A server, an encrypted repository with one backup of it, and machines that each remember what they have seen.
struct Scene {
    folder: tempfile::TempDir,
    cluster: Cluster,
    reader: Reader,
    fingerprint: String,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let reader = Reader::new(folder.path(), "reader");
        let cluster =
            ClusterBuilder::new(server("valkey-9.1")).primaries(1).cluster_mode(false).start().unwrap();
        cluster.client().unwrap().command(&["SET", "key", "value"]).unwrap();
        let mut scene = Self { folder, cluster, reader, fingerprint: String::new() };
        let made = scene.on("host", &["init", "--recipient", &scene.reader.public]).expect_code(0).json();
        made["fingerprint"].as_str().unwrap().clone_into(&mut scene.fingerprint);
        scene.backup();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// What that machine says of the repository.
    fn on(&self, machine: &str, arguments: &[&str]) -> Run {
        let mut command = command();
        command.args(arguments).args(["--json", "--repo"]).arg(self.path("repo"));
        Run::of(&command.env("SLOTKEEP_STATE", self.path(machine)).output().unwrap())
    }

    /// The same, asked to do something with the server.
    fn with_server(&self, machine: &str, arguments: &[&str]) -> Run {
        let addr = self.cluster.nodes()[0].addr().to_string();
        let spool = self.text("spool");
        let spool = if arguments[0] == "check" { &[][..] } else { &["--spool", &spool] };
        self.on(machine, &[arguments, &["--cluster", &addr], spool].concat())
    }

    /// The id of a backup that the host takes.
    fn backup(&self) -> String {
        let taken = self.with_server("host", &["backup"]).expect_code(0).json();
        taken["id"].as_str().unwrap().to_owned()
    }

    fn manifest(&self, id: &str) -> PathBuf {
        self.path(&format!("repo/main/backups/{id}.json"))
    }

    /// What the host is told when it asks for that, able to read.
    fn refused(&self, arguments: &[&str]) {
        let identity = self.text("reader");
        let refused = self.on("host", &[arguments, &["--identity", &identity]].concat()).expect_code(26);
        assert!(refused.stderr.contains("not any more"), "{}", refused.stderr);
    }
}

/// The newest backup is taken away, and a file of a later name put in its place.
#[test]
fn a_name_passes_for_no_backup() {
    let scene = Scene::new();
    std::fs::remove_file(scene.manifest(&scene.backup())).unwrap();
    std::fs::write(scene.manifest("z"), "{}").unwrap();
    let (mirror, target) = (scene.text("mirror"), scene.text("target"));
    scene.refused(&["list"]);
    scene.refused(&["log"]);
    scene.refused(&[
        "restore",
        "--at",
        "latest",
        "--dry-run",
        "--to-dir",
        &target,
        "--nodes",
        "127.0.0.1:17001",
    ]);
    scene.refused(&["copy", "--to", &mirror]);
    scene.refused(&["verify"]);
    assert!(!Path::new(&mirror).exists());
}

#[test]
fn a_verification_does_not_prove_an_older_state() {
    let scene = Scene::new();
    let newest = scene.manifest(&scene.backup());
    let genuine = std::fs::read(&newest).unwrap();
    std::fs::remove_file(&newest).unwrap();
    scene.refused(&["verify"]);
    // A damaged one is there, and named.
    std::fs::write(&newest, "{}").unwrap();
    let verify = ["verify", "--identity", &scene.text("reader")];
    let found = scene.on("host", &verify).expect_code(42).json();
    let name = newest.file_name().unwrap().to_str().unwrap();
    assert!(found["findings"].to_string().contains(name), "{found:#}");
    std::fs::write(&newest, genuine).unwrap();
    scene.on("host", &verify).expect_code(0);
}

/// The next backup would become the newest that is remembered.
#[test]
fn a_backup_does_not_cover_what_was_taken_away() {
    let scene = Scene::new();
    let newest = scene.manifest(&scene.backup());
    let genuine = std::fs::read(&newest).unwrap();
    let other = scene.text("other");
    for instead in [None, Some("{}")] {
        match instead {
            None => std::fs::remove_file(&newest).unwrap(),
            Some(text) => std::fs::write(&newest, text).unwrap(),
        }
        let before = files(&scene.path("repo"));
        for more in [&[][..], &["--type", "incremental"], &["--repo", &other]] {
            let refused = scene.with_server("host", &[&["backup"][..], more].concat()).expect_code(26);
            assert!(refused.stderr.contains(&scene.text("repo")), "{}", refused.stderr);
        }
        scene.with_server("host", &["archive"]).expect_code(26);
        assert_eq!(files(&scene.path("repo")), before);
    }
    // One that need not have it is passed over.
    let addr = scene.cluster.nodes()[0].addr().to_string();
    let mut optional = command();
    optional.args(["backup", "--json", "--repo", &other, "--cluster", &addr, "--repo-optional"]);
    optional.arg(scene.path("repo")).env("SLOTKEEP_STATE", scene.path("host"));
    let taken = Run::of(&optional.output().unwrap()).expect_code(0).json();
    assert_eq!(taken["repositories"][1]["has_backup"], false, "{taken:#}");
    std::fs::write(&newest, genuine).unwrap();
    scene.backup();
}

#[test]
fn a_repository_without_a_cluster_that_it_had_is_not_empty() {
    let scene = Scene::new();
    std::fs::rename(scene.path("repo/main"), scene.path("main")).unwrap();
    scene.refused(&["list"]);
    scene.refused(&["copy", "--to", &scene.text("mirror")]);
    scene.refused(&["verify"]);
    std::fs::rename(scene.path("main"), scene.path("repo/main")).unwrap();
    scene.on("host", &["list"]).expect_code(0);
}

/// Without a folder to remember in, none is made that would have to be remembered, and whoever uses one is warned.
#[test]
fn a_machine_that_remembers_nothing_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let reader = Reader::new(folder.path(), "reader");
    let state = folder.path().join("state");
    let on = |repo: &str, arguments: &[&str], state: Option<&Path>| {
        let mut command = command();
        command.args(arguments).arg("--repo").arg(folder.path().join(repo));
        command.env_remove("XDG_STATE_HOME").env_remove("HOME");
        command.envs(state.map(|state| ("SLOTKEEP_STATE", state)));
        Run::of(&command.output().unwrap())
    };
    let init = ["init", "--recipient", &reader.public];
    let refused = on("secret", &init, None).expect_code(2);
    assert!(refused.stderr.contains("SLOTKEEP_STATE"), "{}", refused.stderr);
    assert!(!folder.path().join("secret").exists());
    on("secret", &init, Some(&state)).expect_code(0);
    on("plain", &["init"], None).expect_code(0);
    for (repo, state, warned) in
        [("secret", None, true), ("secret", Some(state.as_path()), false), ("plain", None, false)]
    {
        let said = on(repo, &["list"], state).expect_code(0).stderr;
        assert_eq!(said.contains("SLOTKEEP_STATE"), warned, "{said}");
    }
}

/// What is mounted may be away: nothing is written to the empty folder in its stead, least of all unencrypted.
#[test]
fn an_empty_folder_in_place_of_a_known_repository_takes_nothing() {
    let scene = Scene::new();
    let (mirror, identity) = (scene.text("mirror"), scene.text("reader"));
    let copy = ["copy", "--to", &mirror, "--identity", &identity];
    scene.on("laptop", &copy).expect_code(0);
    for repository in ["repo", "mirror"] {
        std::fs::rename(scene.path(repository), scene.path(&format!("{repository}-away"))).unwrap();
        std::fs::create_dir(scene.path(repository)).unwrap();
    }
    let trust = ["--trust", &scene.fingerprint];
    for (machine, more) in [("host", &[][..]), ("new", &trust)] {
        for asked in ["backup", "archive"] {
            let refused = scene.with_server(machine, &[&[asked][..], more].concat()).expect_code(26);
            assert!(refused.stderr.contains("mounted"), "{}", refused.stderr);
        }
        let checked = scene.with_server(machine, &[&["check"][..], more].concat()).expect_code(41).stdout;
        assert!(checked.contains("mounted"), "{checked}");
    }
    // Nor does one that is optional get anything.
    let taken = scene.with_server("host", &["backup", "--repo-optional", &scene.text("other")]);
    taken.expect_code(26);
    assert!(files(&scene.path("repo")).is_empty() && !scene.path("other").exists());
    let away = scene.text("repo-away");
    let refused = command()
        .args([&copy[..], &["--repo", &away]].concat())
        .env("SLOTKEEP_STATE", scene.path("laptop"))
        .output();
    let refused = Run::of(&refused.unwrap()).expect_code(26);
    assert!(refused.stderr.contains("mounted"), "{}", refused.stderr);
    assert!(files(&scene.path("mirror")).is_empty());
    // Mounted again it goes on; what is asked for by name is made.
    std::fs::remove_dir(scene.path("repo")).unwrap();
    std::fs::rename(scene.path("repo-away"), scene.path("repo")).unwrap();
    scene.backup();
    std::fs::remove_dir_all(scene.path("repo")).unwrap();
    scene.on("host", &["init", "--recipient", &scene.reader.public]).expect_code(0);
    scene.backup();
}
