//! `slotkeep show`

use clap::Args;
use slotkeep_format::Manifest;
use slotkeep_format::manifest::{CrcRecord, ReadSource};
use slotkeep_jobs::Result;
use slotkeep_repo::BackupSelector;

use super::backup::{cut_text, kind_and_source, read_text, summary};
use crate::args::RepoArgs;
use crate::exit;
use crate::output::Output;
use crate::session::Session;

/// Show one backup in detail
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    repo: RepoArgs,
    /// The backup: its id, the beginning of its id, or `latest`
    #[arg(default_value = "latest")]
    backup: String,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &ShowArgs) -> Result<u8> {
    let (repository, name) = session.repository(&arguments.repo).await?;
    let Ok(selector) = arguments.backup.parse::<BackupSelector>();
    let manifest = repository.find(&name, &selector).await?;
    output.data(&manifest, render)?;
    if !repository.is_readable() {
        output.note("Settings and users are encrypted: give --identity to see them.");
    }
    Ok(exit::OK)
}

fn render(manifest: &Manifest) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        text.push_str(&format!("{name:<12}{value}\n"));
    };
    line("backup", manifest.id.clone());
    line("cluster", manifest.cluster.clone());
    line("started", manifest.started_at.to_string());
    line("finished", manifest.finished_at.to_string());
    line("slotkeep", manifest.slotkeep_version.clone());
    line("kind", kind_and_source(manifest));
    if let Some(cut) = &manifest.cut {
        line("cut", cut_text(cut));
        if let Some(reason) = &cut.fell_back {
            line("NOTE", format!("no barrier: {reason}"));
        }
    }
    if manifest.partial {
        line("PARTIAL", format!("lacks slots {}", manifest.missing_slots));
    }
    if let Some(digest) = manifest.digest {
        line("digest", format!("{:032x} over {} keys", digest.sum, digest.keys));
    }
    for shard in &manifest.shards {
        text.push_str(&format!("\nshard {}\n", shard.slots));
        let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<10}{value}\n"));
        let id =
            |id: &Option<slotkeep_model::NodeId>| id.as_ref().map(|id| format!(" {id}")).unwrap_or_default();
        line("primary", format!("{}{}", shard.primary.addr, id(&shard.primary.id)));
        for replica in &shard.replicas {
            line("replica", format!("{}{}", replica.addr, id(&replica.id)));
        }
        line("taken", format!("from {}", shard.source));
        if let Some(read) = &shard.read {
            line("read", read_text(read));
            if read.without_functions {
                line("NOTE", "function libraries were left out".to_owned());
            }
        }
        if let Some(aof) = shard.aof() {
            let cut = shard.cut();
            line("history", format!("{}, of this append-only file alone: {}", cut.history, aof.base.file));
            line("log", format!("{} bytes, up to byte {} of {}", cut.offset, aof.end.bytes, aof.end.file));
        } else if shard.is_anchored() {
            line("history", format!("{} up to offset {}", shard.history, shard.offset));
        } else {
            line("history", "none: it stands at no offset, and no log can go on behind it".to_owned());
        }
        if let Some(cut) = shard.cut.as_ref().filter(|_| shard.aof().is_none()) {
            line("log", format!("{} up to offset {}", cut.history, cut.offset));
        }
        if let Some(time) = shard.server_time {
            line("time", format!("{time} by the server's clock"));
        }
        let by_key = shard.read.as_ref().is_some_and(|read| read.source == ReadSource::Scan);
        let crc = match shard.base.crc64 {
            CrcRecord::Verified if by_key => "the server's CRC64 of every value was right",
            CrcRecord::Verified => "the server's CRC64 was right",
            CrcRecord::NotComputed => "the server computed no CRC64",
        };
        line("RDB", format!("{}, {crc}", shard.base.rdb_version));
        line(
            "functions",
            shard.base.functions.map_or_else(|| "?".to_owned(), |count| format!("{count} libraries")),
        );
        if let Some(reason) = &shard.base.not_interpreted {
            line("NOTE", format!("stored whole, not understood: {reason}"));
        }
    }
    for settings in &manifest.settings {
        text.push_str(&format!("\nsettings of {}\n", settings.nodes.join(", ")));
        for (name, value) in &settings.config {
            text.push_str(&format!("  {name} {value}\n"));
        }
        for (module, version) in &settings.modules {
            text.push_str(&format!("  module {module} {version}\n"));
        }
        for user in &settings.acl {
            text.push_str(&format!("  {user}\n"));
        }
        for reason in &settings.unreadable {
            text.push_str(&format!("  NOT READ: {reason}\n"));
        }
    }
    text.push('\n');
    text.push_str(&summary(manifest));
    text
}
