//! The verdict, from outside: every point of the API's semantics by name, Kubernetes' own e2e table, and a second
//! evaluator to compare with.

mod allocations;
mod compare;
mod conformance;
mod cost;
mod drops;
mod hint_yaml;
mod hints;
mod hints_services;
mod large;
mod mk;
mod nearest;
mod oracle;
mod random;
mod semantics;
mod suggest;
mod verdict_cache;
