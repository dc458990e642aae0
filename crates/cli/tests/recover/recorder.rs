//! Keeps a log as `slotkeep archive` would, by the simplest means: follows primaries, asks for their time, writes segments.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::mpsc::{RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use slotkeep_format::lineage::{HISTORY_VERSION, TOPOLOGY_VERSION};
use slotkeep_format::manifest::ServerRecord;
use slotkeep_format::{HistoryRecord, Manifest, Parent, ShardState, TimeSample, Timeline, TopologyRecord};
use slotkeep_model::{ReplId, ReplOffset};
use slotkeep_repo::{Location, Repository, SegmentMeta};
use slotkeep_testkit::deadline::{NotYet, wait_for};
use slotkeep_testkit::{Client, Cluster, Endpoint};
use slotkeep_wire::replica::{Handshake, HandshakeEvent, HandshakeOptions, Request};
use slotkeep_wire::stream::{Splitter, StreamStart};

const SAMPLE_EVERY: Duration = Duration::from_millis(15);
const LIMIT: Duration = Duration::from_secs(30);

/// Follows every primary of a cluster.
pub(crate) struct Recorder {
    manifest: Manifest,
    followers: Vec<Follower>,
    /// What was followed before a failover.
    before: Vec<(usize, Followed)>,
    topologies: Vec<TopologyRecord>,
}

/// What was recorded of one history.
pub(crate) struct Followed {
    history: ReplId,
    parent: Option<Parent>,
    addr: SocketAddr,
    /// The offset of the first byte.
    start: u64,
    bytes: Vec<u8>,
    samples: Vec<TimeSample>,
}

impl Recorder {
    /// Goes on where a backup ended.
    pub(crate) fn start(cluster: &Cluster, manifest: &Manifest) -> Self {
        let followers = manifest
            .shards
            .iter()
            .map(|shard| {
                Follower::start(
                    cluster_node(cluster, &shard.primary.addr.to_string()),
                    &shard.history,
                    shard.offset,
                    None,
                )
            })
            .collect();
        let mut recorder = Self { manifest: manifest.clone(), followers, before: vec![], topologies: vec![] };
        recorder.see();
        recorder
    }

    /// Looks at the topology: as in the backup, with the histories of now.
    pub(crate) fn see(&mut self) {
        let now = self.manifest.finished_at.max(now());
        self.see_as_of(now);
    }

    /// Looks at the topology while a slot is being moved, as its target says and, if it is asked, its source.
    pub(crate) fn see_moving(&mut self, slot: slotkeep_model::Slot, from: Option<usize>, to: usize) {
        self.see_as_of(now());
        let slot: slotkeep_model::SlotSet = std::iter::once(slot).collect();
        let shards = &mut self.topologies.last_mut().unwrap().shards;
        if let Some(from) = from {
            shards[from].migrating = slot.clone();
        }
        shards[to].importing = slot;
    }

    fn see_as_of(&mut self, seen_at: Timestamp) {
        let states = self.manifest.shards.iter().zip(&self.followers).map(|(shard, follower)| ShardState {
            slots: shard.slots.clone(),
            importing: slotkeep_model::SlotSet::default(),
            migrating: slotkeep_model::SlotSet::default(),
            unfollowed: slotkeep_model::SlotSet::default(),
            config_epoch: shard.config_epoch,
            primary: slotkeep_format::manifest::NodeRecord {
                addr: follower.addr.to_string().parse().unwrap(),
                ..shard.primary.clone()
            },
            replicas: shard.replicas.clone(),
            history: Some(follower.shared.lock().unwrap().history.clone()),
            offset: None,
        });
        self.topologies.push(TopologyRecord {
            format_version: TOPOLOGY_VERSION,
            id: format!("{:013}-{}", seen_at.as_millisecond(), self.topologies.len()),
            as_before_until: None,
            seen_at,
            cluster_mode: self.manifest.cluster_mode,
            current_epoch: self.manifest.current_epoch,
            shards: states.collect(),
        });
    }

    /// Waits until everything that primaries have produced by now is here, and has been sampled.
    pub(crate) fn catch_up(&self) {
        self.followers.iter().for_each(Follower::catch_up);
    }

    /// Goes on with another node of a shard, where the one before has died.
    pub(crate) fn fail_over(&mut self, shard: usize, node: SocketAddr) {
        let old = self.followers.remove(shard).stop();
        let last = old.start + old.bytes.len() as u64 - 1;
        self.followers.insert(shard, Follower::start(node, &old.history, last, Some(())));
        self.before.push((shard, old));
        self.see();
    }

    /// Writes all of it into a repository, in segments of about that many bytes.
    pub(crate) fn finish(mut self, repository: &std::path::Path, segment_bytes: usize) {
        self.catch_up();
        let mut all = std::mem::take(&mut self.before);
        all.extend(std::mem::take(&mut self.followers).into_iter().map(Follower::stop).enumerate());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let repository = Repository::open(&Location::Folder(repository.to_owned())).await.unwrap();
            for topology in &self.topologies {
                repository.put_topology(&self.manifest.cluster, topology).await.unwrap();
            }
            for (shard, followed) in &all {
                Box::pin(write(&repository, &self.manifest, *shard, followed, segment_bytes)).await;
            }
        });
    }
}

async fn write(
    repository: &Repository,
    manifest: &Manifest,
    shard: usize,
    followed: &Followed,
    segment_bytes: usize,
) {
    let cluster = &manifest.cluster;
    let shard = &manifest.shards[shard];
    let record = HistoryRecord {
        format_version: HISTORY_VERSION,
        history: followed.history.clone(),
        parent: followed.parent.clone(),
        slots: shard.slots.clone(),
        source: followed.addr.to_string().parse().unwrap(),
        first_seen_at: now(),
    };
    repository.put_history(cluster, &record).await.unwrap();
    for segment in segments(followed, segment_bytes) {
        let range = segment.range.clone();
        let mut writer = repository.create_segment(cluster, &followed.history, range.clone()).await.unwrap();
        let at = |offset: u64| usize::try_from(offset - followed.start).unwrap();
        writer.write(&followed.bytes[at(range.start)..at(range.end)]).await.unwrap();
        let mut times = Timeline::default();
        for sample in &followed.samples {
            let first_here = sample.offset + 1 == range.start && range.start == followed.start;
            if range.contains(&sample.offset) || first_here {
                times.push(*sample);
            }
        }
        let meta = SegmentMeta {
            database: segment.database,
            commands: segment.commands,
            source: followed.addr.to_string().parse().unwrap(),
            server: ServerRecord { ..shard.server.clone() },
            times,
        };
        writer.finish(meta).await.unwrap();
    }
}

struct Segment {
    range: Range<u64>,
    database: Option<u32>,
    commands: u64,
}

/// Cuts a stream at safe cuts.
fn segments(followed: &Followed, segment_bytes: usize) -> Vec<Segment> {
    let start = StreamStart { offset: ReplOffset(followed.start - 1), db: Some(0), in_transaction: false };
    let mut splitter = Splitter::new(start);
    let mut input = followed.bytes.as_slice();
    let mut segments = Vec::new();
    let (mut begin, mut database, mut commands) = (followed.start, Some(0), 0);
    while splitter.next(&mut input).unwrap().is_some() {
        commands += 1;
        let cut = splitter.safe_cut().0;
        if cut == splitter.offset().0 && cut + 1 - begin >= segment_bytes as u64 {
            segments.push(Segment { range: begin..cut + 1, database, commands });
            (begin, database, commands) = (cut + 1, splitter.db(), 0);
        }
    }
    let cut = splitter.safe_cut().0;
    if cut + 1 > begin {
        segments.push(Segment { range: begin..cut + 1, database, commands });
    }
    segments
}

/// A connection to one primary, and a second one for its clock.
struct Follower {
    addr: SocketAddr,
    shared: Arc<Mutex<Followed>>,
    stop: Vec<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Follower {
    /// Asks a node to go on with a history behind `last`. With `expects_new`, it must answer with a new one.
    fn start(addr: SocketAddr, history: &ReplId, last: u64, expects_new: Option<()>) -> Self {
        let request = Request::after(history.clone(), ReplOffset(last)).unwrap();
        let mut handshake = Handshake::new(HandshakeOptions::new(request));
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut buffer = vec![0; 1 << 18];
        let continued = loop {
            if let Some(bytes) = handshake.to_send() {
                stream.write_all(&bytes).unwrap();
            }
            match handshake.poll() {
                Some(HandshakeEvent::Continue { replid }) => break replid,
                Some(HandshakeEvent::Alive) => continue,
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            match stream.read(&mut buffer) {
                Ok(read) => handshake.feed(&buffer[..read]).unwrap(),
                Err(error) if is_timeout(&error) => {}
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(continued.as_ref().is_some_and(|new| new != history), expects_new.is_some());
        let parent = expects_new.map(|()| Parent { history: history.clone(), fork: last });
        let shared = Arc::new(Mutex::new(Followed {
            history: continued.unwrap_or_else(|| history.clone()),
            parent,
            addr,
            start: last + 1,
            bytes: handshake.take_rest(),
            samples: vec![],
        }));
        let (stop_reading, reading) = channel::<()>();
        let (stop_sampling, sampling) = channel::<()>();
        let mine = Arc::clone(&shared);
        let reader = std::thread::spawn(move || {
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(read) => mine.lock().unwrap().bytes.extend_from_slice(&buffer[..read]),
                    // What has come by now is kept.
                    Err(error) if is_timeout(&error) && reading.try_recv() == Err(TryRecvError::Empty) => {}
                    Err(_) => return,
                }
            }
        });
        let mine = Arc::clone(&shared);
        let sampler = std::thread::spawn(move || {
            let mut client = Client::connect(&Endpoint::plain(addr)).unwrap();
            while let Some(sample) = sample(&mut client) {
                mine.lock().unwrap().samples.push(sample);
                if sampling.recv_timeout(SAMPLE_EVERY) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        Self { addr, shared, stop: vec![stop_reading, stop_sampling], threads: vec![reader, sampler] }
    }

    fn catch_up(&self) {
        let mut client = Client::connect(&Endpoint::plain(self.addr)).unwrap();
        let TimeSample { until_ms, offset: produced, .. } = sample(&mut client).unwrap();
        wait_for(LIMIT, "the log to be here", || {
            let shared = self.shared.lock().unwrap();
            let sampled = shared.samples.last().is_some_and(|sample| sample.from_ms > until_ms);
            let here = shared.start + shared.bytes.len() as u64 > produced;
            if here && sampled { Ok(()) } else { Err(NotYet::because("it is not")) }
        })
        .unwrap();
    }

    fn stop(self) -> Followed {
        drop(self.stop);
        for thread in self.threads {
            thread.join().unwrap();
        }
        Arc::into_inner(self.shared).unwrap().into_inner().unwrap()
    }
}

/// Asks a server for its time and offset; nothing if it has gone.
pub(crate) fn sample(client: &mut Client) -> Option<TimeSample> {
    let replies = client.pipeline(&[vec!["TIME"], vec!["INFO", "replication"], vec!["TIME"]]).ok()?;
    let micros = |value: &slotkeep_testkit::Value| {
        let parts: Vec<i64> =
            value.array().unwrap().iter().map(|part| part.text().unwrap().parse().unwrap()).collect();
        parts[0] * 1_000_000 + parts[1]
    };
    let info = replies[1].text().unwrap();
    let offset = info.lines().find_map(|line| line.strip_prefix("master_repl_offset:")).unwrap();
    Some(TimeSample {
        from_ms: micros(&replies[0]).div_euclid(1000),
        until_ms: (micros(&replies[2]) + 999).div_euclid(1000),
        offset: offset.trim().parse().unwrap(),
    })
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

fn cluster_node(cluster: &Cluster, addr: &str) -> SocketAddr {
    cluster.nodes().iter().map(slotkeep_testkit::Node::addr).find(|node| node.to_string() == addr).unwrap()
}

/// The time of day.
#[expect(clippy::disallowed_methods, reason = "a test's own clock, which is also the servers'")]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// Lets time go by, which is what is recorded.
pub(crate) fn pause(ms: u64) {
    let (_keep, never) = channel::<()>();
    assert_eq!(never.recv_timeout(Duration::from_millis(ms)), Err(RecvTimeoutError::Timeout));
}

/// The manifest that `slotkeep backup --json` printed.
pub(crate) fn manifest_of(printed: &Value) -> Manifest {
    Manifest::parse(printed.to_string().as_bytes()).unwrap()
}
