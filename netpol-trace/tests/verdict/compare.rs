//! The two evaluators agree on random clusters. `cargo bench --bench oracle` compares a million connections.

use netpol_trace::model::VerdictResult;
use netpol_trace::policy;
use netpol_trace::policy::CniOptions;
use proptest::prelude::*;

use crate::{oracle, random};

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn both_evaluators_agree((world, queries) in random::questions(40)) {
        let index = world.index();
        for query in &queries {
            let verdict = policy::verdict_of(&index, &world.connection(&index, query), &CniOptions::default());
            for (direction, side) in [("egress", &verdict.egress), ("ingress", &verdict.ingress)] {
                let expected = match oracle::direction_allows(&world, query, direction) {
                    true => VerdictResult::Allowed,
                    false => VerdictResult::Denied,
                };
                prop_assert_eq!(side.result, expected, "{} of {:?}", direction, query);
                prop_assert_eq!(side.nearest.is_some(), expected == VerdictResult::Denied);
            }
            prop_assert_eq!(verdict.result == VerdictResult::Allowed, oracle::allows(&world, query));
        }
    }
}
