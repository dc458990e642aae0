use proptest::prelude::*;
use slotkeep_model::{NodeAddr, NodeId, Role};

use super::*;
use crate::resp::{Decoder, Value};

struct Server {
    first_port: u16,
    nodes: &'static str,
    importing: &'static str,
    info: &'static str,
    shards: [&'static [u8]; 2],
    slots: [&'static [u8]; 2],
    hostname: Option<&'static str>,
}

macro_rules! server {
    ($name:literal, $first_port:literal, $hostname:expr) => {
        Server {
            first_port: $first_port,
            nodes: include_str!(concat!("../../fixtures/", $name, "/cluster-nodes.txt")),
            importing: include_str!(concat!("../../fixtures/", $name, "/cluster-nodes-importing.txt")),
            info: include_str!(concat!("../../fixtures/", $name, "/cluster-info.txt")),
            shards: [
                include_bytes!(concat!("../../fixtures/", $name, "/cluster-shards.resp2")),
                include_bytes!(concat!("../../fixtures/", $name, "/cluster-shards.resp3")),
            ],
            slots: [
                include_bytes!(concat!("../../fixtures/", $name, "/cluster-slots.resp2")),
                include_bytes!(concat!("../../fixtures/", $name, "/cluster-slots.resp3")),
            ],
            hostname: $hostname,
        }
    };
}

const SERVERS: [Server; 2] =
    [server!("valkey-9.1.2", 17400, Some("node.example")), server!("redis-7.0.15", 17500, None)];

fn dialled() -> NodeAddr {
    NodeAddr::new("seed.example", 6000)
}

fn view(text: &str) -> Result<ClusterView, TopologyError> {
    from_nodes(text, &dialled(), false)
}

fn decode(bytes: &[u8]) -> Value {
    let mut decoder = Decoder::new();
    decoder.feed(bytes);
    decoder.next().unwrap().unwrap()
}

#[test]
fn nodes_of_real_servers_make_a_topology() {
    for server in SERVERS {
        let view = view(server.nodes).unwrap();
        let ports: Vec<(u16, String, Vec<u16>)> = view
            .topology
            .shards
            .iter()
            .map(|shard| {
                let replicas = shard.replicas.iter().map(|node| node.addr.port() - server.first_port);
                (shard.primary.addr.port() - server.first_port, shard.slots.to_string(), replicas.collect())
            })
            .collect();
        let expected = [(0, "0-5460", vec![3]), (1, "5461-10922", vec![]), (2, "10923-16383", vec![])];
        assert_eq!(ports, expected.map(|(port, slots, replicas)| (port, slots.to_owned(), replicas)));
        assert!(view.topology.shards.iter().flat_map(slotkeep_model::Shard::nodes).all(|node| node.online));
        assert_eq!(view.topology.current_epoch, 3);
        let me = view.my_row().unwrap();
        assert_eq!((me.port, me.bus_port), (server.first_port, server.first_port + 10_000));
        assert_eq!(me.hostname.as_deref(), server.hostname);
        assert!(view.primaries_without_slots.is_empty() && view.unattached_replicas.is_empty());

        let moving = SlotMove {
            slot: slotkeep_model::Slot::new(5).unwrap(),
            from: view.myself.clone(),
            to: view.topology.shards[1].primary.id.clone().unwrap(),
        };
        assert_eq!((view.migrating.as_slice(), view.importing.len()), ([moving.clone()].as_slice(), 0));
        assert_eq!(from_nodes(server.importing, &dialled(), false).unwrap().importing, [moving]);
    }
}

#[test]
fn shards_and_slots_agree_with_nodes_in_both_protocols() {
    for server in SERVERS {
        let view = view(server.nodes).unwrap();
        let [resp2, resp3] = server.shards.map(|bytes| parse_shards(&decode(bytes)).unwrap());
        for shards in [&resp2, &resp3] {
            assert_eq!(shards.len(), 3);
            for shard in shards {
                let same = view.topology.shards.iter().find(|other| other.slots == shard.slots).unwrap();
                assert_eq!(same.nodes().count(), shard.nodes.len());
                for node in &shard.nodes {
                    let known = same.nodes().find(|known| known.id.as_ref() == Some(&node.id)).unwrap();
                    assert_eq!((known.role, node.health, node.tls_port), (node.role, Health::Online, None));
                    assert_eq!((Some(known.addr.port()), known.addr.host()), (node.port, node.ip.as_str()));
                    assert_eq!(node.hostname.as_deref(), server.hostname);
                }
            }
        }
        let [resp2, resp3] = server.slots.map(|bytes| parse_slots(&decode(bytes)).unwrap());
        assert_eq!(resp2, resp3);
        for row in resp2 {
            let same = view.topology.shards.iter().find(|other| other.slots.ranges() == [row.range]).unwrap();
            let ids: Vec<&NodeId> = row.nodes.iter().filter_map(|node| node.id.as_ref()).collect();
            assert_eq!(ids, same.nodes().filter_map(|node| node.id.as_ref()).collect::<Vec<_>>());
            assert!(row.nodes.iter().all(|node| node.endpoint.as_deref() == Some("127.0.0.1")));
            assert!(row.nodes.iter().all(|node| node.hostname.as_deref() == server.hostname));
        }
    }
}

#[test]
fn cluster_info_gives_the_state_and_the_epoch() {
    for server in SERVERS {
        let info = ClusterInfo::parse(server.info).unwrap();
        assert!(info.ok);
        assert_eq!((info.slots_assigned, info.known_nodes, info.size, info.current_epoch), (16384, 4, 3, 3));
    }
    let error = ClusterInfo::parse("cluster_state:ok\r\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the reply to CLUSTER INFO has no cluster_slots_assigned where one belongs"
    );
}

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const C: &str = "cccccccccccccccccccccccccccccccccccccccc";
const D: &str = "dddddddddddddddddddddddddddddddddddddddd";

#[test]
fn addresses_that_are_not_known_are_filled_in() {
    let text = format!(
        "{A} :7000@17000 myself,master - 0 0 1 connected 0-5\n\
         {B} :7001@17001,two.example master - 0 0 2 connected 6\n\
         {C} ::1:7002@17002 master - 0 0 3 connected 7\n\
         {D} :0@0 master,fail?,noaddr - 0 0 4 disconnected 8\n"
    );
    let view = view(&text).unwrap();
    let addresses: Vec<String> =
        view.topology.shards.iter().map(|shard| shard.primary.addr.to_string()).collect();
    assert_eq!(addresses, ["seed.example:6000", "two.example:7001", "[::1]:7002", ":0"]);
    let online: Vec<bool> = view.topology.shards.iter().map(|shard| shard.primary.online).collect();
    assert_eq!(online, [true, true, true, false]);
}

#[test]
fn what_belongs_to_no_shard_is_named() {
    let text = format!(
        "{A} h:1 myself,master - 0 0 1 connected\n\
         {B} h:2@3 slave {A} 0 0 1 connected\n\
         {C} h:3@4 slave {D} 0 0 0 connected\n\
         eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee h:4@5 handshake - 0 0 0 disconnected\n\
         ffffffffffffffffffffffffffffffffffffffff h:5@6 slave ffffffffffffffffffffffffffffffffffffffff 0 0 0 connected"
    );
    let view = view(&text).unwrap();
    assert!(view.topology.shards.is_empty());
    assert_eq!(view.rows.len(), 5);
    assert_eq!(view.rows[0].bus_port, 10_001);
    assert_eq!(view.primaries_without_slots, [A.parse().unwrap()]);
    let unattached: Vec<&str> = view.unattached_replicas.iter().map(NodeId::as_str).collect();
    assert_eq!(unattached, [C, "ffffffffffffffffffffffffffffffffffffffff", B]);
}

#[test]
fn a_replica_of_a_former_primary_belongs_to_its_successor() {
    let text = format!(
        "{A} h:1@2 myself,master - 0 0 2 connected 0-16383\n\
         {B} h:2@3 slave {A} 0 0 2 connected\n\
         {C} h:3@4 slave {B} 0 0 1 connected\n"
    );
    assert_eq!(view(&text).unwrap().topology.shards[0].replicas.len(), 2);
}

#[test]
fn tls_ports_come_from_shards_where_nodes_has_the_plain_ones() {
    let nodes =
        format!("{A} h:1@2 myself,master - 0 0 2 connected 0-16383\n{B} h:2@3 slave {A} 0 0 2 connected\n");
    let node = |id: &str, tls_port| ShardNode {
        id: id.parse().unwrap(),
        port: Some(1),
        tls_port,
        ip: "h".to_owned(),
        endpoint: None,
        hostname: None,
        role: Role::Primary,
        replication_offset: 0,
        health: Health::Online,
    };
    let shards = [ShardRow {
        id: None,
        slots: "0-16383".parse().unwrap(),
        nodes: vec![node(A, Some(9)), node(B, None)],
    }];
    let mut view = from_nodes(&nodes, &dialled(), true).unwrap();
    view.amend_ports(&shards);
    let ports: Vec<u16> = view.topology.shards[0].nodes().map(|node| node.addr.port()).collect();
    assert_eq!(ports, [9, 2]);
}

#[test]
fn contradictions_and_malformed_lines_are_refused() {
    let me = format!("{A} h:1@2 myself,master - 0 0 1 connected 0-5");
    for (text, message) in [
        (String::new(), "no node is marked `myself`".to_owned()),
        (format!("{me}\n{me}"), format!("node {A} is listed twice")),
        (
            format!("{me}\n{B} h:1@2 myself,master - 0 0 1 connected"),
            format!("both {A} and {B} are marked `myself`"),
        ),
        (
            format!("{me}\n{B} h:1@2 master - 0 0 1 connected 5"),
            format!("slot 5 is owned by both {A} and {B}"),
        ),
        (format!("{me} 16384"), "line 1: `16384` is not a slot, a range or a move of a slot".to_owned()),
        (format!("{me} 9-7"), "line 1: `9-7` is not a slot, a range or a move of a slot".to_owned()),
        (format!("{me} [5->-{A}"), format!("line 1: `[5->-{A}` is not a slot, a range or a move of a slot")),
        (
            format!("\n{A} h master - 0 0 1 connected"),
            "line 2: `h` is not an address as in `ip:port@busport`".to_owned(),
        ),
        (format!("{A} h:1@2 master - 0 0 x connected"), "line 1: `x` is not a config epoch".to_owned()),
        (format!("{A} h:1@2 master"), "line 1: `` is not the primary's id, or `-`".to_owned()),
        ("x".to_owned(), "line 1: `` is not an address as in `ip:port@busport`".to_owned()),
    ] {
        assert_eq!(view(&text).unwrap_err().to_string(), message, "{text}");
    }
}

proptest! {
    #[test]
    fn hostile_replies_are_an_error_at_worst(cut in 0usize..2000, byte in any::<u8>(), text in "[0-9a-f :@,>\\[\\]-]{0,200}") {
        let _ = view(&text);
        for server in SERVERS {
            let _ = view(&format!("{}{text}", server.nodes.get(..cut).unwrap_or_default()));
            for bytes in server.shards.into_iter().chain(server.slots) {
                let mut bytes = bytes.to_vec();
                if let Some(at) = bytes.get_mut(cut) {
                    *at = byte;
                }
                let mut decoder = Decoder::new();
                decoder.feed(&bytes);
                while let Ok(Some(value)) = decoder.next() {
                    let _ = (parse_shards(&value), parse_slots(&value));
                }
            }
        }
    }
}
