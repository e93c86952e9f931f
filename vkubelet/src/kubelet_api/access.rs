//! Which right a request needs: a pure function of method and path.
//!
//! The table is the kubelet's (`pkg/kubelet/server/auth.go`), with one rule more: what runs a program or opens a
//! connection in a pod needs `create`, whatever the HTTP verb, because a WebSocket upgrade is a GET.

/// A right on the node object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Access {
    /// `get`, `create`, `update`, `delete`.
    pub verb: &'static str,
    /// Subresources of `nodes`, any of which is enough, the finest first.
    pub subresources: &'static [&'static str],
}

/// The right that a request needs.
pub fn required(method: &http::Method, path: &str) -> Access {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let subresources: &[&str] = match first {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "pods" | "runningpods" | "runningPods" => &["pods", "proxy"],
        "healthz" | "livez" | "readyz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        _ => &["proxy"],
    };
    let acts = matches!(first, "exec" | "attach" | "portForward" | "run");
    let verb = match *method {
        http::Method::GET | http::Method::HEAD if acts => "create",
        http::Method::GET | http::Method::HEAD => "get",
        http::Method::PUT => "update",
        http::Method::PATCH => "patch",
        http::Method::DELETE => "delete",
        _ => "create",
    };
    Access { verb, subresources }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn rights_follow_the_kubelets_table() {
        let rows = [
            (Method::GET, "/containerLogs/ns/pod/c", "get", "proxy"),
            (Method::GET, "/metrics/resource", "get", "metrics"),
            (Method::GET, "/stats/summary", "get", "stats"),
            (Method::GET, "/pods", "get", "pods"),
            (Method::GET, "/healthz", "get", "healthz"),
            (Method::GET, "/configz", "get", "configz"),
            (Method::GET, "/no/such/path", "get", "proxy"),
            (Method::POST, "/exec/ns/pod/c", "create", "proxy"),
        ];
        for (method, path, verb, subresource) in rows {
            let access = required(&method, path);
            assert_eq!((access.verb, access.subresources[0]), (verb, subresource), "{method} {path}");
        }
    }

    #[test]
    fn acting_in_a_pod_needs_create_even_for_get() {
        for path in ["/exec/n/p/c", "/attach/n/p/c", "/portForward/n/p", "/run/n/p/c"] {
            assert_eq!(required(&Method::GET, path).verb, "create", "{path}");
        }
    }

    #[test]
    fn a_doubled_slash_does_not_change_the_right() {
        assert_eq!(required(&Method::GET, "//exec/n/p/c").verb, "create");
    }
}
