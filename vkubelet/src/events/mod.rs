//! Writes pod Events to the API server, off the road of the pods themselves.
//!
//! Equal events are counted in one object; a pod that produces too many is throttled; a full queue drops the newest and
//! counts it. An Event is a courtesy: no pod ever waits for one.

mod correlate;
mod writer;

pub use writer::EventWriter;
