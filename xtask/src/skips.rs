//! Decides which tests may be skipped on which machine. Any other skip fails the run.

mod facts;
mod list;

use std::collections::BTreeSet;

pub use facts::{Fact, Machine};
use list::LIST;

/// The file that lists the skips that are allowed.
const FILE: &str = "xtask/src/skips/list.rs";

/// A test or a step that was skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    /// As `require!` prints it: `lab::rows::netkit::netkit_to_a_pod`. A step has its own name.
    pub name: String,
    pub reason: String,
}

/// Tests that may be skipped on every machine for which a fact holds.
pub struct Allowed {
    pub on: Fact,
    /// What such a machine lacks.
    pub because: &'static str,
    /// Names. One that ends with `*` stands for every name with that beginning.
    pub tests: &'static [&'static str],
}

impl Allowed {
    fn has(&self, name: &str) -> bool {
        self.tests.iter().any(|test| match test.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => *test == name,
        })
    }
}

/// What the skips of one step come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Skips on the list, with the list's reason added to each.
    pub listed: Vec<Skip>,
    /// One message for each skip that is not on the list. Each is a failure.
    pub unlisted: Vec<String>,
    /// One note for each listed test that ran.
    pub stale: Vec<String>,
}

/// Compares a step's skips, and the tests that ran, with the list.
pub fn check(machine: &Machine, skips: &[Skip], ran: &BTreeSet<String>) -> Checked {
    check_against(LIST, machine, skips, ran)
}

fn check_against(list: &[Allowed], machine: &Machine, skips: &[Skip], ran: &BTreeSet<String>) -> Checked {
    let (mut listed, mut unlisted) = (Vec::new(), Vec::new());
    for Skip { name, reason } in skips {
        match list.iter().find(|entry| entry.has(name) && machine.is(entry.on)) {
            Some(entry) => listed
                .push(Skip { name: name.clone(), reason: format!("{reason} ({}: {})", entry.on, entry.because) }),
            None => unlisted.push(format!(
                "unlisted skip: {name}: {reason}\n  To do: give this machine what is missing. Where a machine can't have it, \
                 add the test to {FILE}, below a fact that holds for such machines."
            )),
        }
    }
    let exact = list.iter().flat_map(|entry| entry.tests.iter().map(move |test| (entry, *test)));
    let stale = exact.filter(|(entry, test)| {
        ran.contains(*test) && !skips.iter().any(|skip| skip.name == *test) && machine.is(entry.on)
    });
    Checked {
        listed,
        unlisted,
        stale: stale
            .map(|(entry, test)| format!("{test} ran, but {FILE} lets it skip on a machine with: {}", entry.on))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine;

    const SOME: &[Allowed] = &[
        Allowed { on: Fact::LinuxBefore(6, 7), because: "no netkit", tests: &["lab::rows::netkit::to_a_pod"] },
        Allowed { on: Fact::LinuxBefore(5, 17), because: "no drop reasons", tests: &["lab::rows::others::*"] },
    ];

    fn skip(name: &str) -> Skip {
        Skip { name: name.to_owned(), reason: "the reason".to_owned() }
    }

    fn checked(machine: &Machine, skips: &[&str], ran: &[&str]) -> Checked {
        let skips: Vec<Skip> = skips.iter().map(|name| skip(name)).collect();
        check_against(SOME, machine, &skips, &ran.iter().map(|name| (*name).to_owned()).collect())
    }

    const OLD: Machine = Machine::Vm { linux: (6, 1), fresh: false };
    const NEW: Machine = Machine::Vm { linux: (6, 12), fresh: false };

    #[test]
    fn a_listed_skip_passes_where_its_fact_holds() {
        let older = Machine::Vm { linux: (5, 10), fresh: false };
        for (machine, test) in [(&OLD, "lab::rows::netkit::to_a_pod"), (&older, "lab::rows::others::hop_limit")] {
            let Checked { listed, unlisted, stale } = checked(machine, &[test], &[]);
            assert_eq!((listed.len(), unlisted, stale), (1, vec![], vec![]), "{test}");
        }
    }

    #[test]
    fn an_unlisted_skip_fails_and_says_what_to_do() {
        let Checked { listed, unlisted, stale } = checked(&OLD, &["lab::tc::each_hook_works_alone"], &[]);
        let [message] = &unlisted[..] else { panic!("{unlisted:?}") };
        for part in ["lab::tc::each_hook_works_alone", "the reason", FILE] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!((listed, stale), (vec![], vec![]));
    }

    #[test]
    fn a_listed_skip_fails_where_its_fact_does_not_hold() {
        assert_eq!(checked(&NEW, &["lab::rows::netkit::to_a_pod"], &[]).unlisted.len(), 1);
    }

    #[test]
    fn a_listed_test_that_runs_is_a_note() {
        let Checked { unlisted, stale, .. } = checked(&OLD, &[], &["lab::rows::netkit::to_a_pod"]);
        assert_eq!((unlisted.len(), stale.len()), (0, 1));
        // Where the fact does not hold, the test is meant to run.
        assert_eq!(checked(&NEW, &[], &["lab::rows::netkit::to_a_pod"]), Checked::default());
    }

    /// A renamed test would stay on the list and never match again.
    #[test]
    fn every_listed_test_is_in_the_tree() {
        for name in LIST.iter().flat_map(|entry| entry.tests).filter(|name| name.contains("::")) {
            let (module, test) = name.rsplit_once("::").unwrap();
            let folder = if name.starts_with("netpol_trace") { "netpol-trace/src" } else { "tests" };
            let module = module.trim_start_matches("netpol_trace::").replace("::", "/");
            let files = [format!("{folder}/{module}.rs"), format!("{folder}/{module}/main.rs")];
            let text = files.iter().find_map(|file| std::fs::read_to_string(machine::root().join(file)).ok());
            let text = text.unwrap_or_else(|| panic!("{FILE} lists {name}, and there is none of {files:?}"));
            assert!(test == "*" || text.contains(test), "{FILE} lists {name}, which its file does not have");
        }
    }
}
