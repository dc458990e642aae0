//! Which server is to be the engine.

use std::path::{Path, PathBuf};

use slotkeep_model::{Product, RdbVersion, ServerVersion};

use crate::stock_server::StockServer;
use crate::{Error, ErrorKind, Result};

/// What the user may say about engines.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The server to use; one from the `PATH` if not given.
    pub program: Option<PathBuf>,
    /// Modules to load, whose values the base holds.
    pub modules: Vec<PathBuf>,
    /// Where its folder is made; the system's folder for temporary files if not given. Little is written there.
    pub folder: Option<PathBuf>,
    /// How many databases it has: more than the highest number in the base and the log.
    pub databases: u32,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { program: None, modules: Vec::new(), folder: None, databases: 1024 }
    }
}

/// What an engine has to be able to do.
#[derive(Clone, Copy, Debug)]
pub struct EngineNeeds {
    /// The format of the base.
    pub rdb: RdbVersion,
    /// The server that the base and the log came from, if that is known.
    pub source: Option<ServerVersion>,
}

impl EngineNeeds {
    /// Whether that server can load the base and knows every command that the source knew.
    pub fn are_met_by(&self, engine: ServerVersion) -> bool {
        let knows_commands = self.source.is_none_or(|source| {
            if engine.product == source.product {
                (engine.major, engine.minor) >= (source.major, source.minor)
            } else {
                // Valkey began as Redis 7.2; each has had commands of its own since.
                engine.product == Product::Valkey && (source.major, source.minor) <= (7, 2)
            }
        });
        engine.loads(self.rdb) && knows_commands
    }

    /// How little changes with that engine: the smaller, the better. What it writes must go back to where the base came from.
    fn distance(&self, engine: ServerVersion) -> (bool, bool, ServerVersion) {
        let same_line = self.source.is_some_and(|source| {
            (source.product, source.major, source.minor) == (engine.product, engine.major, engine.minor)
        });
        (!same_line, engine.newest_rdb() != self.rdb, engine)
    }

    fn in_words(&self) -> String {
        match self.source {
            Some(source) if source.product == Product::Redis && (source.major, source.minor) <= (7, 2) => {
                format!("{source} or a newer Redis, or a Valkey")
            }
            Some(source) => format!("{source} or a newer {}", source.product),
            None => format!("a server that loads {}", self.rdb),
        }
    }
}

/// The server to use: the one that was named, else the one on the `PATH` that is closest to the source.
pub async fn choose_engine(options: &EngineOptions, needs: &EngineNeeds) -> Result<StockServer> {
    if let Some(program) = &options.program {
        let server = StockServer::at(program).await.map_err(|error| error.context("the engine"))?;
        if needs.are_met_by(server.version) {
            return Ok(server);
        }
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} is {}, which can't be the engine for a base in the format {}{}",
                program.display(),
                server.version,
                needs.rdb,
                needs.source.map(|source| format!(" of {source}")).unwrap_or_default()
            ),
        )
        .hint(format!("name {} with --engine PATH", needs.in_words())));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = Vec::new();
    for program in programs(&path) {
        // What does not run is no server.
        if let Ok(server) = StockServer::at(&program).await {
            found.push(server);
        }
    }
    let refused: Vec<String> =
        found.iter().map(|server| format!("{} ({})", server.program.display(), server.version)).collect();
    let fit = found.into_iter().filter(|server| needs.are_met_by(server.version));
    fit.min_by_key(|server| needs.distance(server.version)).ok_or_else(|| {
        let there =
            if refused.is_empty() { "no server".to_owned() } else { format!("only {}", refused.join(", ")) };
        Error::new(
            ErrorKind::Unsupported,
            format!("a log is applied by a server, and none on the PATH will do: there is {there}"),
        )
        .hint(format!("install {}, or name one with --engine PATH", needs.in_words()))
    })
}

/// The server programs in the folders of a `PATH`.
fn programs(path: &std::ffi::OsStr) -> Vec<PathBuf> {
    let folders: Vec<PathBuf> = std::env::split_paths(path).collect();
    let in_folder = |folder: &Path| ["redis-server", "valkey-server"].map(|name| folder.join(name));
    folders.iter().flat_map(|folder| in_folder(folder)).filter(|program| program.is_file()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> ServerVersion {
        let (product, version) = text.split_once(' ').unwrap();
        let product = if product == "Redis" { Product::Redis } else { Product::Valkey };
        ServerVersion::parse(product, version).unwrap()
    }

    fn needs(rdb: &str, source: &str) -> EngineNeeds {
        EngineNeeds { rdb: rdb.parse().unwrap(), source: Some(server(source)) }
    }

    #[test]
    fn an_engine_is_not_older_than_the_source_and_loads_its_base() {
        let redis_7_0 = needs("REDIS0010", "Redis 7.0.15");
        for (engine, will_do) in [
            ("Redis 6.2.14", false),
            ("Redis 7.0.1", true),
            ("Redis 8.2.3", true),
            ("Valkey 7.2.5", true),
            ("Valkey 9.1.2", true),
        ] {
            assert_eq!(redis_7_0.are_met_by(server(engine)), will_do, "{engine}");
        }
        // Valkey 8 writes what Redis 7.2 loads, but Redis does not know its commands.
        assert!(!needs("REDIS0011", "Valkey 8.1.1").are_met_by(server("Redis 8.2.3")));
        assert!(!needs("REDIS0012", "Redis 8.2.3").are_met_by(server("Valkey 9.1.2")));
        assert!(!needs("REDIS0011", "Redis 7.4.0").are_met_by(server("Valkey 9.1.2")));
        assert!(
            EngineNeeds { rdb: "REDIS0009".parse().unwrap(), source: None }.are_met_by(server("Redis 6.2.0"))
        );
    }

    #[test]
    fn the_closest_engine_is_the_best() {
        let needs = needs("REDIS0010", "Redis 7.0.15");
        let best = ["Redis 8.2.3", "Valkey 9.1.2", "Redis 7.0.2", "Redis 7.2.4"]
            .map(server)
            .into_iter()
            .min_by_key(|engine| needs.distance(*engine));
        assert_eq!(best, Some(server("Redis 7.0.2")));
    }
}
