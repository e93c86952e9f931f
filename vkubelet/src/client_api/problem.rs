//! Errors as RFC 9457 problem documents.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::pod::access::AccessError;
use crate::ports::PortError;

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// The status in words.
    pub title: String,
    /// What happened and what to do.
    pub detail: String,
}

impl Problem {
    /// With this status.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or_default().to_owned();
        Self { status: status.as_u16(), title, detail: detail.into() }
    }

    /// It does not exist: an answer.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// The request makes no sense.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// A host did not answer, or answered with an error of its own.
    pub fn of_host(host: &str, status: &tonic::Status) -> Self {
        let code = match status.code() {
            tonic::Code::NotFound => StatusCode::NOT_FOUND,
            tonic::Code::InvalidArgument => StatusCode::BAD_REQUEST,
            tonic::Code::FailedPrecondition => StatusCode::CONFLICT,
            _ => StatusCode::BAD_GATEWAY,
        };
        Self::new(code, format!("host {host}: {}", status.message()))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

impl From<AccessError> for Problem {
    fn from(error: AccessError) -> Self {
        let status = match &error {
            AccessError::NotFound(_) => StatusCode::NOT_FOUND,
            AccessError::WrongState(_) => StatusCode::CONFLICT,
            AccessError::CouldNotAsk(_) => StatusCode::BAD_GATEWAY,
        };
        Self::new(status, error.to_string())
    }
}

impl From<PortError> for Problem {
    fn from(error: PortError) -> Self {
        let status = match &error {
            PortError::CouldNotAsk { .. } => StatusCode::BAD_GATEWAY,
            PortError::Denied { .. } => StatusCode::FORBIDDEN,
            PortError::Unsupported { .. } => StatusCode::NOT_IMPLEMENTED,
            PortError::Stale { .. } => StatusCode::NOT_FOUND,
            PortError::Invalid { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            PortError::AlreadyExists { .. } => StatusCode::CONFLICT,
        };
        let mut detail = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            detail = format!("{detail}: {inner}");
            cause = inner.source();
        }
        Self::new(status, detail)
    }
}
