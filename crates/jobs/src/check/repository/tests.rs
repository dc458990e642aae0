use slotkeep_repo::Problem;

use super::super::finding::Severity;
use super::*;

fn facts(state: State) -> RepositoryFacts {
    RepositoryFacts {
        location: "/srv/r".to_owned(),
        state,
        signs: Ok(()),
        forgets: false,
        unlike: None,
        probe: Ok(Probe { refuses_overwrite: true }),
        free_bytes: Some(1000),
        now: Timestamp::UNIX_EPOCH,
    }
}

fn faults(facts: RepositoryFacts, needed_bytes: u64) -> Vec<(Severity, &'static str)> {
    let found = judge(facts, needed_bytes);
    found.iter().filter(|one| one.severity > Severity::Ok).map(|one| (one.severity, one.check)).collect()
}

fn denied() -> RepoError {
    RepoError { doing: "write", on: "x".to_owned(), problem: Problem::Denied("no".to_owned()) }
}

#[test]
fn each_fault_is_found_by_its_check() {
    use Severity::{Note, Problem, Warning};
    assert_eq!(faults(facts(State::New), 1000), []);
    assert_eq!(faults(facts(State::New), 1001), [(Warning, "space")]);
    assert_eq!(faults(facts(State::Open(Ok(Listing::default()))), 0), [(Note, "last backup")]);
    assert_eq!(faults(facts(State::Open(Err(denied()))), 0), [(Problem, "backups")]);
    assert_eq!(faults(facts(State::Unusable(denied())), 9999), [(Problem, "open")]);
    let careless = RepositoryFacts { probe: Ok(Probe { refuses_overwrite: false }), ..facts(State::New) };
    assert_eq!(faults(careless, 0), [(Problem, "writable")]);
    let keyless = RepositoryFacts { signs: Err(denied()), ..facts(State::Open(Ok(Listing::default()))) };
    assert_eq!(faults(keyless, 0), [(Note, "last backup"), (Problem, "signing key")]);
    let forgetful = RepositoryFacts { forgets: true, ..facts(State::New) };
    assert_eq!(faults(forgetful, 0), [(Warning, "memory")]);
    let closed = RepositoryFacts { probe: Err(denied()), ..facts(State::New) };
    assert_eq!(faults(closed, 0), [(Problem, "writable")]);
}
