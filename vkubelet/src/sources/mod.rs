//! Where pods come from.

pub mod kubernetes;
pub mod manifest;
