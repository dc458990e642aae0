//! Clusters of real servers: that they start, and that what is done to them happens.

use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use slotkeep_model::{Slot, key_slot};
use slotkeep_testkit::data::Writer;
use slotkeep_testkit::deadline::{NotYet, Stopwatch, wait_for};
use slotkeep_testkit::{Client, Cluster, ClusterBuilder, Endpoint, Error, FailoverMode, Result, servers};

fn builder(server: &str) -> Result<ClusterBuilder> {
    Ok(ClusterBuilder::new(servers::require(server)?))
}

/// Writes a hundred keys and reads one.
fn write_and_read(cluster: &Cluster) -> Result<String> {
    let mut client = cluster.client()?;
    for number in 0..100 {
        client.command(&["SET", &format!("key:{number}"), &number.to_string()])?;
    }
    client.command(&["GET", "key:17"])?.text()
}

#[test]
fn three_primaries_with_replicas_are_whole_in_seconds() {
    let watch = Stopwatch::start();
    let cluster = builder("valkey-9.1").unwrap().primaries(3).replicas_per_primary(1).start().unwrap();
    assert!(watch.elapsed() < Duration::from_mins(1), "{:?}", watch.elapsed());
    assert_eq!(write_and_read(&cluster).unwrap(), "17");
    for shard in 0..3 {
        assert_eq!(cluster.primary(shard).unwrap().number(), shard);
        assert_eq!(cluster.replicas(shard).unwrap().len(), 1);
    }
}

#[test]
fn two_clusters_at_once_keep_apart() {
    let clusters: Vec<_> = thread::scope(|scope| {
        let starts: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| builder("valkey-9.1").unwrap().primaries(2).start().unwrap()))
            .collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    let mut clients: Vec<_> = clusters.iter().map(|cluster| cluster.client().unwrap()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.command(&["SET", "whose", &number.to_string()]).unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.command(&["GET", "whose"]).unwrap().text().unwrap(), number.to_string());
    }
}

#[test]
fn a_failover_loses_no_write() {
    let cluster = builder("valkey-9.1").unwrap().replicas_per_primary(1).start().unwrap();
    let writer = Writer::start(&cluster, 200).unwrap();
    writer.wait_for_more(500).unwrap();
    let before = cluster.primary(1).unwrap().number();
    let after = cluster.failover(1).unwrap().number();
    assert_ne!(before, after);
    assert_eq!(cluster.primary(1).unwrap().number(), after);
    assert_eq!(cluster.replicas(1).unwrap().first().unwrap().number(), before);
    writer.wait_for_more(500).unwrap();
    let written = writer.stop();
    written.verify(&mut cluster.client().unwrap()).unwrap();
}

#[test]
fn a_killed_primary_is_replaced_and_comes_back_as_a_replica() {
    let cluster = builder("valkey-9.1").unwrap().replicas_per_primary(1).start().unwrap();
    assert_eq!(write_and_read(&cluster).unwrap(), "17");
    let dead = cluster.primary(0).unwrap();
    dead.kill().unwrap();
    assert_eq!(dead.pid(), None);
    let heir = cluster.failover_by(0, FailoverMode::Takeover).unwrap();
    assert_ne!(heir.number(), dead.number());
    assert_eq!(write_and_read(&cluster).unwrap(), "17");
    dead.start().unwrap();
    cluster.wait_ok().unwrap();
    assert_eq!(cluster.replicas(0).unwrap().first().unwrap().number(), dead.number());
}

#[test]
fn a_paused_node_does_not_answer_until_it_is_resumed() {
    let cluster = builder("valkey-9.1").unwrap().primaries(1).cluster_mode(false).start().unwrap();
    let node = cluster.node(0).unwrap();
    node.pause().unwrap();
    assert!(matches!(node.pause(), Err(Error::NodeState { state: "paused", .. })));
    let hasty = node.endpoint().with_timeout(Duration::from_millis(300));
    let refused = Client::connect(&hasty).and_then(|mut client| client.command(&["PING"])).unwrap_err();
    assert!(
        matches!(&refused, Error::Io { source, .. } if source.kind() == ErrorKind::WouldBlock),
        "{refused}"
    );
    node.resume().unwrap();
    node.client().unwrap().command(&["PING"]).unwrap();
}

#[test]
fn a_restarted_node_keeps_what_it_saved() {
    let cluster = builder("redis-7.0").unwrap().primaries(1).cluster_mode(false).start().unwrap();
    let node = cluster.node(0).unwrap();
    node.client().unwrap().command(&["SET", "kept", "yes"]).unwrap();
    node.shutdown_saving().unwrap();
    assert!(node.dir().join("dump.rdb").exists());
    assert!(matches!(node.shutdown(), Err(Error::NodeState { state: "stopped", .. })));
    node.start().unwrap();
    node.client().unwrap().command(&["SET", "lost", "yes"]).unwrap();
    node.restart().unwrap();
    let mut client = node.client().unwrap();
    assert_eq!(client.command(&["GET", "kept"]).unwrap().text().unwrap(), "yes");
    assert_eq!(client.command(&["EXISTS", "lost"]).unwrap().int().unwrap(), 0);
}

#[test]
fn tls_with_a_password_leaves_no_other_way_in() {
    let cluster = builder("redis-7.0")
        .unwrap()
        .replicas_per_primary(1)
        .tls(true)
        .password("secret")
        .acl_user("backup", "on >other +@all ~* &*")
        .start()
        .unwrap();
    assert!(cluster.ca().unwrap().exists());
    assert_eq!(write_and_read(&cluster).unwrap(), "17");
    let node = cluster.node(0).unwrap();
    let backup =
        Endpoint { user: Some("backup".into()), password: Some("other".into()), ..node.endpoint().clone() };
    let who = Client::connect(&backup).unwrap().command(&["ACL", "WHOAMI"]).unwrap();
    assert_eq!(who.text().unwrap(), "backup");
    let stranger = Endpoint { password: None, ..node.endpoint().clone() };
    let refused = Client::connect(&stranger).unwrap().command(&["PING"]).unwrap_err();
    assert!(refused.to_string().contains("NOAUTH"), "{refused}");
    let plain = Endpoint::plain(node.addr()).with_timeout(Duration::from_secs(2));
    assert!(Client::connect(&plain).unwrap().command(&["PING"]).is_err());
    // `MIGRATE` must log in and speak TLS as well.
    let slot = key_slot(b"key:17");
    let from = usize::from(slot.number()) * 3 / usize::from(Slot::COUNT);
    cluster.move_slot(slot, from, (from + 1) % 3).unwrap();
    let value = cluster.client().unwrap().command(&["GET", "key:17"]).unwrap();
    assert_eq!(value.text().unwrap(), "17");
}

#[test]
fn mutual_tls_serves_clients_with_a_certificate() {
    let cluster =
        builder("redis-7.0").unwrap().primaries(1).cluster_mode(false).mutual_tls().start().unwrap();
    let node = cluster.node(0).unwrap();
    node.client().unwrap().command(&["PING"]).unwrap();
    let config = node.client().unwrap().command(&["CONFIG", "GET", "tls-auth-clients"]).unwrap();
    assert_eq!(config.array().unwrap()[1].text().unwrap(), "yes");
}

#[test]
fn a_slot_moves_with_its_keys() {
    let cluster = builder("valkey-9.1").unwrap().start().unwrap();
    let mut client = cluster.client().unwrap();
    for number in 0..250 {
        client.command(&["SET", &format!("{{a}}{number}"), "x"]).unwrap();
    }
    let slot = key_slot(b"a");
    cluster.move_slot(slot, 2, 0).unwrap();
    // This client has not heard of it and has to follow the redirection.
    assert_eq!(client.command(&["GET", "{a}249"]).unwrap().text().unwrap(), "x");
    assert_eq!(client.owner(slot).unwrap(), cluster.primary(0).unwrap().addr());
    let mut owner = cluster.primary(0).unwrap().client().unwrap();
    let count = owner.command(&["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]).unwrap();
    assert_eq!(count.int().unwrap(), 250);
}

#[test]
fn settings_override_the_testkits_own() {
    let cluster = builder("valkey-9.1")
        .unwrap()
        .primaries(1)
        .ipv6(true)
        .config("cluster-node-timeout", "5000")
        .config("appendonly", "yes")
        .start()
        .unwrap();
    let node = cluster.node(0).unwrap();
    let mut client = node.client().unwrap();
    for (name, expected) in [("cluster-node-timeout", "5000"), ("appendonly", "yes"), ("save", "")] {
        let reply = client.command(&["CONFIG", "GET", name]).unwrap();
        assert_eq!(reply.array().unwrap()[1].text().unwrap(), expected, "{name}");
    }
    let ipv6 = node.endpoint().at(SocketAddr::from((Ipv6Addr::LOCALHOST, node.port())));
    Client::connect(&ipv6).unwrap().command(&["PING"]).unwrap();
}

#[test]
fn a_server_that_refuses_its_settings_says_why() {
    let failed =
        builder("valkey-9.1").unwrap().primaries(1).config("no-such-setting", "1").start().unwrap_err();
    assert!(failed.to_string().contains("no-such-setting"), "{failed}");
    assert!(matches!(failed, Error::ServerDied { .. }));
    let impossible = builder("redis-6.2").unwrap().tls(true).start().unwrap_err();
    assert!(matches!(impossible, Error::Setup { .. }));
}

#[test]
fn a_dropped_cluster_leaves_nothing() {
    let cluster = builder("valkey-9.1").unwrap().primaries(1).start().unwrap();
    let node = cluster.node(0).unwrap();
    let (addr, dir) = (node.addr(), node.dir().to_owned());
    node.pause().unwrap();
    drop(cluster);
    assert!(!dir.exists());
    assert!(Client::connect(&Endpoint::plain(addr)).is_err());
}

#[test]
fn oldest_and_newest_servers_form_clusters_and_keep_writes() {
    for name in ["redis-6.2", "redis-8.0", "valkey-8.1"] {
        let cluster = builder(name).unwrap().replicas_per_primary(1).start().unwrap();
        assert_eq!(write_and_read(&cluster).unwrap(), "17");
        cluster.failover(0).unwrap();
        wait_for(Duration::from_secs(10), name, || match cluster.client()?.command(&["GET", "key:17"])? {
            value if value.bytes() == Some(b"17") => Ok(()),
            value => Err(NotYet::because(format!("{value:?}"))),
        })
        .unwrap();
    }
}

#[test]
fn data_put_into_a_prepared_cluster_is_served() {
    let source = builder("valkey-9.1").unwrap().primaries(1).start().unwrap();
    assert_eq!(write_and_read(&source).unwrap(), "17");
    let saved = source.node(0).unwrap();
    saved.shutdown_saving().unwrap();
    let target = builder("valkey-9.1").unwrap().primaries(1).replicas_per_primary(1).prepare().unwrap();
    let node = target.node(0).unwrap();
    assert_eq!(node.pid(), None);
    std::fs::copy(saved.dir().join("dump.rdb"), node.dir().join("dump.rdb")).unwrap();
    target.start_nodes().unwrap();
    let value = target.client().unwrap().command(&["GET", "key:17"]).unwrap();
    assert_eq!(value.text().unwrap(), "17");
}
