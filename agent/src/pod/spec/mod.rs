//! From a Pod, an image and the values behind references to what a sandbox is told. Pure.

pub mod resources;
