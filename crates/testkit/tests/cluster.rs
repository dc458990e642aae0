//! Clusters of real servers: that they start, and that what is done to them happens.

use slotkeep_testkit::deadline::Stopwatch;
use slotkeep_testkit::{ClusterBuilder, servers};

#[test]
fn three_primaries_with_replicas_start_and_take_data() {
    let watch = Stopwatch::start();
    let server = servers::require("valkey-9.1").unwrap();
    let cluster = ClusterBuilder::new(server).primaries(3).replicas_per_primary(1).start().unwrap();
    assert!(watch.elapsed().as_secs() < 10, "{:?}", watch.elapsed());
    let mut client = cluster.client().unwrap();
    for number in 0..300 {
        client.command(&["SET", &format!("key:{number}"), &number.to_string()]).unwrap();
    }
    let value = client.command(&["GET", "key:17"]).unwrap();
    assert_eq!(value.text().unwrap(), "17");
}
