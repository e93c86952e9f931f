//! Puts the parts together.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Container;
use sandbox::spec::{ContainerSpec, LOG_BYTES_PER_SECOND, Mount, Resources, Rootfs, SandboxSpec, Security};

use super::expand::expand;
use super::{Context, SpecError, apparmor, env, resources, scalars, security, signal, sysctls, user};
use crate::pod::ephemeral;
use crate::ports::ReadyImage;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The kernel's limit on a host name is 64 with its end.
const HOSTNAME_LIMIT: usize = 63;

/// The pod's host name and, with a subdomain, its domain.
pub fn hostname(context: Context<'_>) -> (String, Option<String>) {
    let spec = context.spec();
    if context.has_host_network() {
        return (context.host.hostname.clone(), None);
    }
    let chosen = spec.and_then(|s| s.hostname_override.clone().or_else(|| s.hostname.clone()));
    let name = chosen.filter(|h| !h.is_empty()).or_else(|| context.pod.metadata.name.clone()).unwrap_or_default();
    let mut name = name;
    if name.len() > HOSTNAME_LIMIT {
        name.truncate(HOSTNAME_LIMIT);
        name.truncate(name.trim_end_matches(['-', '.']).len());
    }
    let domain =
        spec.filter(|s| s.hostname_override.is_none()).and_then(|s| s.subdomain.clone()).filter(|s| !s.is_empty()).map(
            |subdomain| {
                let cluster = &context.resolved.dns.domain;
                let cluster = if cluster.is_empty() { "cluster.local" } else { cluster };
                format!("{subdomain}.{}.svc.{cluster}", context.namespace())
            },
        );
    (name, domain)
}

/// The whole pod's sandbox.
pub fn sandbox(context: Context<'_>, log_dir: PathBuf) -> Result<SandboxSpec, SpecError> {
    let Some(spec) = context.spec() else { return Err(SpecError::NoCommand) };
    let (name, domain) = hostname(context);
    let hostname = match domain {
        Some(domain) if spec.set_hostname_as_fqdn == Some(true) => format!("{name}.{domain}"),
        _ => name,
    };
    let own_sysctls = spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten());
    let meta = &context.pod.metadata;
    let label = |key: &str, value: &Option<String>| (key.to_owned(), value.clone().unwrap_or_default());
    let malformed = |source| SpecError::Quantity { container: "pod".to_owned(), source };
    Ok(SandboxSpec {
        hostname,
        sysctls: own_sysctls.map(|s| (sysctls::dotted(&s.name), s.value.clone())).collect(),
        share_process_namespace: spec.share_process_namespace.unwrap_or(false),
        resources: Resources {
            hugepages: scalars::page_limits(&scalars::of_pod(spec).map_err(malformed)?, &context.host.page_sizes),
            ..resources::of_pod(spec, &context.host.policy).map_err(malformed)?
        },
        log_dir,
        log_bytes_per_second: LOG_BYTES_PER_SECOND,
        labels: BTreeMap::from([
            label("pod.uid", &meta.uid),
            label("pod.name", &meta.name),
            label("pod.namespace", &meta.namespace),
        ]),
        namespaces: security::namespaces(spec),
    })
}

/// One container. `writable` is where its changes go; `mounts` are its volumes.
pub fn container(
    context: Context<'_>,
    container: &Container,
    image: &ReadyImage,
    attempt: u32,
    writable: PathBuf,
    mounts: Vec<Mount>,
) -> Result<ContainerSpec, SpecError> {
    let Some(spec) = context.spec() else { return Err(SpecError::NoCommand) };
    let name = container.name.clone();
    security::check_non_root(spec, container, &image.config.user).map_err(|message| SpecError::Root {
        message,
        pod: context.display(),
        container: name.clone(),
    })?;
    let asked = security::identity(spec, container);
    let identity = user::resolve(&asked, &image.config.user, image.files.as_ref())
        .map_err(|source| SpecError::User { container: name.clone(), source })?;
    let own = env::of_container(context, container)?;
    let args = command(container, image, &own)?;
    let cwd = container.working_dir.clone().filter(|d| !d.is_empty()).unwrap_or_else(|| {
        if image.config.working_dir.is_empty() { "/".to_owned() } else { image.config.working_dir.clone() }
    });
    if !cwd.starts_with('/') {
        return Err(SpecError::WorkingDirectory { path: cwd });
    }
    let (hostname, _) = hostname(context);
    let own_context = container.security_context.as_ref();
    let malformed = |source| SpecError::Quantity { container: name.clone(), source };
    Ok(ContainerSpec {
        attempt,
        args,
        env: merged(&hostname, &identity.home, &image.config.env, own, container.tty == Some(true)),
        cwd,
        user: identity.user,
        rootfs: Rootfs {
            layers: image.layers.clone(),
            writable: Some(writable),
            writable_limit: resources::writable_limit(container).map_err(malformed)?,
        },
        readonly_rootfs: own_context.and_then(|s| s.read_only_root_filesystem).unwrap_or(false),
        mounts,
        resources: Resources {
            hugepages: scalars::page_limits(
                &scalars::allowed(spec, container).map_err(malformed)?,
                &context.host.page_sizes,
            ),
            ..resources::of_container(spec, container, context.host.memory, &context.host.policy).map_err(malformed)?
        },
        security: Security {
            apparmor: apparmor::enforced(context.pod, container, &context.host.trust),
            ..security::of_container(spec, container)
        },
        stop_signal: stop_signal(container, image)?,
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        target: ephemeral::target(context.pod, &name),
        name,
    })
}

/// The pod's own choice, else the image's, else SIGTERM. An image that names nonsense is not the pod author's fault.
fn stop_signal(container: &Container, image: &ReadyImage) -> Result<i32, SpecError> {
    const SIGTERM: i32 = 15;
    if let Some(chosen) = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref()) {
        return signal::parse(chosen).ok_or_else(|| SpecError::Signal { signal: chosen.to_owned() });
    }
    Ok(image.config.stop_signal.as_deref().and_then(signal::parse).unwrap_or(SIGTERM))
}

fn command(container: &Container, image: &ReadyImage, env: &[(String, String)]) -> Result<Vec<String>, SpecError> {
    let lookup = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let expanded = |list: &[String]| list.iter().map(|text| expand(text, &lookup)).collect::<Vec<_>>();
    let command = container.command.as_deref().unwrap_or_default();
    let own_args = container.args.as_deref().unwrap_or_default();
    let mut args;
    if command.is_empty() {
        args = image.config.entrypoint.clone();
        args.extend(if own_args.is_empty() { image.config.cmd.clone() } else { expanded(own_args) });
    } else {
        args = expanded(command);
        args.extend(expanded(own_args));
    }
    if args.first().is_none_or(|program| program.is_empty()) {
        return Err(SpecError::NoCommand);
    }
    Ok(args)
}

/// Defaults, then the image's, then the pod's; each name once, at its first place.
fn merged(
    hostname: &str,
    home: &str,
    image: &[String],
    own: Vec<(String, String)>,
    tty: bool,
) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = Vec::new();
    let mut put = |name: &str, value: &str| match out.iter_mut().find(|(n, _)| n == name) {
        Some(known) => value.clone_into(&mut known.1),
        None => out.push((name.to_owned(), value.to_owned())),
    };
    put("PATH", DEFAULT_PATH);
    put("HOSTNAME", hostname);
    if tty {
        put("TERM", "xterm");
    }
    for pair in image {
        if let Some((name, value)) = pair.split_once('=')
            && !name.is_empty()
            && !pair.contains('\0')
        {
            put(name, value);
        }
    }
    for (name, value) in &own {
        put(name, value);
    }
    if !out.iter().any(|(name, _)| name == "HOME") {
        out.push(("HOME".to_owned(), home.to_owned()));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::HostFacts;
    use super::*;
    use crate::ports::{ImageConfig, RootFiles};
    use crate::resolved::Resolved;
    use k8s_openapi::api::core::v1::Pod;

    struct Empty;

    impl RootFiles for Empty {
        fn read_file(&self, _: &str, _: u64) -> Result<Option<Vec<u8>>, String> {
            Ok(None)
        }
    }

    fn image() -> ReadyImage {
        ReadyImage {
            reference: "docker.io/library/x:1".into(),
            image_id: "x@sha256:1".into(),
            digest: "sha256:1".into(),
            config: ImageConfig {
                entrypoint: vec!["/entry".into()],
                cmd: vec!["$(A)".into()],
                env: vec!["A=image".into(), "PATH=/image".into(), "bad".into()],
                working_dir: "/work".into(),
                user: String::new(),
                stop_signal: Some("SIGUSR1".into()),
            },
            layers: vec![],
            size: 0,
            files: Arc::new(Empty),
        }
    }

    fn build(own: serde_json::Value) -> Result<ContainerSpec, SpecError> {
        let mut json = serde_json::json!({"name": "c"});
        json.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": [json]}
        }))
        .unwrap();
        let (resolved, host) = (Resolved::default(), HostFacts::default());
        let context = Context { pod: &pod, resolved: &resolved, host: &host, ip: None };
        let spec = pod.spec.as_ref().unwrap();
        container(context, &spec.containers[0], &image(), 3, "/w".into(), vec![])
    }

    #[test]
    fn command_and_args_replace_the_images_as_kubernetes_documents() {
        let args = |own| build(own).unwrap().args;
        assert_eq!(args(serde_json::json!({})), ["/entry", "$(A)"]);
        assert_eq!(args(serde_json::json!({"args": ["x"]})), ["/entry", "x"]);
        assert_eq!(args(serde_json::json!({"command": ["/c"]})), ["/c"]);
        assert_eq!(
            args(
                serde_json::json!({"command": ["/c", "$(B)"], "args": ["$(NO)"], "env": [{"name": "B", "value": "b"}]})
            ),
            ["/c", "b", "$(NO)"]
        );
    }

    #[test]
    fn the_environment_is_defaults_then_image_then_pod() {
        let env = build(serde_json::json!({"env": [{"name": "A", "value": "pod"}]})).unwrap().env;
        let flat: Vec<String> = env.into_iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(flat, ["PATH=/image", "HOSTNAME=p", "A=pod", "HOME=/root"]);
    }

    #[test]
    fn stop_signal_and_working_directory_come_from_the_pod_else_the_image() {
        let spec = build(serde_json::json!({})).unwrap();
        assert_eq!((spec.stop_signal, spec.cwd.as_str(), spec.attempt), (10, "/work", 3));
        let spec = build(serde_json::json!({"workingDir": "/x", "lifecycle": {"stopSignal": "SIGINT"}})).unwrap();
        assert_eq!((spec.stop_signal, spec.cwd.as_str()), (2, "/x"));
        assert!(build(serde_json::json!({"workingDir": "x"})).is_err());
    }
}
