//! An encrypted repository from `init` to a restored cluster, and every way to get its keys wrong.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{Run, command, files, server};
use serde_json::Value as Json;
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::resp::Value;
use slotkeep_testkit::{Cluster, ClusterBuilder};
use tempfile::TempDir;

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
        let text = fs::read_to_string(&file).unwrap();
        let public = text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned();
        Self { file, public }
    }

    fn file(&self) -> &str {
        self.file.to_str().unwrap()
    }
}

/// A folder with an encrypted repository that was made on the machine `host`, and its reader.
struct Place {
    folder: TempDir,
    reader: Reader,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let reader = Reader::new(folder.path(), "reader");
        let place = Self { folder, reader };
        place.on("host", &["init", "--recipient", &place.reader.public]).expect_code(0);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of the repository.
    fn stored(&self, path: &str) -> PathBuf {
        self.path("repo").join(path)
    }

    /// Runs it on that machine.
    fn on(&self, machine: &str, arguments: &[&str]) -> Run {
        let mut command = command();
        command.args(arguments).arg("--json").arg("--repo").arg(self.path("repo"));
        Run::of(&command.env("SLOTKEEP_STATE", self.path(machine)).output().unwrap())
    }

    /// Runs it on the machine of the reader.
    fn read(&self, arguments: &[&str]) -> Run {
        self.on("laptop", &[arguments, &["--identity", self.reader.file()]].concat())
    }

    /// The files of a folder of the repository, the newest last.
    fn list(&self, folder: &str) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(self.stored(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }
}

/// The file as earlier versions wrote it: with its seal, and without a signature.
fn without_signature(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    match text.split_once(",\n\"signature\"") {
        Some((body, _)) => format!("{body}\n}}\n"),
        None => text,
    }
}

/// JSON as somebody forges it: without seal and signature.
fn forged(file: &Path, change: impl FnOnce(&mut Json)) -> Vec<u8> {
    let mut json: Json = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    json.as_object_mut().unwrap().retain(|name, _| name != "seal" && name != "signature");
    change(&mut json);
    serde_json::to_vec_pretty(&json).unwrap()
}

fn error_kind(run: &Run) -> String {
    let error: Json = serde_json::from_str(run.stderr.lines().last().unwrap()).unwrap();
    error["error"]["kind"].as_str().unwrap().to_owned()
}

/// Whether the cluster takes a write.
fn takes_writes(cluster: &Cluster) -> bool {
    let mut client = cluster.nodes()[0].client().unwrap();
    match client.pipeline(&[vec!["SET", "key", "value"]]).unwrap().remove(0) {
        Value::Error(text) if text.contains("NOREPLICAS") => false,
        Value::Error(text) => panic!("{text}"),
        _ => true,
    }
}

#[test]
fn a_fence_is_kept_signed_and_can_be_lifted() {
    let place = Place::new();
    let builder = ClusterBuilder::new(server("valkey-9.1")).primaries(1).config("min-replicas-max-lag", "7");
    let cluster = builder.start().unwrap();
    let addr = cluster.nodes()[0].addr().to_string();
    let fence = ["fence", "--cluster", &addr];
    let with = |more: &[&'static str]| [&fence[..], more].concat();

    // Who can't sign the record, or does not trust the repository, is told so before anything is fenced.
    let refused = place.on("third", &fence).expect_code(25);
    assert!(refused.stderr.contains("export-signing"), "{}", refused.stderr);
    place.on("host", &with(&["--trust", "0000000000000000000000000000000000000000"])).expect_code(26);
    assert!(takes_writes(&cluster));

    place.on("host", &fence).expect_code(0);
    assert!(!takes_writes(&cluster));
    for file in place.list("main/fence") {
        assert!(fs::read_to_string(&file).unwrap().contains("\"signature\""), "{}", file.display());
    }
    for status in [place.on("host", &with(&["--status"])), place.on("third", &with(&["--status"]))] {
        status.expect_code(0);
    }
    place.on("host", &fence).expect_code(0);
    place.on("host", &with(&["--undo"])).expect_code(0);
    assert!(takes_writes(&cluster));
    // The identity brings the signing key with it.
    place.read(&fence).expect_code(0);
    place.read(&with(&["--undo"])).expect_code(0);
    assert!(takes_writes(&cluster));

    // A record of an earlier version: it undoes, but nothing is built on it.
    place.on("host", &fence).expect_code(0);
    let newest = place.list("main/fence").pop().unwrap();
    fs::write(&newest, without_signature(&newest)).unwrap();
    let refused = place.on("host", &fence).expect_code(26);
    assert!(refused.stderr.contains("fence --undo"), "{}", refused.stderr);
    let status = place.on("host", &with(&["--status"])).expect_code(0);
    assert!(status.stderr.contains("is not signed"), "{}", status.stderr);
    assert!(!takes_writes(&cluster));
    place.on("host", &with(&["--undo"])).expect_code(0);
    assert!(takes_writes(&cluster));
    let mut client = cluster.nodes()[0].client().unwrap();
    let lag = client.command(&["CONFIG", "GET", "min-replicas-max-lag"]).unwrap();
    assert!(format!("{lag:?}").contains(&format!("{:?}", Value::Bulk(b"7".to_vec()))), "{lag:?}");
    place.on("host", &fence).expect_code(0);
    // Somebody adds a server of theirs to an unsigned record: it does not get to hear from us.
    let theirs = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    theirs.set_nonblocking(true).unwrap();
    let newest = place.list("main/fence").pop().unwrap();
    let bytes = forged(&newest, |record| {
        let mut node = record["nodes"][0].clone();
        node["addr"] = theirs.local_addr().unwrap().to_string().into();
        node["id"] = "b".repeat(40).into();
        record["nodes"].as_array_mut().unwrap().push(node);
    });
    fs::write(&newest, bytes).unwrap();
    place.on("host", &with(&["--undo"])).expect_code(0);
    assert!(takes_writes(&cluster));
    assert!(theirs.accept().is_err(), "a stranger was asked");
}

#[test]
fn what_is_not_signed_proves_nothing() {
    let place = Place::new();
    let cluster = ClusterBuilder::new(server("valkey-9.1")).primaries(1).start().unwrap();
    Mix::every_type().load(&cluster).unwrap();
    let addr = cluster.nodes()[0].addr().to_string();
    let id = place.on("host", &["backup", "--cluster", &addr]).expect_code(0).json()["id"].clone();
    let proved = |run: Run| {
        let totals = run.expect_code(0).json()["totals"].clone();
        [totals["proved"].as_u64().unwrap(), totals["proved_before"].as_u64().unwrap()]
    };
    let [first, _] = proved(place.read(&["verify"]));
    assert!(first > 2);
    assert_eq!(proved(place.read(&["verify"])), [0, first], "what is signed counts");
    let worst = |machine| {
        let list = place.on(machine, &["list"]).expect_code(0).json();
        list["backups"][0]["proved"]["worst"].clone()
    };
    assert_eq!(worst("host"), "ok");

    let proofs = |place: &Place| -> Vec<PathBuf> {
        let folders = place.list("main/verify").into_iter().filter(|path| path.is_dir());
        folders.map(|folder| folder.join("000001.json")).collect()
    };
    // Bytes are spoiled, and a proof of the spoiled object is put beside the genuine one.
    let proof = proofs(&place).pop().unwrap();
    let kept: Json = serde_json::from_slice(&fs::read(&proof).unwrap()).unwrap();
    let mut rows = kept["proofs"].as_array().unwrap().iter().map(|row| row["object"].as_str().unwrap());
    let rdb = rows.rfind(|object| object.ends_with("rdb.zst")).unwrap().to_owned();
    let whole = fs::read(place.stored(&rdb)).unwrap();
    let mut spoiled = whole.clone();
    spoiled[whole.len() / 2] ^= 1;
    fs::write(place.stored(&rdb), spoiled).unwrap();
    let written = fs::metadata(place.stored(&rdb)).unwrap().modified().unwrap();
    let written_ms = written.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let later = place.stored("main/verify/20990101T000000.000Z-ffff");
    fs::create_dir(&later).unwrap();
    let with_their_time = forged(&proof, |file| {
        for row in file["proofs"].as_array_mut().unwrap() {
            if row["object"] == *rdb {
                row["modified_ms"] = u64::try_from(written_ms).unwrap().into();
            }
        }
    });
    fs::write(later.join("000001.json"), with_their_time).unwrap();
    let record = place.read(&["verify"]).expect_code(42).json();
    assert!(record["findings"].to_string().contains(&rdb), "{record}");
    assert_eq!(worst("host"), "problem");

    // A record that says that all is well.
    let genuine = place.stored(&format!("main/verify/{}.json", record["id"].as_str().unwrap()));
    let good = forged(&genuine, |record| {
        record["id"] = "20990101T000000.000Z-ffff".into();
        record["findings"] = Json::Array(vec![]);
        record["backups"] = serde_json::json!([{ "id": id, "worst": "ok" }]);
    });
    fs::write(later.with_extension("000Z-ffff.json"), good).unwrap();
    assert_eq!(worst("host"), "problem");
    assert_eq!(error_kind(&place.read(&["verify", "--show", "latest"]).expect_code(26)), "untrusted");

    // All is well again.
    fs::write(place.stored(&rdb), whole).unwrap();
    place.read(&["verify"]).expect_code(0);
    assert_eq!(worst("host"), "ok");

    // Earlier versions did not sign: what they have proved is proved again.
    for file in proofs(&place).into_iter().chain(place.list("main/verify")).filter(|path| path.is_file()) {
        fs::write(&file, without_signature(&file)).unwrap();
    }
    assert_eq!(worst("host"), Json::Null);
    assert_eq!(proved(place.read(&["verify"])), [first, 0]);
    assert_eq!(worst("host"), "ok");

    // One whose signature is wrong is named, and stops nothing.
    let signed = proofs(&place)
        .into_iter()
        .rev()
        .find(|file| without_signature(file) != fs::read_to_string(file).unwrap());
    let signed = signed.unwrap();
    let text = fs::read_to_string(&signed).unwrap();
    fs::write(&signed, text.replacen("structure", "chain", 1)).unwrap();
    let record = place.read(&["verify"]).expect_code(43).json();
    assert_eq!(record["findings"][0]["check"], "signature", "{record}");
    assert_eq!(record["totals"]["proved"], first, "{record}");
}

#[test]
fn a_list_says_that_a_manifest_was_forged() {
    let place = Place::new();
    let cluster = ClusterBuilder::new(server("valkey-9.1")).primaries(1).start().unwrap();
    let addr = cluster.nodes()[0].addr().to_string();
    place.on("host", &["backup", "--cluster", &addr]).expect_code(0);
    let manifest = place.list("main/backups").pop().unwrap();
    let genuine = fs::read_to_string(&manifest).unwrap();
    let bytes = forged(&manifest, |manifest| manifest["slotkeep_version"] = "9".into());
    fs::write(&manifest, bytes).unwrap();
    for command in ["show", "list"] {
        let run = place.on("host", &[command]);
        assert_eq!((run.code, error_kind(&run).as_str()), (26, "untrusted"), "{command}: {}", run.stderr);
    }
    fs::write(&manifest, &genuine).unwrap();
    place.on("host", &["list"]).expect_code(0);
    // Anybody can make a seal.
    fs::write(&manifest, without_signature(&manifest)).unwrap();
    let record = place.read(&["verify"]).expect_code(42).json();
    let found = record["findings"].as_array().unwrap();
    assert!(found.iter().any(|finding| finding["check"] == "signature"), "{record}");
    fs::write(&manifest, genuine).unwrap();
    place.read(&["verify"]).expect_code(0);
    // Of how the cluster looked nothing is believed either; backups do not need it.
    let look = place.list("main/topology").pop().unwrap();
    let bytes = forged(&look, |look| look["current_epoch"] = 99.into());
    fs::write(&look, bytes).unwrap();
    let run = place.read(&["list"]);
    assert_eq!((run.code, error_kind(&run).as_str()), (26, "untrusted"), "{}", run.stderr);
    let list = run.json();
    assert_eq!(list["backups"].as_array().unwrap().len(), 1);
    assert!(list["unreadable_topologies"][0]["hint"].as_str().unwrap().contains("who can write"), "{list}");
}

/// Secrets are given where something else belongs, and are in no word of what is said.
#[test]
fn secrets_are_not_repeated() {
    let place = Place::new();
    let reader = fs::read_to_string(&place.reader.file).unwrap();
    let secret = reader.lines().find(|line| line.starts_with("AGE-SECRET-KEY-")).unwrap();
    let signing = place.on("host", &["key", "export-signing"]).expect_code(0).json();
    let signing = signing["secret"].as_str().unwrap();
    let lower = secret.to_lowercase();
    let (fails, new) = (format!("echo {secret} >&2; exit 3"), place.path("new"));
    let fails = fails.replace(" >&2", " >/dev/null");
    let new = new.to_str().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = command();
        Run::of(&command.args(arguments).env("SLOTKEEP_STATE", place.path("host")).output().unwrap())
    };
    let repo = place.path("repo");
    let repo = repo.to_str().unwrap();
    let key = |option, value| (25, ["list", "--repo", repo, option, value]);
    let init = |value| (25, ["init", "--repo", new, "--recipient", value]);
    let place_of = |address| (2, ["list", "--name", "main", "--repo", address]);
    for (code, arguments) in [
        init(secret),
        init(&lower),
        init(signing),
        init("hunter2-S3CRET"),
        key("--identity", secret),
        key("--signing-key", signing),
        key("--identity-command", &fails),
        place_of("s3://key:S3CRET@bucket/x"),
        place_of("s3://key:a/S3CRET@bucket/x"),
        place_of("s3://key:a?S3CRET@bucket/x"),
        place_of("s3://S3CRET@bucket/x"),
        place_of("s3://key:S3CRET@bucket:port/x"),
        place_of("ftp://key:S3CRET@host/x"),
        place_of("s3:/key:S3CRET@bucket/x"),
        place_of("az://c/p?sv=1&sig=S3CRET"),
        place_of("az://c/p?sv=1&sig=a@S3CRET"),
        place_of("s3://bucket/x#S3CRET"),
        place_of("file:///tmp/x?S3CRET"),
    ] {
        for arguments in [arguments.to_vec(), [&arguments[..], &["--json"]].concat()] {
            let run = run(&arguments);
            let said = format!("{}{}", run.stdout, run.stderr).to_lowercase();
            for secret in [&lower, &signing.to_lowercase(), "s3cret"] {
                assert!(!said.contains(secret), "{arguments:?}\n{said}");
            }
            run.expect_code(code);
        }
    }
    // A settings file is quoted no further than its line.
    let settings = place.path("settings.toml");
    for line in
        [format!("identity = \"{secret}\""), "password = \"S3CRET\"".to_owned(), "user = S3CRET".to_owned()]
    {
        fs::write(&settings, format!("repo = \"x\"\n{line}\n")).unwrap();
        let run = run(&["list", "-c", settings.to_str().unwrap()]).expect_code(2);
        let said = run.stderr.to_lowercase();
        assert!(said.contains("line 2") && !said.contains(&lower) && !said.contains("s3cret"), "{said}");
    }
    let run = run(&["init", "--repo", new, "--recipient", secret]);
    assert!(run.stderr.contains("public key") && !Path::new(new).exists(), "{}", run.stderr);
}

#[test]
fn what_this_machine_keeps_is_its_users_alone() {
    let place = Place::new();
    let kept = place.path("host").join(".trust");
    for folder in [kept.clone(), kept.join("known"), kept.join("signing")] {
        let mode = fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} {mode:o}", folder.display());
    }
}

#[test]
fn an_empty_passphrase_is_none() {
    let place = Place::new();
    let mut command = command();
    command.args(["list", "--repo", place.path("repo").to_str().unwrap()]);
    command.env("SLOTKEEP_STATE", place.path("host")).env("SLOTKEEP_PASSPHRASE", "");
    Run::of(&command.output().unwrap()).expect_code(0);
}

#[test]
fn a_repository_that_is_not_encrypted_has_no_keys_to_print() {
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("plain");
    let run = |arguments: &[&str]| {
        let run = Run::of(&command().args(arguments).arg("--repo").arg(&repo).output().unwrap());
        (run.code, run.stderr)
    };
    assert_eq!(run(&["init"]).0, 0);
    for what in ["export", "export-signing"] {
        let (code, said) = run(&["key", what]);
        assert!(code == 2 && said.contains("the repository is not encrypted"), "{what}: {code} {said}");
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
    client.command_on(b"name-of-a-key", &["SET", "name-of-a-key", "value-of-a-key"]).unwrap();
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

    // What a check of a drill found is told to its reader, and to nobody who reads the files.
    let checks = path("checks");
    fs::write(&checks, "GET name-of-a-key => other-value\n").unwrap();
    let program = server("valkey-9.1").program().to_str().unwrap().to_owned();
    let drill = ["verify", "--depth", "drill", "--only", "--checks", &checks, "--server", &program];
    let drilled = on("laptop", &[&drill[..], &identity].concat()).expect_code(42).json();
    let found = drilled["findings"][0]["what"].as_str().unwrap();
    assert!(found.contains("GET name-of-a-key gives `value-of-a-key`"), "{found}");
    let again = ["verify", "--show", "latest"];
    let kept = on("laptop", &[&again[..], &identity].concat()).expect_code(42).json();
    assert_eq!(kept["findings"], drilled["findings"]);
    let hidden = on("host", &again).expect_code(42).json();
    assert!(hidden["findings"][0]["what"].as_str().unwrap().contains("encrypted"), "{hidden}");
    for (name, bytes) in files(Path::new(&repo)) {
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("of-a-key") && !text.contains("other-value"), "{name}");
    }

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
    fs::write(&file, key["secret"].as_str().unwrap()).unwrap();
    on("third", &[&backup[..], &["--signing-key", &file]].concat()).expect_code(0);

    // Other readers, without a byte of a backup changed.
    let rekey = ["key", "rekey", "--recipient", &later.public, "--identity", reader.file()];
    on("laptop", &rekey).expect_code(0);
    on("laptop", &[&["diff", "latest", &addr][..], &identity].concat()).expect_code(25);
    on("laptop", &["diff", "latest", &addr, "--identity", later.file()]).expect_code(0);

    // The newest backup disappears: nobody takes the older one for the latest.
    let newest = on("host", &["list"]).expect_code(0).json()["backups"][1]["id"].as_str().unwrap().to_owned();
    fs::remove_file(Path::new(&repo).join(format!("main/backups/{newest}.json"))).unwrap();
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
    folder: TempDir,
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
    fs::remove_file(scene.manifest(&scene.backup())).unwrap();
    fs::write(scene.manifest("z"), "{}").unwrap();
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
    let genuine = fs::read(&newest).unwrap();
    fs::remove_file(&newest).unwrap();
    scene.refused(&["verify"]);
    // A damaged one is there, and named.
    fs::write(&newest, "{}").unwrap();
    let verify = ["verify", "--identity", &scene.text("reader")];
    let found = scene.on("host", &verify).expect_code(42).json();
    let name = newest.file_name().unwrap().to_str().unwrap();
    assert!(found["findings"].to_string().contains(name), "{found:#}");
    fs::write(&newest, genuine).unwrap();
    scene.on("host", &verify).expect_code(0);
}

/// The next backup would become the newest that is remembered.
#[test]
fn a_backup_does_not_cover_what_was_taken_away() {
    let scene = Scene::new();
    let newest = scene.manifest(&scene.backup());
    let genuine = fs::read(&newest).unwrap();
    let other = scene.text("other");
    fs::remove_file(&newest).unwrap();
    let before = files(&scene.path("repo"));
    for more in [&[][..], &["--type", "incremental"], &["--repo", &other]] {
        let refused = scene.with_server("host", &[&["backup"][..], more].concat()).expect_code(26);
        assert!(refused.stderr.contains(&scene.text("repo")), "{}", refused.stderr);
    }
    scene.with_server("host", &["archive"]).expect_code(26);
    assert_eq!(files(&scene.path("repo")), before);
    // One that need not have it is passed over.
    let addr = scene.cluster.nodes()[0].addr().to_string();
    let mut optional = command();
    optional.args(["backup", "--json", "--repo", &other, "--cluster", &addr, "--repo-optional"]);
    optional.arg(scene.path("repo")).env("SLOTKEEP_STATE", scene.path("host"));
    let taken = Run::of(&optional.output().unwrap()).expect_code(0).json();
    assert_eq!(taken["repositories"][1]["has_backup"], false, "{taken:#}");
    // One that is spoiled is there, and stays there: no reason to have no backup of today.
    fs::write(&newest, "{}").unwrap();
    let (new, reader) = (scene.text("new"), scene.text("reader"));
    let place = ["--to-dir", &new, "--nodes", "127.0.0.1:7000", "--identity", &reader];
    scene.on("host", &[&["restore", "--at", "latest", "--dry-run"], &place[..]].concat()).expect_code(26);
    let taken = scene.with_server("host", &["backup"]).expect_code(0);
    assert!(taken.stderr.contains("the newest that was seen here, can't be read"), "{}", taken.stderr);
    fs::write(&newest, genuine).unwrap();
    scene.backup();
}

#[test]
fn a_repository_without_a_cluster_that_it_had_is_not_empty() {
    let scene = Scene::new();
    fs::rename(scene.path("repo/main"), scene.path("main")).unwrap();
    scene.refused(&["list"]);
    scene.refused(&["copy", "--to", &scene.text("mirror")]);
    scene.refused(&["verify"]);
    fs::rename(scene.path("main"), scene.path("repo/main")).unwrap();
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
        fs::rename(scene.path(repository), scene.path(&format!("{repository}-away"))).unwrap();
        fs::create_dir(scene.path(repository)).unwrap();
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
    fs::remove_dir(scene.path("repo")).unwrap();
    fs::rename(scene.path("repo-away"), scene.path("repo")).unwrap();
    scene.backup();
    fs::remove_dir_all(scene.path("repo")).unwrap();
    scene.on("host", &["init", "--recipient", &scene.reader.public]).expect_code(0);
    scene.backup();
}
