//! The verdict, from outside: every point of the API's semantics by name, Kubernetes' own e2e table, and a second
//! evaluator to compare with.

mod conformance;
mod mk;
mod semantics;
