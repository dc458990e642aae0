//! Links that are cut, slowed down and lossy.

use std::time::Duration;

use slotkeep_testkit::deadline::Stopwatch;
use slotkeep_testkit::{Client, Cluster, ClusterBuilder, Endpoint, Proxy, Result, servers};

const VALUE_BYTES: usize = 1_000_000;

/// A server with one large value, a proxy before it, and how to connect to that.
fn proxied() -> Result<(Cluster, Proxy, Endpoint)> {
    let server = servers::require("valkey-9.1")?;
    let cluster = ClusterBuilder::new(server).primaries(1).cluster_mode(false).start()?;
    let node = cluster.node(0)?;
    node.client()?.command(&[&b"SET"[..], b"large", &vec![b'v'; VALUE_BYTES]])?;
    let proxy = node.proxy()?;
    let endpoint = node.endpoint().at(proxy.addr()).with_timeout(Duration::from_secs(10));
    Ok((cluster, proxy, endpoint))
}

fn read_large(client: &mut Client) -> Result<usize> {
    Ok(client.command(&["GET", "large"])?.bytes().map_or(0, <[u8]>::len))
}

#[test]
fn a_link_passes_everything_until_it_is_cut() {
    let (_cluster, proxy, endpoint) = proxied().unwrap();
    let mut client = Client::connect(&endpoint).unwrap();
    assert_eq!(read_large(&mut client).unwrap(), VALUE_BYTES);
    proxy.cut();
    assert!(read_large(&mut client).is_err());
    assert!(Client::connect(&endpoint).and_then(|mut client| read_large(&mut client)).is_err());
    proxy.mend();
    assert_eq!(read_large(&mut Client::connect(&endpoint).unwrap()).unwrap(), VALUE_BYTES);
}

#[test]
fn a_link_is_cut_after_exactly_so_many_bytes() {
    let (_cluster, proxy, endpoint) = proxied().unwrap();
    let mut client = Client::connect(&endpoint).unwrap();
    client.command(&["PING"]).unwrap();
    let before = proxy.passed_bytes();
    proxy.cut_after(123_457);
    assert!(read_large(&mut client).is_err());
    assert_eq!(proxy.passed_bytes() - before, 123_457);
}

#[test]
fn a_throttled_link_is_as_slow_as_asked_for() {
    let (_cluster, proxy, endpoint) = proxied().unwrap();
    proxy.throttle(1_000_000);
    let mut client = Client::connect(&endpoint).unwrap();
    let watch = Stopwatch::start();
    assert_eq!(read_large(&mut client).unwrap(), VALUE_BYTES);
    let seconds = watch.elapsed().as_secs_f64();
    assert!(seconds >= 0.9, "{seconds}");
}

#[test]
fn a_lossy_link_swallows_bytes() {
    let (_cluster, proxy, endpoint) = proxied().unwrap();
    let mut client = Client::connect(&endpoint).unwrap();
    client.command(&["PING"]).unwrap();
    proxy.lose(5);
    assert!(client.command(&["ECHO", "hello"]).is_err());
}
