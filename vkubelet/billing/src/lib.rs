//! The billing ledger: usage records in, bills out.
//!
//! ```text
//! usage records ──> store (ingest: chain checked, de-duplicated, atomically with the cursor)
//!                     │ intervals
//!                     v
//!                   bill (pure: union of half-open intervals, rounded up once per pod) <── price plan
//!                     │                                                    ^ live figures of open intervals
//!                     v                                                    │
//!                   api: GET /v1/records, GET /v1/pods/{uid}, GET /v1/verify, GET /openapi.json
//! ```
//!
//! * [`store`]: where records are kept, a trait with one implementation so far, [`store::sqlite`].
//! * [`bill`]: from intervals to one pod's bill; knows no I/O.
//! * [`price`]: money as integers, and the price plan.
//! * [`live`]: who can tell how an open interval stands at this nanosecond.
//! * [`api`]: the HTTP interface, its authorisation and its OpenAPI document.
//!
//! Delivery of records is at least once; the key (host, boot id, sequence) makes storage effectively once. Durations come from
//! CLOCK_BOOTTIME only, wall time is a label. This crate knows neither Kubernetes nor how records travel.

pub mod api;
pub mod bill;
pub mod live;
pub mod price;
pub mod store;
#[cfg(test)]
mod testing;
