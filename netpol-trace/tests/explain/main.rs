//! `netpol-trace explain` as a person runs it: the policies of the classic articles, the demo's two namespaces, bad
//! input, and many queries at once.

mod articles;
mod bad_input;
mod demo;
mod queries;
mod run;
