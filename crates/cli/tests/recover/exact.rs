//! What comes back is compared with a backup that was taken at the same offsets, digest by digest.

use std::time::Duration;

use serde_json::Value;
use slotkeep_testkit::data::Mix;
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::{Client, ClusterBuilder, Server, resp, servers};

use crate::harness::{Bench, Run, client, cluster_client, free_addrs, seed};
use crate::recorder::{Recorder, manifest_of};

/// All at once: some of it must be over before what came before it expires.
fn run(client: &mut Client, commands: &[&[&str]]) {
    let at_once: Vec<Vec<&str>> = commands.iter().map(|command| command.to_vec()).collect();
    for (command, reply) in commands.iter().zip(client.pipeline(&at_once).unwrap()) {
        assert!(!matches!(reply, resp::Value::Error(_)), "{command:?}: {reply:?}");
    }
}

/// Writes whose effect depends on the state before them, on the clock or on chance. All keys are in one slot.
fn delicate_writes(client: &mut Client, server: &Server) {
    run(
        client,
        &[
            &["SET", "{t}:incr", "5", "PX", "60"],
            &["INCR", "{t}:incr"],
            &["PERSIST", "{t}:incr"],
            &["SET", "{t}:append", "a", "PX", "80"],
            &["APPEND", "{t}:append", "b"],
            &["RENAME", "{t}:append", "{t}:renamed"],
            &["PERSIST", "{t}:renamed"],
            &["SETEX", "{t}:gone", "1", "x"],
            &["SET", "{t}:stays", "x", "EX", "100000"],
            &["EXPIRE", "{t}:stays", "200000"],
            &["SADD", "{t}:set", "a", "b", "c", "d", "e"],
            &["SPOP", "{t}:set"],
            &["SPOP", "{t}:set", "2"],
            &["XADD", "{t}:stream", "*", "f", "v"],
            &["XADD", "{t}:stream", "MAXLEN", "~", "1000", "*", "f", "w"],
            &["XGROUP", "CREATE", "{t}:stream", "g", "0"],
            &["XREADGROUP", "GROUP", "g", "c", "STREAMS", "{t}:stream", ">"],
            &["SET", "{t}:getex", "1"],
            &["GETEX", "{t}:getex", "EX", "70000"],
            &["MULTI"],
            &["SET", "{t}:multi:a", "1"],
            &["INCRBY", "{t}:multi:b", "7"],
            &["EXEC"],
            &[
                "EVAL",
                "redis.call('set', KEYS[1], ARGV[1]) redis.call('rpush', KEYS[2], 'x', 'y')",
                "2",
                "{t}:lua:a",
                "{t}:lua:b",
                "v",
            ],
            &["INCRBYFLOAT", "{t}:float", "0.1"],
            &["PFADD", "{t}:hll", "a", "b"],
            &["GEOADD", "{t}:geo", "13.4", "52.5", "x"],
            &["RPUSH", "{t}:list", "3", "1", "2"],
            &["SORT", "{t}:list", "STORE", "{t}:sorted"],
        ],
    );
    if server.has_hash_field_expiry() {
        run(
            client,
            &[
                &["HSET", "{t}:hash", "a", "1", "b", "2", "c", "3"],
                &["HPEXPIRE", "{t}:hash", "100000000", "FIELDS", "1", "a"],
                &["HPEXPIRE", "{t}:hash", "50", "FIELDS", "1", "b"],
            ],
        );
        // The field's end is in the log only when the server has seen to it.
        wait_for(Duration::from_secs(20), "a field to expire", || {
            match client.command(&["HLEN", "{t}:hash"])?.int()? {
                2 => Ok(()),
                fields => Err(NotYet::because(format!("there are {fields} fields"))),
            }
        })
        .unwrap();
    }
    // What is compared with holds bases alone: no key is to end between one and its cut.
    wait_for(Duration::from_secs(20), "a key to expire", || {
        match client.command(&["EXISTS", "{t}:gone"])?.int()? {
            0 => Ok(()),
            _ => Err(NotYet::because("it is there")),
        }
    })
    .unwrap();
}

/// Restores to the offsets of a backup that is not part of the chain, and compares with it.
fn come_back_exactly(from: &str, to: &str) {
    let server = servers::require(from).unwrap();
    let cluster = ClusterBuilder::new(server.clone()).config("repl-backlog-size", "64mb").start().unwrap();
    let bench = Bench::new();
    let manifest = manifest_of(&bench.backup(seed(&cluster), &["--prefer", "primary"]));
    let recorder = Recorder::start(&cluster, &manifest);
    Mix::every_type().load(&cluster).unwrap();
    let mut everywhere = cluster.client().unwrap();
    let slot = slotkeep_model::key_slot(b"t");
    let owner = everywhere.owner(slot).unwrap();
    delicate_writes(&mut client(owner, None, None), &server);
    let code = "#!lua name=later\nredis.register_function('later', function() return 1 end)";
    for shard in (0..3).filter(|_| server.is_modern()) {
        let mut primary = cluster.primary(shard).unwrap().client().unwrap();
        primary.command(&["FUNCTION", "LOAD", "REPLACE", code]).unwrap();
    }
    recorder.catch_up();
    // One backup more as a witness, under another name: its bases are no part of the chain.
    let witness = manifest_of(&bench.backup(seed(&cluster), &["--prefer", "primary", "--name", "witness"]));
    let places: Vec<String> =
        witness.shards.iter().map(|shard| format!("{}:{}", shard.history, shard.offset)).collect();
    let late = everywhere.command_on(b"{t}", &["SET", "{t}:late", "1"]);
    late.unwrap();
    recorder.finish(&bench.repo(), 1 << 20);
    drop(cluster);

    let nodes = free_addrs(3);
    let target = servers::require(to).unwrap();
    let options =
        ["--at-offset", &places.join(","), "--start", "--server", target.program().to_str().unwrap()];
    let report = bench.restore("new", &nodes, &options).json();
    assert!(report["recovery"]["shards"].to_string().contains("\"log_bytes\""), "{report}");
    let compared = bench.slotkeep(&["diff", "--name", "witness", "latest", &nodes[0].to_string()]);
    if from == "redis-6.2" {
        // It passes on for how long keys shall live: until when is known as exactly as its clock was asked.
        assert!(differs_in_times_only(&compared), "{}", compared.stdout);
    } else {
        assert_eq!(compared.code, 0, "{}\n{}", compared.stdout, compared.stderr);
    }
    merged_is_the_same(&bench, &server, &places, from);
    if (from, to) == ("valkey-9.1", "valkey-9.1") {
        comes_back_into_a_running_cluster(&bench, &server, &places);
    }
    let mut restored = cluster_client(&nodes, None);
    let mut get = |key: &str| restored.command(&["GET", key]).unwrap().text().unwrap_or_default();
    assert_eq!((get("{t}:incr"), get("{t}:renamed")), ("6".to_owned(), "ab".to_owned()));
    assert_eq!((get("{t}:gone"), get("{t}:late")), (String::new(), String::new()));
}

/// The log folded into a new backup gives what the server itself gave at the same offsets.
fn merged_is_the_same(bench: &Bench, server: &Server, places: &[String], name: &str) {
    let engine = server.program().to_str().unwrap();
    let merged = bench.slotkeep(&["merge", "--at-offset", &places.join(","), "--engine", engine]).json();
    assert_eq!(merged["kind"], "merged");
    assert!(!merged["digest"].is_null(), "{merged}");
    for (shard, place) in merged["shards"].as_array().unwrap().iter().zip(places) {
        assert_eq!(format!("{}:{}", shard["history"].as_str().unwrap(), shard["offset"]), *place);
    }
    let witness = bench.slotkeep(&["show", "--name", "witness"]).json();
    if name != "redis-6.2" {
        assert_eq!(merged["digest"], witness["digest"], "{name}");
    }
}

/// A moment goes into a cluster of another shape as a backup does.
fn comes_back_into_a_running_cluster(bench: &Bench, server: &Server, places: &[String]) {
    let target = ClusterBuilder::new(server.clone()).primaries(2).start().unwrap();
    let node = seed(&target).to_string();
    let engine = server.program().to_str().unwrap();
    let state = bench.path("journal");
    let report = bench.slotkeep(&[
        "restore",
        "--to",
        &node,
        "--at-offset",
        &places.join(","),
        "--engine",
        engine,
        "--state",
        state.to_str().unwrap(),
    ]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    let restored = report.json();
    let shards = restored["recovery"]["shards"].as_array().unwrap().iter();
    let mut cuts: Vec<String> = shards
        .map(|shard| format!("{}:{}", shard["cut"]["history"].as_str().unwrap(), shard["cut"]["offset"]))
        .collect();
    cuts.sort();
    let mut wanted = places.to_vec();
    wanted.sort();
    assert_eq!(cuts, wanted, "{restored}");
    let compared = bench.slotkeep(&["diff", "--name", "witness", "latest", &node]);
    assert_eq!(compared.code, 0, "{}\n{}", compared.stdout, compared.stderr);
}

/// Whether nothing differs but times of expiry, and these by less than the time between two samples.
fn differs_in_times_only(compared: &Run) -> bool {
    if compared.code == 0 {
        return true;
    }
    let found: Value = serde_json::from_str(&compared.stdout).unwrap();
    let near = |key: &Value| {
        let times = key["a"].as_i64().zip(key["b"].as_i64());
        key["difference"] == "expiry" && times.is_some_and(|(a, b)| a.abs_diff(b) < 10_000)
    };
    compared.code == 40 && found["limited"] == false && found["keys"].as_array().unwrap().iter().all(near)
}

#[test]
fn redis_7_0_comes_back_exactly() {
    come_back_exactly("redis-7.0", "redis-7.0");
}

#[test]
fn valkey_9_1_comes_back_exactly() {
    come_back_exactly("valkey-9.1", "valkey-9.1");
}

#[test]
fn redis_8_2_comes_back_exactly() {
    come_back_exactly("redis-8.2", "redis-8.2");
}

#[test]
fn redis_6_2_comes_back_exactly() {
    come_back_exactly("redis-6.2", "redis-6.2");
}

#[test]
fn redis_7_0_comes_back_exactly_as_valkey_9_1() {
    come_back_exactly("redis-7.0", "valkey-9.1");
}
