//! Every bad input gets a clear error with a hint and its own exit code, and nothing is written.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::thread;

use common::{Run, command, files, server, slotkeep};
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::{Cluster, ClusterBuilder, Node};
use tempfile::TempDir;

/// A cluster that anybody may use.
static OPEN: LazyLock<Cluster> = LazyLock::new(|| {
    let cluster = ClusterBuilder::new(server("valkey-9.1")).primaries(2).start().unwrap();
    Mix::bulk(400_000).load(&cluster).unwrap();
    cluster
});

/// A cluster with a password and users of differing rights.
static LOCKED: LazyLock<Cluster> = LazyLock::new(|| {
    ClusterBuilder::new(server("valkey-9.1"))
        .primaries(1)
        .password("right")
        .acl_user("looker", "on >looks -@all +ping +info +cluster +replconf +time")
        .acl_user("nobody", "on >none -@all")
        .start()
        .unwrap()
});

/// A cluster that speaks TLS only and wants certificates.
static TLS: LazyLock<Cluster> =
    LazyLock::new(|| ClusterBuilder::new(server("redis-7.0")).primaries(1).mutual_tls().start().unwrap());

fn seed(cluster: &Cluster) -> String {
    cluster.nodes()[0].addr().to_string()
}

/// A folder with a repository that holds one backup of [`OPEN`].
struct Kept {
    folder: TempDir,
    id: String,
}

impl Kept {
    fn take() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repo = folder.path().join("repo");
        let manifest =
            slotkeep(&["backup", "--json", "--repo", repo.to_str().unwrap(), "--cluster", &seed(&OPEN)])
                .expect_code(0)
                .json();
        Self { folder, id: manifest["id"].as_str().unwrap().to_owned() }
    }

    fn repo(&self) -> PathBuf {
        self.folder.path().join("repo")
    }

    fn manifest(&self) -> PathBuf {
        self.repo().join(format!("main/backups/{}.json", self.id))
    }

    fn objects(&self, name: &str) -> Vec<PathBuf> {
        let all = files(&self.repo()).into_iter().map(|(path, _)| path);
        all.filter(|path| path.ends_with(name)).map(|path| self.repo().join(path)).collect()
    }
}

/// What a failed run must say.
struct Failure<'a> {
    code: i32,
    kind: &'a str,
    /// What its words must contain.
    words: &'a str,
}

impl Failure<'_> {
    /// Checks an outcome, for people and for programs.
    #[track_caller]
    fn check(&self, run: &Run) {
        let shown = format!("\n--- stdout\n{}\n--- stderr\n{}", run.stdout, run.stderr);
        assert_eq!(run.code, self.code, "{shown}");
        assert!(run.stdout.is_empty(), "{shown}");
        if run.stderr.starts_with('{') {
            let value: serde_json::Value = serde_json::from_str(&run.stderr).unwrap();
            let error = &value["error"];
            assert_eq!(error["kind"], self.kind, "{shown}");
            assert_eq!(error["exit_code"], self.code, "{shown}");
            assert!(error["message"].as_str().unwrap().contains(self.words), "{shown}");
            assert!(error["hint"].as_str().is_some_and(|hint| hint.len() > 10), "{shown}");
        } else {
            let mut lines = run.stderr.lines().skip_while(|line| !line.starts_with("error: "));
            assert!(lines.next().is_some_and(|message| message.contains(self.words)), "{shown}");
            assert!(
                lines.next().is_some_and(|line| line.starts_with("hint: ") && line.len() > 10),
                "{shown}"
            );
        }
    }
}

/// Runs every command that talks to a cluster against one that it can't use, with a new repository and with one that exists, and
/// checks that nothing is written.
#[track_caller]
fn cluster_is_refused(seed: &str, access: &[&str], environment: &[(&str, &str)], failure: &Failure<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let new = folder.path().join("new");
    let kept = folder.path().join("kept");
    slotkeep(&["init", "--repo", kept.to_str().unwrap()]).expect_code(0);
    let before = files(folder.path());
    let run = |arguments: &[&str]| {
        let mut command = command();
        command.args(arguments).args(access).envs(environment.iter().copied());
        Run::of(&command.output().unwrap())
    };
    for repo in [&new, &kept] {
        let repo = repo.to_str().unwrap();
        failure.check(&run(&["backup", "--cluster", seed, "--repo", repo]));
        failure.check(&run(&["backup", "--json", "--cluster", seed, "--repo", repo]));
        if failure.kind != "permission" {
            failure.check(&run(&["check", "--cluster", seed, "--repo", repo]));
        }
        failure.check(&run(&["diff", seed, seed, "--spool", folder.path().to_str().unwrap()]));
    }
    let mut after = files(folder.path());
    // That PSYNC is refused shows only when everything else is ready.
    after.retain(|(name, _)| name != "new/slotkeep.json");
    assert!(failure.kind == "permission" || !new.exists(), "a new repository was left behind");
    assert!(
        after == before,
        "files were written: {:?}",
        after.iter().map(|(name, _)| name).collect::<Vec<_>>()
    );
}

#[test]
fn a_wrong_or_missing_password() {
    let failure = Failure { code: 11, kind: "authentication", words: "does not accept the credentials" };
    let seed = seed(&LOCKED);
    cluster_is_refused(&seed, &[], &[], &failure);
    cluster_is_refused(&seed, &[], &[("SLOTKEEP_PASSWORD", "wrong")], &failure);
    cluster_is_refused(&seed, &["--user", "stranger"], &[("SLOTKEEP_PASSWORD", "right")], &failure);
}

#[test]
fn a_user_who_may_not_replicate_or_not_even_look() {
    let seed = seed(&LOCKED);
    let failure = Failure { code: 12, kind: "permission", words: "may not run PSYNC" };
    cluster_is_refused(&seed, &["--user", "looker"], &[("SLOTKEEP_PASSWORD", "looks")], &failure);
    let failure = Failure { code: 12, kind: "permission", words: "may not run INFO" };
    cluster_is_refused(&seed, &["--user", "nobody"], &[("SLOTKEEP_PASSWORD", "none")], &failure);
}

/// A server that gives every connection the same treatment.
fn impostor(treat: fn(std::net::TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || treat(stream));
        }
    });
    addr
}

#[test]
fn something_else_answers() {
    let http = impostor(|mut stream| {
        let _ = stream.read(&mut [0; 64]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    });
    let echo = impostor(|stream| {
        let _ = std::io::copy(&mut &stream, &mut &stream);
    });
    let ssh = impostor(|mut stream| {
        let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n");
        let _ = stream.read(&mut [0; 64]);
    });
    for addr in [http, echo, ssh] {
        let failure = Failure { code: 14, kind: "not_a_cluster", words: "is not a Redis or Valkey server" };
        cluster_is_refused(&addr.to_string(), &[], &[], &failure);
    }
}

#[test]
fn nobody_answers() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let failure = Failure { code: 10, kind: "unreachable", words: "can't connect" };
    cluster_is_refused(&free.to_string(), &[], &[], &failure);

    let silent = impostor(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let failure = Failure { code: 10, kind: "unreachable", words: "no answer for 1 s" };
    cluster_is_refused(&silent.to_string(), &["--timeout", "1"], &[], &failure);

    let failure = Failure { code: 10, kind: "unreachable", words: "can't be resolved" };
    cluster_is_refused("no-such-host.invalid:6379", &[], &[], &failure);
}

#[test]
fn one_side_speaks_tls_and_the_other_does_not() {
    let mismatch = |words| Failure { code: 13, kind: "tls", words };
    let certificates = TLS.certificates().unwrap();
    let (ca, cert, key) = (certificates.ca(), certificates.client_cert(), certificates.client_key());
    let (ca, cert, key) = (ca.to_str().unwrap(), cert.to_str().unwrap(), key.to_str().unwrap());
    let whole = ["--tls", "--tls-ca", ca, "--tls-cert", cert, "--tls-key", key];

    let soon = [&whole[..], &["--timeout", "1"]].concat();
    cluster_is_refused(&seed(&OPEN), &soon, &[], &mismatch("does not seem to speak TLS"));
    cluster_is_refused(&seed(&TLS), &[], &[], &mismatch("speaks TLS"));
    // An authority that did not sign, no client certificate, a name that does not fit.
    cluster_is_refused(&seed(&TLS), &["--tls"], &[], &mismatch("UnknownIssuer"));
    cluster_is_refused(&seed(&TLS), &["--tls-ca", ca], &[], &mismatch("ertificate"));
    let other_name = [&whole[..], &["--tls-server-name", "elsewhere.example"]].concat();
    cluster_is_refused(&seed(&TLS), &other_name, &[], &mismatch("elsewhere.example"));
    cluster_is_refused(&seed(&TLS), &["--tls-ca", "/no/such/file"], &[], &mismatch("/no/such/file"));
    cluster_is_refused(&seed(&TLS), &["--tls-ca", key], &[], &mismatch("holds no certificate"));

    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let (repo, seed) = (repo.to_str().unwrap(), seed(&TLS));
    let arguments = [&["backup", "--cluster", &seed, "--repo", repo][..], &whole].concat();
    slotkeep(&arguments).expect_code(0);
}

#[test]
fn slots_that_nobody_serves() {
    let cluster = ClusterBuilder::new(server("valkey-9.1"))
        .primaries(2)
        .config("cluster-require-full-coverage", "no")
        .start()
        .unwrap();
    // First where they are served: a node that hears of its owner again takes a slot back into its view.
    let [first, second] = [0, 1].map(|shard| cluster.primary(shard).unwrap());
    let deletions: [(&Node, &[&str]); 4] =
        [(second, &["16000"]), (first, &["5", "6"]), (first, &["16000"]), (second, &["5", "6"])];
    for (node, slots) in deletions {
        let delete = [&["CLUSTER", "DELSLOTS"][..], slots].concat();
        node.client().unwrap().command(&delete).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let (repo, seed) = (repo.to_str().unwrap(), seed(&cluster));
    let failure = Failure {
        code: 14,
        kind: "not_a_cluster",
        words: "no shard serves the slots 5-6,16000 (3 of 16384)",
    };
    failure.check(&slotkeep(&["backup", "--cluster", &seed, "--repo", repo]));
    assert!(!Path::new(repo).exists());

    let report = slotkeep(&["check", "--json", "--cluster", &seed]).expect_code(41).json();
    let found = report["findings"].as_array().unwrap();
    assert!(found.iter().any(|one| one["check"] == "slots" && one["severity"] == "problem"));

    let run =
        slotkeep(&["backup", "--json", "--allow-partial", "--cluster", &seed, "--repo", repo]).expect_code(0);
    assert!(
        run.stderr.contains("warning: this backup is partial: it lacks 3 slots (5-6,16000)"),
        "{}",
        run.stderr
    );
    assert_eq!(run.json()["partial"], true);
    assert_eq!(run.json()["missing_slots"], "5-6,16000");
    let shown = slotkeep(&["show", "--repo", repo]).expect_code(0).stdout;
    assert!(shown.contains("lacks slots 5-6,16000"), "{shown}");
    assert!(slotkeep(&["list", "--repo", repo]).expect_code(0).stdout.contains("full, partial"));
}

#[test]
fn slots_on_the_move_between_any_two_nodes() {
    let cluster = ClusterBuilder::new(server("redis-7.0")).primaries(3).start().unwrap();
    // The node that is asked has no part in the move.
    let (from, to) = (cluster.primary(1).unwrap(), cluster.primary(2).unwrap());
    let slot = "8000";
    to.client().unwrap().command(&["CLUSTER", "SETSLOT", slot, "IMPORTING", from.id()]).unwrap();
    from.client().unwrap().command(&["CLUSTER", "SETSLOT", slot, "MIGRATING", to.id()]).unwrap();
    let failure = Failure { code: 14, kind: "not_a_cluster", words: "slots are being moved" };
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    failure.check(&slotkeep(&["backup", "--cluster", &seed(&cluster), "--repo", repo.to_str().unwrap()]));
    assert!(!repo.exists());
    let report = slotkeep(&["check", "--json", "--cluster", &seed(&cluster)]).expect_code(41).json();
    let found = report["findings"].as_array().unwrap();
    assert!(found.iter().any(|one| one["check"] == "moving slots" && one["severity"] == "problem"));
}

#[test]
fn bad_words_on_the_command_line() {
    let usage = |words| Failure { code: 2, kind: "usage", words };
    cluster_is_refused(&seed(&OPEN), &["--address-map", "nonsense"], &[], &usage("`nonsense` is not a rule"));
    cluster_is_refused(&seed(&OPEN), &["--address-map", "a:1=b"], &[], &usage("is not a rule"));
    cluster_is_refused(&seed(&OPEN), &["--user", "x"], &[], &usage("no password for user `x`"));
    cluster_is_refused(&seed(&OPEN), &["--password-file", "/no/file"], &[], &usage("/no/file"));
    cluster_is_refused(&seed(&OPEN), &["-c", "/no/settings"], &[], &usage("/no/settings"));

    let open = seed(&OPEN);
    usage("`127.0.0.1` is not an address").check(&slotkeep(&[
        "backup",
        "--repo",
        "/nowhere",
        "--cluster",
        "127.0.0.1",
    ]));
    usage("which cluster").check(&slotkeep(&["backup", "--repo", "/nowhere"]));
    usage("which repository").check(&slotkeep(&["backup", "--cluster", &open]));
    usage("which repository").check(&slotkeep(&["list"]));
    usage("can't be a cluster's name").check(&slotkeep(&["list", "--repo", "/nowhere", "--name", "../x"]));
    for (address, words) in [
        ("s3://key:secret@bucket/x", "as a repository"),
        ("s3://bucket/x?versionId=1", "as a repository"),
        ("ftp://x/y", "`ftp://x/y` as a repository"),
        ("nonsense://x/y", "as a repository"),
        ("s3:/x", "s3://x"),
        ("file:/x", "file:///x"),
    ] {
        usage(words).check(&slotkeep(&["list", "--repo", address]));
    }
    // Settings of a store that make no sense.
    for (name, value) in [
        ("AWS_TIMEOUT", "foo"),
        ("AWS_ALLOW_HTTP", "perhaps"),
        ("AZURE_CONNECT_TIMEOUT", "soon"),
        ("AWS_ENDPOINT", "localhost:9000"),
        ("AWS_ENDPOINT", "http://"),
        ("AZURE_STORAGE_ENDPOINT", "foo:99"),
        ("AZURE_STORAGE_ACCOUNT_NAME", ""),
        ("GOOGLE_BASE_URL", "foo:99"),
        ("GOOGLE_SERVICE_ACCOUNT_KEY", "{}"),
    ] {
        let places = [("AWS", "s3://bucket/x"), ("AZURE", "az://container/x"), ("GOOGLE", "gs://bucket/x")];
        let (_, place) = places.into_iter().find(|(store, _)| name.starts_with(store)).unwrap();
        let mut command = command();
        command.args(["list", "--repo", place]).env("AZURE_STORAGE_ACCOUNT_NAME", "some").env(name, value);
        usage(name).check(&Run::of(&command.output().unwrap()));
    }
    for arguments in [&["nonsense"][..], &["backup", "--jobs", "many"], &["list", "--no-such-option"]] {
        assert_eq!(slotkeep(arguments).code, 2);
    }
}

#[test]
fn places_that_are_no_repository() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("letter.txt"), "mine").unwrap();
    fs::write(folder.path().join("file"), "mine").unwrap();
    let below_file = folder.path().join("file/repo");
    let missing = folder.path().join("missing");
    let before = files(folder.path());
    let open = seed(&OPEN);
    let refused = |words| Failure { code: 20, kind: "repository", words };
    for (place, words) in [(&other, "there is no repository here"), (&below_file, "")] {
        let place = place.to_str().unwrap();
        refused(words).check(&slotkeep(&["backup", "--cluster", &open, "--repo", place]));
        refused(words).check(&slotkeep(&["list", "--repo", place]));
        refused(words).check(&slotkeep(&["show", "--repo", place]));
        refused(words).check(&slotkeep(&["diff", "--repo", place, "latest", &open]));
        let report =
            slotkeep(&["check", "--json", "--cluster", &open, "--repo", place]).expect_code(41).json();
        let found = report["findings"].as_array().unwrap();
        assert!(found.iter().any(|one| one["subject"] == "repository" && one["severity"] == "problem"));
    }
    let file = folder.path().join("file");
    for place in [&file, &below_file] {
        let words = format!("{} is a file and no folder", file.display());
        for command in ["init", "list", "show"] {
            let run = slotkeep(&[command, "--repo", place.to_str().unwrap()]);
            Failure { code: 20, kind: "repository", words: &words }.check(&run);
            assert!(!run.stderr.contains("os error") && !run.stderr.contains("store"), "{}", run.stderr);
        }
    }
    refused("there is no repository here").check(&slotkeep(&["list", "--repo", missing.to_str().unwrap()]));
    refused("it is not empty").check(&slotkeep(&["init", "--repo", other.to_str().unwrap()]));
    assert_eq!(files(folder.path()), before);
    assert!(!missing.exists());
}

/// Runs `slotkeep` with a file system of its own mounted at `place`, in a mount namespace that ends with it; works for root and,
/// where user namespaces are allowed, for anybody. Returns the run and the names of the files that it left there.
fn on_own_disk(place: &Path, options: &str, prepare: &str, arguments: &[&str]) -> (Run, Vec<String>) {
    let script = format!(
        "set -e; mount -t tmpfs -o size=8m none \"$0\"; {prepare}; mount -o remount,{options} \"$0\"; set +e; \
         \"$@\"; code=$?; find \"$0\" -type f -printf 'left %P\\n' >&2; exit $code"
    );
    let mut shell = Command::new("unshare");
    shell.args(["-rm", "sh", "-c", &script]).arg(place).arg(env!("CARGO_BIN_EXE_slotkeep")).args(arguments);
    let mut run = Run::of(&shell.output().unwrap());
    assert!(!run.stderr.contains("unshare"), "namespaces are needed for this test: {}", run.stderr);
    let (left, words): (Vec<_>, Vec<_>) =
        run.stderr.lines().map(str::to_owned).partition(|line| line.starts_with("left "));
    run.stderr = words.join("\n");
    (run, left.into_iter().map(|line| line.trim_start_matches("left ").to_owned()).collect())
}

#[test]
fn a_place_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let (place, open) = (folder.path().to_str().unwrap(), seed(&OPEN));
    let inside = format!("{place}/repo");
    let failure = Failure { code: 20, kind: "repository", words: "access denied" };
    let (run, left) =
        on_own_disk(folder.path(), "ro", "true", &["backup", "--cluster", &open, "--repo", &inside]);
    failure.check(&run);
    assert!(left.is_empty(), "{left:?}");

    // A repository that turned read-only.
    let prepare = format!("{} init --quiet --repo {inside} > /dev/null", env!("CARGO_BIN_EXE_slotkeep"));
    let (run, left) =
        on_own_disk(folder.path(), "ro", &prepare, &["backup", "--cluster", &open, "--repo", &inside]);
    failure.check(&run);
    assert_eq!(left, ["repo/slotkeep.json"]);
    let (run, _) = on_own_disk(
        folder.path(),
        "ro",
        &prepare,
        &["check", "--json", "--cluster", &open, "--repo", &inside],
    );
    let report = run.expect_code(41).json();
    let found = report["findings"].as_array().unwrap();
    assert!(found.iter().any(|one| one["check"] == "writable" && one["severity"] == "problem"), "{found:#?}");
}

#[test]
fn a_disk_that_is_full_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let (place, open) = (folder.path().to_str().unwrap(), seed(&OPEN));
    let inside = format!("{place}/repo");
    // From no room for the first file on: for a part of a snapshot, for one but not for all, for all but not for their indexes.
    let mut succeeded = false;
    for kib in [0, 4, 12, 24, 48, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 4096] {
        let options = if kib == 0 { "size=4k".to_owned() } else { format!("size={kib}k") };
        let filler =
            if kib == 0 { "dd if=/dev/zero of=\"$0\"/filler bs=4k count=1 status=none" } else { "true" };
        let arguments = ["backup", "--json", "--cluster", &open, "--repo", &inside];
        let (run, mut left) = on_own_disk(folder.path(), &options, filler, &arguments);
        // A piece of the log that was sealed before stays: it is whole, and no backup names it.
        let of_the_log = |name: &str| name.contains("/log/") || name.ends_with("/history.json");
        left.retain(|name| name != "filler" && !of_the_log(name));
        if run.code == 0 {
            succeeded = true;
            continue;
        }
        Failure { code: 21, kind: "full", words: "no space left" }.check(&run);
        assert!(left.is_empty() || left == ["repo/slotkeep.json"], "with {kib} KiB: {left:?}");
    }
    assert!(succeeded);
}

#[test]
fn backups_that_do_not_exist() {
    let kept = Kept::take();
    let repo = kept.repo();
    let before = files(&repo);
    let (repo, open) = (repo.to_str().unwrap(), seed(&OPEN));
    let failure = |words| Failure { code: 22, kind: "not_found", words };
    failure("there is no such backup; it holds 2").check(&slotkeep(&["show", "--repo", repo, "19990101T"]));
    failure("there is no such backup").check(&slotkeep(&["diff", "--repo", repo, "19990101T", &open]));
    failure("there is no such backup").check(&slotkeep(&["diff", "--repo", repo, "latest", "19990101T"]));
    failure("it holds no backup yet").check(&slotkeep(&["show", "--repo", repo, "--name", "other"]));
    assert_eq!(files(Path::new(repo)), before);
}

/// Damages a file for the time of a check, in three ways.
fn damaged(path: &Path, check: impl Fn(&str)) {
    let whole = fs::read(path).unwrap();
    let middle = whole.len() / 2;
    let mut flipped = whole.clone();
    flipped[middle] ^= 0x10;
    for (how, bytes) in [("cut", &whole[..middle]), ("emptied", &[]), ("altered", &flipped)] {
        fs::write(path, bytes).unwrap();
        check(how);
    }
    fs::remove_file(path).unwrap();
    check("removed");
    fs::write(path, whole).unwrap();
}

#[test]
fn manifests_that_are_damaged() {
    let kept = Kept::take();
    let repo = kept.repo();
    let (repo, open) = (repo.to_str().unwrap(), seed(&OPEN));
    damaged(&kept.manifest(), |how| {
        let failure = match how {
            "removed" => Failure { code: 22, kind: "not_found", words: "it holds no backup yet" },
            _ => Failure { code: 23, kind: "corrupt", words: "it is damaged" },
        };
        // A flipped bit may hit a name or a number that nothing contradicts: that is for signatures to find.
        if how == "altered" {
            return;
        }
        failure.check(&slotkeep(&["show", "--repo", repo]));
        failure.check(&slotkeep(&["diff", "--repo", repo, "latest", &open]));
        if how == "removed" {
            return;
        }
        // A manifest that can't be read does not hide the others, nor itself.
        let listed = slotkeep(&["list", "--repo", repo]).expect_code(23);
        assert!(
            listed.stdout.contains("UNREADABLE") && listed.stderr.contains("\nhint: "),
            "{}",
            listed.stderr
        );
        let report =
            slotkeep(&["check", "--json", "--cluster", &open, "--repo", repo]).expect_code(41).json();
        let found = report["findings"].as_array().unwrap();
        assert!(found.iter().any(|one| one["check"] == "backups" && one["severity"] == "problem"));
    });
    slotkeep(&["show", "--repo", repo]).expect_code(0);
}

#[test]
fn objects_that_are_damaged() {
    let kept = Kept::take();
    let repo = kept.repo();
    let (repo, open) = (repo.to_str().unwrap(), seed(&OPEN));
    // Keys expire at the later moment of the two, so a comparison reads digests and indexes; the RDBs where slots differ.
    OPEN.client().unwrap().command(&["SET", "made:later", "1"]).unwrap();
    let diff = ["diff", "--repo", repo, "latest", open.as_str()];
    slotkeep(&diff).expect_code(40);
    for name in ["/digest", "/index.zst"] {
        let objects = kept.objects(name);
        assert_eq!(objects.len(), 2);
        for object in objects {
            damaged(&object, |_| {
                Failure { code: 23, kind: "corrupt", words: "could not read main/history/" }
                    .check(&slotkeep(&diff));
            });
        }
    }
    slotkeep(&diff).expect_code(40);
}

#[test]
fn a_format_that_is_newer() {
    let kept = Kept::take();
    let repo = kept.repo();
    let (repo, open) = (repo.to_str().unwrap(), seed(&OPEN));
    let newer = |path: &Path| {
        let whole = fs::read_to_string(path).unwrap();
        let changed = whole.replacen("\"format_version\": ", "\"format_version\": 99", 1);
        assert_ne!(changed, whole);
        fs::write(path, changed).unwrap();
        whole
    };
    let failure = Failure { code: 32, kind: "unsupported", words: "use a newer Slotkeep" };
    let whole = newer(&kept.manifest());
    failure.check(&slotkeep(&["show", "--repo", repo]));
    failure.check(&slotkeep(&["diff", "--repo", repo, "latest", &open]));
    let listed = slotkeep(&["list", "--json", "--repo", repo]).expect_code(32);
    assert!(listed.stderr.contains("use a newer Slotkeep"), "{}", listed.stderr);
    fs::write(kept.manifest(), whole).unwrap();

    newer(&kept.repo().join("slotkeep.json"));
    let before = files(Path::new(repo));
    failure.check(&slotkeep(&["list", "--repo", repo]));
    failure.check(&slotkeep(&["show", "--repo", repo]));
    failure.check(&slotkeep(&["backup", "--cluster", &open, "--repo", repo]));
    assert_eq!(files(Path::new(repo)), before);
}

#[test]
fn where_keys_are_given_no_repository_is_made_unencrypted_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (repo, plain, identity) = (path("new"), path("plain"), path("identity"));
    assert!(Command::new("age-keygen").args(["-o", &identity]).output().unwrap().status.success());
    let elsewhere = |arguments: &[&str]| {
        let mut command = command();
        command.args(arguments).args(["--repo", &path("secret")]);
        command.env("SLOTKEEP_PASSPHRASE", "open sesame").env("SLOTKEEP_STATE", path("state"));
        Run::of(&command.output().unwrap()).expect_code(0).stdout
    };
    elsewhere(&["init", "--passphrase"]);
    fs::write(path("signing"), elsewhere(&["key", "export-signing"])).unwrap();
    slotkeep(&["init", "--repo", &plain]).expect_code(0);
    let seed = seed(&OPEN);
    let backup = ["backup", "--cluster", &seed];
    let refused = |arguments: &[&str], variable: Option<(&str, &str)>| {
        let mut command = command();
        command.args(arguments).arg("--json").envs(variable);
        let run = Run::of(&command.output().unwrap()).expect_code(26);
        let error: serde_json::Value = serde_json::from_str(run.stderr.lines().last().unwrap()).unwrap();
        let (message, hint) = (&error["error"]["message"], error["error"]["hint"].as_str().unwrap());
        assert!(message.as_str().unwrap().contains("would not be encrypted"), "{error:#}");
        assert!(hint.contains("slotkeep init --repo"), "{error:#}");
        assert!(!Path::new(&repo).exists(), "{arguments:?}");
    };
    let to = ["--repo", repo.as_str()];
    let identity_given = ["--identity", identity.as_str()];
    refused(&[&backup[..], &to, &identity_given].concat(), None);
    refused(&[&backup[..], &to, &["--signing-key", &path("signing")]].concat(), None);
    for variable in [
        ("SLOTKEEP_IDENTITY", identity.as_str()),
        ("SLOTKEEP_PASSPHRASE", "open sesame"),
        ("SLOTKEEP_RECIPIENT", "age1"),
    ] {
        refused(&[&backup[..], &to].concat(), Some(variable));
    }
    // Not as the second of two either.
    refused(&[&backup[..], &["--repo", &plain], &to, &identity_given].concat(), None);
    let archive = ["archive", "--cluster", &seed, "--spool", &path("spool")];
    refused(&[&archive[..], &to, &identity_given].concat(), None);
    refused(&[&["copy", "--repo", &plain, "--to", &repo][..], &identity_given].concat(), None);
    // Where several are read and written, one that is not encrypted is used as it is; and one is made where that is asked for.
    let with_identity = |arguments: &[&str]| {
        Run::of(&command().args(arguments).env("SLOTKEEP_IDENTITY", &identity).output().unwrap())
    };
    let checked = with_identity(&["check", "--cluster", &seed, "--repo", &repo]).expect_code(41);
    assert!(checked.stdout.contains("would not be encrypted"), "{}", checked.stdout);
    with_identity(&["init", "--repo", &repo]).expect_code(0);
    for place in [&plain, &repo] {
        with_identity(&[&backup[..], &["--repo", place]].concat()).expect_code(0);
    }
}
