//! A repository in an S3 bucket serves as one in a folder does.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use common::{Run, command, server};
use slotkeep_testkit::ClusterBuilder;
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::stores::S3Server;

#[test]
fn a_bucket_is_made_a_repository_and_holds_a_backup() {
    let store = S3Server::start().unwrap();
    store.make_bucket("backups").unwrap();
    let slotkeep = |arguments: &[&str], code| {
        Run::of(&command().args(arguments).envs(store.environment()).output().unwrap()).expect_code(code)
    };
    let cluster = ClusterBuilder::new(server("valkey-9.1")).primaries(2).start().unwrap();
    let loaded = Mix::every_type().load(&cluster).unwrap();
    let addr = cluster.nodes()[0].addr().to_string();
    let repo = ["--repo", "s3://backups/redis"];

    let before = slotkeep(&["backup", repo[0], repo[1], "--cluster", &addr], 20);
    assert!(before.stderr.contains("slotkeep init"), "{}", before.stderr);
    slotkeep(&["init", repo[0], repo[1]], 0);
    slotkeep(&["init", repo[0], repo[1]], 20);
    let manifest = slotkeep(&["backup", "--json", repo[0], repo[1], "--cluster", &addr], 0).json();
    assert_eq!(manifest["digest"]["keys"].as_u64().unwrap(), loaded.keys());
    let list = slotkeep(&["list", "--json", repo[0], repo[1]], 0).json();
    assert_eq!(list["backups"].as_array().unwrap().len(), 1);
    slotkeep(&["diff", repo[0], repo[1], "latest", &addr], 0);
    for command in ["list", "init"] {
        let missing = slotkeep(&[command, "--repo", "s3://no-such-bucket/"], 20);
        assert!(
            missing.stderr.contains("no such bucket") && missing.stderr.contains("not by Slotkeep"),
            "{}",
            missing.stderr
        );
    }
}

/// What the files of AWS's tools say counts where the environment is silent: keys, from a file or a process, and the endpoint.
#[test]
fn a_profile_gives_the_keys_and_the_endpoint() {
    let folder = tempfile::tempdir().unwrap();
    let buckets = folder.path().join("buckets");
    std::fs::create_dir(&buckets).unwrap();
    let store = S3Server::start_s3s_fs(&buckets).unwrap();
    store.make_bucket("backups").unwrap();
    let (config, credentials) = (folder.path().join("config"), folder.path().join("credentials"));
    let calls = folder.path().join("calls");
    let endpoint = store.endpoint();
    let keys = |secret: &str| format!("aws_access_key_id = test\naws_secret_access_key = {secret}\n");
    let words = r#"{"Version": 1, "AccessKeyId": "test", "SecretAccessKey": "test", "Expiration": "2099-01-01T00:00:00Z"}"#;
    let process = format!("echo called >> {} && echo '{words}'", calls.display());
    let sections = [
        format!(
            "[profile ops]\nregion = us-east-1\nservices = here\n[services here]\ns3 =\n  endpoint_url = {endpoint}\n"
        ),
        format!("[profile wrong]\nendpoint_url = {endpoint}\n"),
        "[profile bare]\nendpoint_url = localhost:17900\n".to_owned(),
        format!("[profile told]\nendpoint_url = {endpoint}\ncredential_process = {process}\n"),
        format!("[profile dumb]\nendpoint_url = {endpoint}\ncredential_process = echo nothing && false\n"),
    ];
    std::fs::write(&config, sections.concat()).unwrap();
    std::fs::write(&credentials, format!("[ops]\n{}[wrong]\n{}", keys("test"), keys("guessed"))).unwrap();
    let slotkeep = |profile: &str, more: &[(&str, &str)], arguments: &[&str], code| {
        let mut command = command();
        command.args(arguments).args(["--repo", "s3://backups/redis"]);
        command.env("AWS_CONFIG_FILE", &config).env("AWS_SHARED_CREDENTIALS_FILE", &credentials);
        command.env("AWS_ALLOW_HTTP", "true").env("AWS_PROFILE", profile).envs(more.iter().copied());
        Run::of(&command.output().unwrap()).expect_code(code)
    };
    slotkeep("ops", &[], &["init"], 0);
    slotkeep("ops", &[], &["list"], 0);
    slotkeep("told", &[], &["list"], 0);
    assert_eq!(std::fs::read_to_string(&calls).unwrap(), "called\n", "the keys are kept while they are good");
    slotkeep("wrong", &[], &["list"], 20);
    let own = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "guessed")];
    slotkeep("ops", &own, &["list"], 20);
    let alone =
        [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_ENDPOINT", &endpoint)];
    slotkeep("", &alone, &["list"], 0);
    let dumb = slotkeep("dumb", &[], &["list"], 20);
    assert!(dumb.stderr.contains("no keys by profile `dumb`"), "{}", dumb.stderr);
    let absent = slotkeep("absent", &[], &["list"], 2);
    assert!(absent.stderr.contains("AWS_PROFILE names `absent`"), "{}", absent.stderr);
    let bare = slotkeep("bare", &[], &["list"], 2);
    assert!(
        bare.stderr.contains("`endpoint_url` of the profile `bare`: it does not begin"),
        "{}",
        bare.stderr
    );
    // A variable that is empty says nothing.
    let empty = [("AWS_ENDPOINT", ""), ("AWS_ACCESS_KEY_ID", ""), ("AWS_SESSION_TOKEN", "")];
    slotkeep("ops", &empty, &["list"], 0);
}
