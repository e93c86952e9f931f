//! Kills at named steps: the parts of the test.
#![allow(dead_code, unreachable_pub, reason = "shared with the program that is killed")]
#![allow(clippy::unwrap_used, reason = "helpers fail as tests do")]

pub mod agent;
pub mod awake;
pub mod census;
pub mod oracle;
pub mod place;
pub mod plan;
pub mod random;
pub mod rounds;
pub mod words;
pub mod work;
