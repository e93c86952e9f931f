//! The agent of one host.

fn main() {}
