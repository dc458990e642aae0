//! A client that uses every command whose way through a replication stream is not plain.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use slotkeep_jobs::ports::{Clock, SystemClock};
use slotkeep_testkit::{Client, Endpoint, Value};

/// A client that works until it is told to stop.
pub(crate) struct Workload {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<BTreeSet<String>>,
}

impl Workload {
    /// Starts it. With `expiry`, keys get an end, some of them one that comes while it works.
    pub(crate) fn start(endpoint: &Endpoint, expiry: bool) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (their_stop, their_rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
        let mut client = Client::connect(endpoint).unwrap();
        let thread = std::thread::spawn(move || {
            let mut refused = BTreeSet::new();
            while !their_stop.load(Ordering::Acquire) {
                let round = their_rounds.load(Ordering::Acquire);
                let mut commands = commands(round);
                if expiry {
                    commands.extend(commands_with_expiry(round));
                }
                let replies = client.pipeline(&commands).unwrap();
                for (command, reply) in commands.iter().zip(replies) {
                    if let Value::Error(_) = reply {
                        refused.insert(command[0].clone());
                    }
                }
                their_rounds.fetch_add(1, Ordering::AcqRel);
            }
            refused
        });
        Self { stop, rounds, thread }
    }

    /// Waits until it has done so many more rounds.
    pub(crate) fn wait_for_rounds(&self, more: u64) {
        let wanted = self.rounds.load(Ordering::Acquire) + more;
        while self.rounds.load(Ordering::Acquire) < wanted {
            assert!(!self.thread.is_finished(), "the workload ended by itself");
            std::thread::yield_now();
        }
    }

    /// Stops it, and gives the names of the commands that the server refused.
    pub(crate) fn stop(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}

fn split(lines: &str, round: u64) -> Vec<Vec<String>> {
    let fill = |word: &str| {
        let word = word.replace("{n}", &(round % 50).to_string()).replace("{r}", &round.to_string());
        word.replace("{_}", " ")
    };
    let now_ms = SystemClock::new().now().as_millisecond();
    let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty());
    let word = |word: &str| {
        let soon = |after: i64| (now_ms + after).to_string();
        fill(word).replace("{past}", &soon(-5000)).replace("{soon}", &soon(30)).replace("{later}", &soon(900))
    };
    lines.map(|line| line.split_whitespace().map(word).collect()).collect()
}

fn commands(round: u64) -> Vec<Vec<String>> {
    let mut commands = split(
        "SELECT 0
         SET s:{n} value-{r}
         APPEND s:{n} more
         SETRANGE s:{n} 40 {r}
         INCRBYFLOAT f:{n} 1.5
         BITFIELD b:{n} SET u8 #3 {n} INCRBY i16 #9 7
         MULTI
         INCR in-transaction
         SET t:{n} {r}
         SELECT 2
         RPUSH l:{n} a b c
         EXEC
         SELECT 0
         MULTI
         INCR given-up
         DISCARD
         EVAL redis.call('SET',KEYS[1],ARGV[1]);return{_}redis.call('INCR',KEYS[2]) 2 script:{n} scripts {r}
         SADD set:{n} a b c d e f {r}
         SPOP set:{n} 2
         SPOP set:{n}
         SMOVE set:{n} set:other {r}
         SADD one:{n} x
         SPOP one:{n} 5
         XADD x:{n} * field {r}
         XADD x:{n} MAXLEN ~ 20 * field {r} other value
         XGROUP CREATE x:{n} group $ MKSTREAM
         XADD x:{n} * late {r}
         XREADGROUP GROUP group reader COUNT 2 STREAMS x:{n} >
         XREADGROUP GROUP group nobody COUNT 0 STREAMS x:{n} 0
         XAUTOCLAIM x:{n} group other 0 0 COUNT 1
         XACK x:{n} group 0-1
         XTRIM x:{n} MAXLEN 15
         LPUSH list:{n} {r} y z
         LMOVE list:{n} list:moved LEFT RIGHT
         LMPOP 1 list:{n} LEFT COUNT 1
         LTRIM list:moved -100 -1
         ZADD z:{n} 1 a 2 b 3.25 c {r} d
         ZINCRBY z:{n} 0.1 a
         ZPOPMIN z:{n}
         ZRANGESTORE z:copy z:{n} 0 -1
         GEOADD geo:{n} 13.36 38.11 palermo 15.08 37.5 catania
         GEOSEARCHSTORE geo:copy geo:{n} FROMLONLAT 15 37 BYRADIUS 200 km ASC
         HSET h:{n} a 1 b {r}
         HINCRBY h:{n} a 2
         HINCRBYFLOAT h:{n} f 2.5
         HDEL h:{n} b
         PFADD hll:{n} {r}
         PFMERGE hll:all hll:{n}
         COPY s:{n} copy:{n} REPLACE
         COPY h:{n} h:{n} DB 1 REPLACE
         RENAME copy:{n} renamed:{n}
         MOVE renamed:{n} 3
         SORT l:0 ALPHA STORE sorted
         GETDEL t:{n}
         PUBLISH channel message-{r}
         SPUBLISH channel message-{r}
         WAIT 1 1
         SELECT 5
         SET flushed:{n} {r}
         SELECT 0
         SET big:{n} {big}
         UNLINK big:{n}",
        round,
    );
    for word in commands.iter_mut().flatten().filter(|word| *word == "{big}") {
        *word = "0123456789abcdef".repeat(1000 + usize::try_from(round % 7).unwrap() * 500);
    }
    if round % 20 == 3 {
        commands.extend(split("SELECT 5\nFLUSHDB ASYNC\nSELECT 0\nSWAPDB 1 2", round));
        let library =
            format!("#!lua name=mine\nredis.register_function('f{round}',function() return {round} end)");
        commands.push(vec!["FUNCTION".into(), "LOAD".into(), "REPLACE".into(), library]);
    }
    if round % 20 == 13 {
        commands.extend(split("SWAPDB 2 7\nFUNCTION DELETE mine\nSCRIPT FLUSH", round));
    }
    commands
}

/// The same round of numbers comes again later: what has expired by then is written to once more.
fn commands_with_expiry(round: u64) -> Vec<Vec<String>> {
    split(
        "SELECT 0
         INCR e:counter:{n}
         PEXPIRE e:counter:{n} 5
         APPEND e:text:{n} x{r}
         PEXPIREAT e:text:{n} {later}
         SET e:px:{n} {r} PX 20
         SET e:ex:{n} {r} EX 1
         SETEX e:setex:{n} 100 {r}
         PSETEX e:psetex:{n} 40 {r}
         SET e:keep:{n} {r} KEEPTTL
         GETEX e:keep:{n} PX 300
         SET e:gone:{n} {r}
         EXPIRE e:gone:{n} -1
         SET e:past:{n} {r}
         PEXPIREAT e:past:{n} {past}
         SET e:persist:{n} {r} PX 500
         PERSIST e:persist:{n}
         HSET e:hash:{n} a {r} b {r} c {r}
         HPEXPIRE e:hash:{n} 15 FIELDS 1 a
         HEXPIRE e:hash:{n} 100 FIELDS 1 b
         HPEXPIREAT e:hash:{n} {later} FIELDS 1 c
         HPERSIST e:hash:{n} FIELDS 1 b
         HINCRBY e:hash:{n} a 1
         HSETEX e:hash2:{n} PX 60 FIELDS 2 q 1 r {r}
         HGETEX e:hash2:{n} PX 40 FIELDS 1 r
         HSET e:hash3:{n} only {r}
         HPEXPIRE e:hash3:{n} 8 FIELDS 1 only
         EXPIRE e:hash:{n} 90 NX
         SADD e:set:{n} {r}
         PEXPIREAT e:set:{n} {soon}
         EVAL redis.call('SET',KEYS[1],1,'PX',25);redis.call('HSET',KEYS[2],'a',1);redis.call('PEXPIRE',KEYS[2],30);return{_}1 2 e:script:{n} e:script-hash:{n}",
        round,
    )
}
