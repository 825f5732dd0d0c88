//! Tests against the real kernel, in namespaces of their own. They need root; without it they say so and pass.

mod bad_input;
mod books;
mod config;
mod demo;
mod folds;
mod history;
mod late_modules;
mod lifecycle;
mod memory;
mod mounts;
mod packets;
mod places;
mod privileges;
mod rows;
mod tc;
mod tc_dns;
mod tc_lifecycle;
mod tc_traffic;
mod upgrade;
