//! Compares both evaluators on a million random queries: `cargo bench -p netpol-trace --bench oracle`. Exits 1 on a difference.

#[path = "../tests/verdict/mk.rs"]
mod mk;
#[path = "../tests/verdict/oracle.rs"]
mod oracle;
#[path = "../tests/verdict/random.rs"]
mod random;

use std::process::ExitCode;

use netpol_trace::policy;
use netpol_trace::policy::{CniOptions, PolicyResult};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

const QUERIES: u64 = 1_000_000;
const QUERIES_A_CLUSTER: usize = 200;

fn main() -> ExitCode {
    // A new seed each time: every run makes other queries.
    let mut runner = TestRunner::new(Default::default());
    let questions = random::questions(QUERIES_A_CLUSTER);
    let (mut evaluated, mut allowed, mut denied, mut differences) = (0, 0, 0, 0);
    while evaluated < QUERIES {
        let (world, queries) = questions.new_tree(&mut runner).expect("no filter rejects").current();
        let index = world.index();
        for query in &queries {
            let result = policy::evaluate(&index, &world.connection(&index, query), &CniOptions::default()).result();
            let expected = oracle::allows(&world, query);
            let agrees = match result {
                PolicyResult::Allowed(_) => expected,
                PolicyResult::Denied => !expected,
                PolicyResult::Undetermined(_) => false,
            };
            if !agrees {
                differences += 1;
                println!("{result:?}, not allowed={expected}: {query:?} in {world:#?}");
            }
            evaluated += 1;
            *if expected { &mut allowed } else { &mut denied } += 1;
        }
    }
    println!("{evaluated} queries, {allowed} allowed, {denied} denied: {differences} differences");
    if differences == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
