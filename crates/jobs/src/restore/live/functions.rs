//! Function libraries: what the backup holds, what the target holds, loading them on every primary.

use std::collections::BTreeMap;

use slotkeep_format::Manifest;
use slotkeep_model::NodeAddr;
use slotkeep_rdb::Event;
use slotkeep_repo::Repository;
use slotkeep_wire::resp::Command;

use super::options::OnConflict;
use super::source::{Source, damaged};
use super::tracker::Position;
use crate::{Context, Error, ErrorKind, Result};

/// A library: its source, with the `#!engine name=…` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Library {
    pub(super) name: String,
    pub(super) source: Vec<u8>,
}

/// The libraries of a backup. Every shard has all of them; where shards differ, the first one counts.
pub(super) async fn of_backup(repository: &Repository, manifest: &Manifest) -> Result<Vec<Library>> {
    let mut libraries: BTreeMap<String, Library> = BTreeMap::new();
    for shard in &manifest.shards {
        if shard.base.functions == Some(0) {
            continue;
        }
        let mut source = Source::open(repository, &shard.base, Position::default()).await?;
        let path = source.path().to_owned();
        'reading: while let Some(bytes) = source.next_bytes().await? {
            let mut input = bytes.as_slice();
            while let Some(event) = source.parser.next(&mut input).map_err(|error| damaged(&path, &error))? {
                match event {
                    Event::Function { source } => {
                        let name = name_of(source);
                        let library = Library { name: name.clone(), source: source.to_vec() };
                        libraries.entry(name).or_insert(library);
                    }
                    // Libraries stand before the keys.
                    Event::SelectDb(_) | Event::Key(_) => break 'reading,
                    _ => {}
                }
            }
        }
    }
    Ok(libraries.into_values().collect())
}

/// The name in a library's first line, as in `#!lua name=mylib`.
fn name_of(source: &[u8]) -> String {
    let line = source.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let name = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("name="));
    name.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
}

/// What is to be loaded on one node.
pub(super) struct Loading {
    pub(super) node: NodeAddr,
    pub(super) libraries: Vec<Library>,
}

/// Compares the backup's libraries with those of each node; an error if the policy does not allow a difference.
pub(super) async fn compare(
    context: &Context,
    nodes: &[NodeAddr],
    libraries: &[Library],
    on_conflict: OnConflict,
) -> Result<Vec<Loading>> {
    let mut loadings = Vec::new();
    if libraries.is_empty() {
        return Ok(loadings);
    }
    for node in nodes {
        let there = of_node(context, node).await?;
        let mut wanted = Vec::new();
        for library in libraries {
            match there.get(&library.name) {
                Some(source) if *source == library.source => {}
                None => wanted.push(library.clone()),
                Some(_) => match on_conflict {
                    OnConflict::Replace => wanted.push(library.clone()),
                    OnConflict::Skip => {}
                    OnConflict::Fail => {
                        let what = format!(
                            "{node} holds another version of the function library `{}`",
                            library.name
                        );
                        return Err(Error::new(ErrorKind::Conflict, what).hint(
                            "delete it there (FUNCTION DELETE), or use --on-conflict skip or replace",
                        ));
                    }
                },
            }
        }
        loadings.push(Loading { node: node.clone(), libraries: wanted });
    }
    Ok(loadings)
}

async fn of_node(context: &Context, node: &NodeAddr) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut connection = context.connector.connect(node).await?;
    let reply = connection.call(&Command::new("FUNCTION").arg("LIST").arg("WITHCODE")).await?;
    let rows = reply.as_array().unwrap_or_default();
    let library = |row: &slotkeep_wire::resp::Value| {
        let name = row.get("library_name")?.as_text()?.to_owned();
        Some((name, row.get("library_code")?.as_bytes()?.to_vec()))
    };
    Ok(rows.iter().filter_map(library).collect())
}

/// Loads libraries; how many different ones that were.
pub(super) async fn load(context: &Context, loadings: &[Loading]) -> Result<u64> {
    let mut names = std::collections::BTreeSet::new();
    for loading in loadings.iter().filter(|loading| !loading.libraries.is_empty()) {
        let mut connection = context.connector.connect(&loading.node).await?;
        for library in &loading.libraries {
            let command = Command::new("FUNCTION").arg("LOAD").arg("REPLACE").arg(&library.source);
            let loaded = connection.call(&command).await.map_err(Error::from);
            loaded
                .map_err(|error| error.context(format!("loading the function library `{}`", library.name)))?;
            names.insert(library.name.clone());
        }
    }
    Ok(names.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_libraries_stand_in_their_first_line() {
        assert_eq!(name_of(b"#!lua name=mylib\nreturn 1"), "mylib");
        assert_eq!(name_of(b"#!lua   name='my'\n"), "my");
        assert_eq!(name_of(b""), "");
    }
}
