//! Where a backup goes, if it goes to more than one repository: opening them, and what became of each.

use serde::Serialize;
use slotkeep_jobs::discover::Discovery;
use slotkeep_jobs::{Error, ErrorKind, Result, kinship};
use slotkeep_repo::{Companion, Location, Repository};

use crate::args::ReposArgs;
use crate::output::{Output, table, table_text};
use crate::session::Session;

/// Where a backup is to go.
pub(crate) struct Destinations {
    first: Location,
    /// The name of the cluster in all of them.
    pub(crate) name: String,
    required: Vec<Location>,
    optional: Vec<Location>,
}

/// The repositories of a backup, open.
pub(crate) struct Opened {
    /// The first, with the others as its companions.
    pub(crate) repository: Repository,
    /// Optional ones that could not be opened, and why.
    failed: Vec<(Location, String)>,
}

/// What became of one repository.
#[derive(Debug, Serialize)]
pub(crate) struct Destination {
    repository: String,
    required: bool,
    has_backup: bool,
    /// How long it alone held up the backup, in ms.
    held_up_ms: u64,
    /// Why it does not have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Destinations {
    /// What the user named.
    pub(crate) fn of(session: &Session, arguments: &ReposArgs) -> Result<Self> {
        let (first, name) = session.location(&arguments.one(arguments.repo.first()))?;
        let parse = |repo: &String| Ok(session.location(&arguments.one(Some(repo)))?.0);
        let required = arguments.repo.iter().skip(1).map(parse).collect::<Result<Vec<_>>>()?;
        let optional = arguments.repo_optional.iter().map(parse).collect::<Result<Vec<_>>>()?;
        Ok(Self { first, name, required, optional })
    }

    /// All of them, for people.
    pub(crate) fn text(&self) -> String {
        let required = std::iter::once(&self.first).chain(&self.required).map(ToString::to_string);
        let optional = self.optional.iter().map(|location| format!("{location} (optional)"));
        required.chain(optional).collect::<Vec<_>>().join(", ")
    }

    /// Opens all of them; a new folder is made a repository. An optional one that can't be opened is passed over.
    pub(crate) async fn open(
        &self,
        session: &Session,
        output: &Output,
        arguments: &ReposArgs,
    ) -> Result<Opened> {
        // Before a folder is made.
        refuse_twins(std::iter::once(&self.first).chain(&self.required).chain(&self.optional)).await?;
        let arguments_of_all = arguments.one(None);
        let open = async |location| {
            let repository = session.open_or_create(location, &arguments_of_all).await?;
            // A new backup would become the newest that is remembered, and nobody miss those that were taken away.
            if let Some(spoiled) = repository.check_newest(&self.name).await? {
                output.warn(&format!("{spoiled}; this backup does not replace it: see `slotkeep verify`"));
            }
            Ok::<_, Error>(repository)
        };
        let repository = open(&self.first).await?;
        let mut companions = Vec::new();
        for location in &self.required {
            companions.push(Companion::required(open(location).await?));
        }
        let (wait, mut failed) = (arguments.repo_optional_wait, Vec::new());
        for location in &self.optional {
            match tokio::time::timeout(wait, open(location)).await {
                Ok(Ok(repository)) => match repository.check_signs() {
                    Ok(()) => companions.push(Companion::optional(repository, wait)),
                    Err(error) => failed.push((location.clone(), error.to_string())),
                },
                Ok(Err(error)) => failed.push((location.clone(), error.to_string())),
                Err(_) => failed.push((location.clone(), "it does not answer".to_owned())),
            }
        }
        let opened = companions.iter().map(|companion| companion.repository().location());
        refuse_twins(std::iter::once(repository.location()).chain(opened)).await?;
        Ok(Opened { repository: repository.with_companions(companions), failed })
    }
}

/// Refuses places that are one: what is taken back in one of them would be deleted in the other.
async fn refuse_twins(places: impl Iterator<Item = &Location>) -> Result<()> {
    let mut seen: Vec<&Location> = Vec::new();
    for place in places {
        for earlier in &seen {
            if place.is_same_place(earlier).await {
                let what = if place == *earlier {
                    format!("{place} was given twice, as a repository for the same backup")
                } else {
                    format!("{place} and {earlier} are the same place, as repositories for the same backup")
                };
                return Err(Error::new(ErrorKind::Usage, what).hint("name each repository once"));
            }
        }
        seen.push(place);
    }
    Ok(())
}

/// Warns if a repository knows another cluster under that name.
pub(crate) async fn warn_if_unlike(
    output: &Output,
    repository: &Repository,
    name: &str,
    discovery: &Discovery,
) {
    if let Some(unlike) = kinship::unlike(repository, name, discovery).await {
        output.warn(&format!("{unlike}: {}", kinship::ADVICE));
    }
}

impl Opened {
    /// Whether every one of them is encrypted.
    pub(crate) fn are_encrypted(&self) -> bool {
        let others = self.repository.companions().iter();
        self.repository.is_encrypted() && others.clone().all(|one| one.repository().is_encrypted())
    }

    /// Says of a failure that no repository lists a backup, where there are several.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let alone = self.repository.companions().is_empty() && self.failed.is_empty();
        if alone || matches!(error.kind(), ErrorKind::PartlyStored | ErrorKind::Interrupted) {
            return error;
        }
        error.context("no repository lists a backup of this run")
    }

    /// What became of each; nothing if there is but one.
    pub(crate) fn outcome(&self) -> Vec<Destination> {
        let companions = self.repository.companions();
        if companions.is_empty() && self.failed.is_empty() {
            return Vec::new();
        }
        let first = Destination {
            repository: self.repository.location().to_string(),
            required: true,
            has_backup: true,
            held_up_ms: 0,
            why: None,
        };
        let companions = companions.iter().map(|companion| Destination {
            repository: companion.repository().location().to_string(),
            required: companion.is_required(),
            has_backup: companion.lists(),
            held_up_ms: u64::try_from(companion.held_up().as_millis()).unwrap_or(u64::MAX),
            why: companion.failure().filter(|_| !companion.lists()),
        });
        let failed = self.failed.iter().map(|(location, why)| Destination {
            repository: location.to_string(),
            required: false,
            has_backup: false,
            held_up_ms: 0,
            why: Some(why.clone()),
        });
        std::iter::once(first).chain(companions).chain(failed).collect()
    }
}

/// Warns of those that do not have the backup.
pub(crate) fn warn(output: &Output, all: &[Destination]) {
    for one in all.iter().filter(|one| !one.has_backup) {
        let why = one.why.as_deref().unwrap_or("it was given up");
        output.warn(&format!("{} does not have this backup: {why}", one.repository));
    }
}

/// A table of them; nothing if there are none.
pub(crate) fn render(all: &[Destination]) -> Option<String> {
    if all.is_empty() {
        return None;
    }
    let mut rows = table(&["repository", "", "backup"]);
    for one in all {
        let required = if one.required { "required" } else { "optional" };
        let has = if one.has_backup { "stored" } else { "MISSING" };
        rows.add_row([one.repository.as_str(), required, has]);
    }
    Some(table_text(&rows))
}
