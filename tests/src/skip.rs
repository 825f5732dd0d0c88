//! Skips a test whose requirement this machine does not meet.
//!
//! [`require!`](crate::require) prints `TEST: skipped: REASON` past the test harness's capture. `cargo xtask test` counts these lines,
//! and fails on a skip that `xtask/src/skips/list.rs` does not list. netpol-trace includes this file for its unit tests.

use std::fmt;
use std::io::Write;

/// A requirement that this machine does not meet: what is missing, and where to get it.
#[derive(Debug)]
pub struct Missing(String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// An error that makes [`require!`](crate::require) skip the test.
pub fn missing(what: impl fmt::Display) -> anyhow::Error {
    Missing(what.to_string().replace('\n', "; ")).into()
}

/// What a test returns.
pub trait TestResult {
    fn skipped() -> Self;
    fn failed(error: anyhow::Error) -> Self;
}

impl TestResult for () {
    fn skipped() {}

    fn failed(error: anyhow::Error) {
        panic!("{error:?}");
    }
}

impl TestResult for anyhow::Result<()> {
    fn skipped() -> Self {
        Ok(())
    }

    fn failed(error: anyhow::Error) -> Self {
        Err(error)
    }
}

/// Ends a test after an error: as skipped, with the reason printed, if the error is a [`Missing`].
pub fn end<T: TestResult>(test: &str, error: anyhow::Error) -> T {
    let Some(missing) = error.downcast_ref::<Missing>() else { return T::failed(error) };
    // A closed stderr is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{test}: skipped: {missing}");
    T::skipped()
}

/// The test's name from the type of a function inside of it: `lab::tc::each_hook_works_alone`.
pub fn name_of<F>(_: F) -> &'static str {
    let path = std::any::type_name::<F>();
    let inside = path.strip_suffix("::here").unwrap_or(path);
    let name = inside.split("::{{closure}}").next().unwrap_or(inside);
    // The harness names a test's thread after the test, without the program. With one thread it runs tests in `main`.
    let thread = std::thread::current();
    if let Some(thread) = thread.name().filter(|thread| *thread != "main") {
        let test = name.split_once("::").map_or(name, |(_, test)| test);
        assert_eq!(test, thread, "`require!` and `test_name!` are called by the test itself, not by what it calls");
    }
    name
}

/// The name of the test that this is written in, with the test program's.
#[macro_export]
macro_rules! test_name {
    () => {{
        fn here() {}
        $crate::skip::name_of(here)
    }};
}

/// The value of a `Result`. A [`Missing`] requirement skips the test; another error fails it.
#[macro_export]
macro_rules! require {
    ($requirement:expr) => {{
        let test = $crate::test_name!();
        match $requirement {
            Ok(value) => value,
            Err(error) => return $crate::skip::end(test, error),
        }
    }};
}
