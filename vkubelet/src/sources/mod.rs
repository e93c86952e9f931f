//! Where pods come from.

pub mod kubernetes;
