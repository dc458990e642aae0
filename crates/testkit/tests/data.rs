//! Data written into real clusters is what was meant, and survives a failover.

use slotkeep_testkit::data::Mix;
use slotkeep_testkit::{Cluster, ClusterBuilder, Error, Result, servers};

fn cluster(server: &str, replicas: usize) -> Result<Cluster> {
    ClusterBuilder::new(servers::require(server)?).replicas_per_primary(replicas).start()
}

fn keys_in(cluster: &Cluster) -> Result<i64> {
    (0..cluster.shards()).map(|shard| cluster.primary(shard)?.client()?.command(&["DBSIZE"])?.int()).sum()
}

fn encoding(cluster: &Cluster, key: &str) -> Result<String> {
    cluster.client()?.command_on(key.as_bytes(), &["OBJECT", "ENCODING", key])?.text()
}

#[test]
fn every_type_is_there_in_every_encoding_and_survives_failovers() {
    let cluster = cluster("valkey-9.1", 1).unwrap();
    let loaded = Mix::every_type().load(&cluster).unwrap();
    assert_eq!(keys_in(&cluster).unwrap(), i64::try_from(loaded.keys()).unwrap());
    assert_eq!(loaded.keys_by_type.len(), 6, "{:?}", loaded.keys_by_type);
    assert!((1000..1200).contains(&loaded.keys()), "{:?}", loaded.keys_by_type);
    for (key, expected) in [
        ("string:number:12", "int"),
        ("string:one byte", "embstr"),
        ("string:json:100000", "raw"),
        ("list:one", "listpack"),
        ("list:long", "quicklist"),
        ("set:intset:64", "intset"),
        ("set:small", "listpack"),
        ("set:table", "hashtable"),
        ("zset:small", "listpack"),
        ("zset:skiplist", "skiplist"),
        ("hash:small", "listpack"),
        ("hash:table", "hashtable"),
    ] {
        assert_eq!(encoding(&cluster, key).unwrap(), expected, "{key}");
    }
    for shard in 0..cluster.shards() {
        cluster.failover(shard).unwrap();
    }
    let mut client = cluster.client().unwrap();
    loaded.verify(&mut client).unwrap();
    client.command(&["HSET", "hash:small", "n", "8"]).unwrap();
    assert!(matches!(loaded.verify(&mut client), Err(Error::Mismatch { key, .. }) if key == "hash:small"));
}

#[test]
fn every_type_loads_into_other_versions() {
    for name in ["redis-6.2", "redis-7.0", "redis-7.4"] {
        let cluster = cluster(name, 0).unwrap();
        let loaded = Mix::every_type().seed(2).load(&cluster).unwrap();
        assert_eq!(keys_in(&cluster).unwrap(), i64::try_from(loaded.keys()).unwrap(), "{name}");
        loaded.verify(&mut cluster.client().unwrap()).unwrap();
    }
}

#[test]
fn big_values_are_loaded_when_asked_for() {
    let cluster = cluster("valkey-9.1", 0).unwrap();
    let loaded = Mix::every_type().with_big_string().with_big_hash().load(&cluster).unwrap();
    let mut client = cluster.client().unwrap();
    let len = client.command(&["STRLEN", "string:64 MiB"]).unwrap();
    assert_eq!(len.int().unwrap(), 64 * 1024 * 1024);
    assert_eq!(client.command(&["HLEN", "hash:a million fields"]).unwrap().int().unwrap(), 1_000_000);
    assert!(loaded.bytes > 80_000_000);
}

#[test]
fn bulk_data_is_as_much_as_asked_for_and_the_same_every_time() {
    const BYTES: u64 = 40_000_000;
    let first = cluster("valkey-9.1", 0).unwrap();
    let loaded = Mix::bulk(BYTES).load(&first).unwrap();
    assert!(loaded.bytes >= BYTES && loaded.bytes < BYTES + BYTES / 50, "{}", loaded.bytes);
    assert!(loaded.samples.len() > 100, "{}", loaded.samples.len());
    assert_eq!(keys_in(&first).unwrap(), i64::try_from(loaded.keys()).unwrap());
    drop(first);
    let second = cluster("valkey-9.1", 0).unwrap();
    let again = Mix::bulk(BYTES).load(&second).unwrap();
    assert_eq!(again.keys_by_type, loaded.keys_by_type);
    loaded.verify(&mut second.client().unwrap()).unwrap();
}
