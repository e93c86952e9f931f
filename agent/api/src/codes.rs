//! The closed set of error codes that cross the wire.
//!
//! A code travels as a [`tonic::Status`]: the nearest gRPC code for generic clients, and its own name in the metadata key
//! [`METADATA_KEY`], which is what our side reads. A status without that key (made by tonic itself, or by a connection that
//! broke) is classified by its gRPC code, so that each `Status` has exactly one [`Code`].
//!
//! "Could not ask" ([`Code::is_unanswered`]) and "does not exist" ([`Code::NotFound`]) are never the same answer.

use std::fmt;

use tonic::Status;
use tonic::metadata::{MetadataValue, errors::InvalidMetadataValue};

/// Metadata key that carries the code's name.
pub const METADATA_KEY: &str = "nodeless-code";

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal => $grpc:ident, retry: $retry:literal;)*) => {
        /// Why a call failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// The name on the wire.
            pub fn name(self) -> &'static str { match self { $(Code::$variant => $name,)* } }

            /// The gRPC code that generic clients see.
            pub fn grpc(self) -> tonic::Code { match self { $(Code::$variant => tonic::Code::$grpc,)* } }

            /// Whether the same call may succeed later without anybody changing anything.
            pub fn is_retryable(self) -> bool { match self { $(Code::$variant => $retry,)* } }
        }
    };
}

codes! {
    /// The request makes no sense; the message says which field.
    InvalidArgument = "INVALID_ARGUMENT" => InvalidArgument, retry: false;
    /// What was asked for does not exist: an answer, not a failure to ask.
    NotFound = "NOT_FOUND" => NotFound, retry: false;
    /// The caller's epoch is lower than one seen before: another vkubelet has taken over.
    EpochFenced = "EPOCH_FENCED" => FailedPrecondition, retry: false;
    /// No common protocol version.
    ProtocolUnsupported = "PROTOCOL_UNSUPPORTED" => FailedPrecondition, retry: false;
    /// A complete-set sync ended early or with the wrong count; nothing was applied.
    SyncIncomplete = "SYNC_INCOMPLETE" => Aborted, retry: true;
    /// The object is in a state that does not allow this (an exec into an ended container).
    WrongState = "WRONG_STATE" => FailedPrecondition, retry: false;
    /// Known and not supported by this version or this host; the message names it.
    Unsupported = "UNSUPPORTED" => Unimplemented, retry: false;
    /// Refused by the host's policy; the message names the policy.
    PolicyRefused = "POLICY_REFUSED" => PermissionDenied, retry: false;
    /// The host lacks room: memory, disk, pods, or a limit on calls at once.
    Exhausted = "EXHAUSTED" => ResourceExhausted, retry: true;
    /// A message above the size limit.
    TooLarge = "TOO_LARGE" => ResourceExhausted, retry: false;
    /// The agent is still recovering its pods; ask again.
    NotReady = "NOT_READY" => Unavailable, retry: true;
    /// The join token is unknown, expired or used up.
    TokenRefused = "TOKEN_REFUSED" => Unauthenticated, retry: false;
    /// The host id is enrolled with another key; a re-join token is needed.
    HostEnrolled = "HOST_ENROLLED" => AlreadyExists, retry: false;
    /// An agent with this identity is connected and answers.
    HostConnected = "HOST_CONNECTED" => AlreadyExists, retry: true;
    /// The host or its certificate was revoked.
    Revoked = "REVOKED" => PermissionDenied, retry: false;
    /// The caller's certificate is not one that this side accepts.
    CertificateRefused = "CERTIFICATE_REFUSED" => Unauthenticated, retry: false;
    /// A failure on the answering side that is nobody's input; the message says what failed.
    Internal = "INTERNAL" => Internal, retry: true;
    /// What should be there was destroyed or is gone (usage records); a human must act.
    DataLoss = "DATA_LOSS" => DataLoss, retry: false;
    /// No answer: the connection is gone or was never there.
    Unavailable = "UNAVAILABLE" => Unavailable, retry: true;
    /// No answer within the deadline; whether it was done is unknown.
    DeadlineExceeded = "DEADLINE_EXCEEDED" => DeadlineExceeded, retry: true;
    /// The caller gave up.
    Cancelled = "CANCELLED" => Cancelled, retry: true;
}

impl Code {
    /// The code of a status, whoever made it.
    pub fn of(status: &Status) -> Code {
        let named = status.metadata().get(METADATA_KEY).and_then(|value| value.to_str().ok()).and_then(Code::from_name);
        named.unwrap_or_else(|| Code::from_grpc(status.code()))
    }

    /// The code with this wire name.
    pub fn from_name(name: &str) -> Option<Code> {
        Code::ALL.iter().copied().find(|code| code.name() == name)
    }

    fn from_grpc(code: tonic::Code) -> Code {
        match code {
            tonic::Code::Ok | tonic::Code::Unknown | tonic::Code::Internal => Code::Internal,
            tonic::Code::DataLoss => Code::DataLoss,
            tonic::Code::Cancelled => Code::Cancelled,
            tonic::Code::InvalidArgument => Code::InvalidArgument,
            tonic::Code::DeadlineExceeded => Code::DeadlineExceeded,
            tonic::Code::NotFound => Code::NotFound,
            tonic::Code::AlreadyExists => Code::WrongState,
            tonic::Code::PermissionDenied => Code::PolicyRefused,
            tonic::Code::ResourceExhausted => Code::Exhausted,
            tonic::Code::FailedPrecondition => Code::WrongState,
            tonic::Code::Aborted => Code::Internal,
            // tonic answers OutOfRange to a message above its decoding limit.
            tonic::Code::OutOfRange => Code::TooLarge,
            tonic::Code::Unimplemented => Code::Unsupported,
            tonic::Code::Unavailable => Code::Unavailable,
            tonic::Code::Unauthenticated => Code::CertificateRefused,
        }
    }

    /// True when the other side gave no answer, so that nothing may be concluded about the object.
    pub fn is_unanswered(self) -> bool {
        matches!(self, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::NotReady)
    }

    /// A status with this code. The message goes to people: lower case, says what failed and names the object.
    pub fn status(self, message: impl Into<String>) -> Status {
        let mut status = Status::new(self.grpc(), message);
        let value: Result<MetadataValue<_>, InvalidMetadataValue> = self.name().parse();
        if let Ok(value) = value {
            status.metadata_mut().insert(METADATA_KEY, value);
        }
        status
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Questions asked of a [`Status`].
pub trait StatusExt {
    /// Its code.
    fn error_code(&self) -> Code;
    /// See [`Code::is_retryable`].
    fn is_retryable(&self) -> bool {
        self.error_code().is_retryable()
    }
    /// The object does not exist (which is an answer).
    fn is_not_found(&self) -> bool {
        self.error_code() == Code::NotFound
    }
    /// Another vkubelet has a higher epoch.
    fn is_fenced(&self) -> bool {
        self.error_code() == Code::EpochFenced
    }
    /// See [`Code::is_unanswered`].
    fn is_unanswered(&self) -> bool {
        self.error_code().is_unanswered()
    }
}

impl StatusExt for Status {
    fn error_code(&self) -> Code {
        Code::of(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire() {
        for code in Code::ALL {
            let headers = code.status("what failed").into_http::<()>();
            let status = Status::from_header_map(headers.headers()).expect("a grpc status");
            assert_eq!(Code::of(&status), *code);
            assert_eq!(status.message(), "what failed");
            assert_eq!(Code::from_name(code.name()), Some(*code));
        }
    }

    #[test]
    fn a_status_without_our_key_has_a_code_too() {
        assert_eq!(Code::of(&Status::unavailable("gone")), Code::Unavailable);
        assert_eq!(Code::of(&Status::not_found("pod")), Code::NotFound);
        assert!(Status::unavailable("gone").is_unanswered());
        assert!(!Status::not_found("pod").is_unanswered());
    }

    #[test]
    fn an_unknown_name_from_a_newer_peer_falls_back_to_the_grpc_code() {
        let mut status = Status::not_found("pod");
        status.metadata_mut().insert(METADATA_KEY, "SOMETHING_NEWER".parse().expect("ascii"));
        assert_eq!(Code::of(&status), Code::NotFound);
    }

    #[test]
    fn being_fenced_is_never_retried() {
        let status = Code::EpochFenced.status("epoch 3 is lower than 4");
        assert!(status.is_fenced() && !status.is_retryable());
    }
}
