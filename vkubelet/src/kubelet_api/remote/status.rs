//! What the error stream says at the end: a `metav1.Status`, always, since clients take silence for success.

use serde_json::{Value, json};

use super::order::Kind;

/// It went well: a command that ended with 0, a container that has ended.
#[must_use]
pub fn success() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

/// A command's end.
#[must_use]
pub fn exited(code: i32) -> Value {
    if code == 0 {
        return success();
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}
    })
}

/// It could not be done, or not to its end.
#[must_use]
pub fn failed(kind: Kind, why: &str) -> Value {
    let what = match kind {
        Kind::Exec => "error executing command in container",
        Kind::Attach => "error attaching to container",
    };
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("Internal error occurred: {what}: {why}"),
        "reason": "InternalError",
        "details": {"causes": [{"message": format!("{what}: {why}")}]},
        "code": 500
    })
}
