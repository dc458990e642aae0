use proptest::prelude::*;

use super::*;

const FILES: [&str; 2] = [
    include_str!("../../fixtures/valkey-9.1.2/nodes.conf"),
    include_str!("../../fixtures/redis-7.0.15/nodes.conf"),
];

#[test]
fn the_plain_form_says_what_a_servers_own_file_says() {
    for file in FILES {
        let (conf, myself) = NodesConf::parse(file).unwrap();
        assert_eq!((conf.nodes.len(), conf.current_epoch), (4, 3));
        let text = conf.render(&myself).unwrap();
        assert!(!text.contains("shard-id"), "{text}");
        assert_eq!(NodesConf::parse(&text).unwrap(), (conf, myself));
    }
}

#[test]
fn each_node_gets_its_own_file() {
    let (mut conf, _) = NodesConf::parse(FILES[1]).unwrap();
    conf.current_epoch = 0;
    let replica = conf.nodes.iter().find(|node| !node.is_primary()).unwrap().id.clone();
    assert_eq!(
        conf.render(&replica).unwrap(),
        "77c36c8943033244dc7e114e425342a6b676815c 127.0.0.1:17500@27500 master - 0 0 1 connected 0-5460\n\
         ccfbd3047ae962bd92aa6d14a814bae2c516d4e7 127.0.0.1:17501@27501 master - 0 0 2 connected 5461-10922\n\
         34e295ce507eb40880b4cbbfeeb3b4752ad814f6 127.0.0.1:17503@27503 myself,slave 77c36c8943033244dc7e114e425342a6b676815c 0 0 0 connected\n\
         e0010d75c286287630958fe8c010626278282010 127.0.0.1:17502@27502 master - 0 0 3 connected 10923-16383\n\
         vars currentEpoch 3 lastVoteEpoch 0\n"
    );
}

#[test]
fn moving_slots_stand_on_the_nodes_own_line() {
    let (mut conf, _) = NodesConf::parse(FILES[1]).unwrap();
    let primaries: Vec<NodeId> =
        conf.nodes.iter().filter(|node| node.is_primary()).map(|node| node.id.clone()).collect();
    let (from, to) = (primaries[0].clone(), primaries[1].clone());
    conf.moves = vec![ConfMove { slots: "5,7".parse().unwrap(), from: from.clone(), to: to.clone() }];
    let text = conf.render(&from).unwrap();
    assert_eq!(text.matches('[').count(), 2);
    assert!(text.contains(&format!("0-5460 [5->-{to}] [7->-{to}]\n")), "{text}");
    let text = conf.render(&to).unwrap();
    assert!(text.contains(&format!("5461-10922 [5-<-{from}] [7-<-{from}]\n")), "{text}");
    assert!(!conf.render(&primaries[2]).unwrap().contains('['));
    conf.moves[0].slots = "5,6000".parse().unwrap();
    assert!(matches!(conf.render(&from), Err(NodesConfError::BadMove { .. })));
}

#[test]
fn a_cluster_that_would_lose_data_is_not_written() {
    let (conf, myself) = NodesConf::parse(FILES[1]).unwrap();
    let refused = |change: &dyn Fn(&mut NodesConf)| {
        let mut changed = conf.clone();
        change(&mut changed);
        changed.render(&myself).unwrap_err()
    };
    let slots_of = |node: &mut ConfNode, text: &str| {
        node.role = ConfRole::Primary { config_epoch: 9, slots: text.parse().unwrap() };
    };
    assert!(matches!(
        refused(&|conf| conf.nodes.retain(|node| node.port != 17500)),
        NodesConfError::NoSuchPrimary { .. }
    ));
    assert!(matches!(
        refused(&|conf| conf.nodes.retain(|node| node.port < 17501 + 1 && node.port != 17500)),
        NodesConfError::UnknownMyself { .. }
    ));
    assert!(matches!(
        refused(&|conf| conf.nodes[1].ip = "a b".to_owned()),
        NodesConfError::BadAddress { .. }
    ));
    assert!(matches!(refused(&|conf| conf.nodes[1].ip.clear()), NodesConfError::BadAddress { .. }));
    assert!(matches!(
        refused(&|conf| slots_of(&mut conf.nodes[1], "5460-10922")),
        NodesConfError::Topology(TopologyError::SlotOwnedTwice { .. })
    ));
    assert!(matches!(
        refused(&|conf| conf.nodes.push(conf.nodes[0].clone())),
        NodesConfError::Topology(TopologyError::DuplicateNode { .. })
    ));
    assert!(matches!(
        refused(&|conf| {
            slots_of(&mut conf.nodes[1], "5461-10922");
            slots_of(&mut conf.nodes[3], "10923-16383");
        }),
        NodesConfError::EpochUsedTwice { epoch: 9 }
    ));
}

proptest! {
    #[test]
    fn hostile_files_are_an_error_at_worst(at in 0usize..700, text in "[-0-9a-z:=,@ \\[\\]>\\n]{0,60}") {
        for file in FILES {
            let file = format!("{}{text}{}", file.get(..at).unwrap_or(file), file.get(at..).unwrap_or_default());
            if let Ok((conf, myself)) = NodesConf::parse(&file)
                && let Ok(rendered) = conf.render(&myself)
            {
                let (again, whose) = NodesConf::parse(&rendered).unwrap();
                prop_assert_eq!((again.nodes.len(), whose), (conf.nodes.len(), myself));
            }
        }
    }
}
