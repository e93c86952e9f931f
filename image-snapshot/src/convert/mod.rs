//! A layer's tar, and the layers below it, to one EROFS file.

mod error;
mod limits;

pub use error::ConvertError;
pub use limits::Limits;
