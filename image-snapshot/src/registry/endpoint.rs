//! Which URLs serve a registry's name, and with which client we talk to them.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use reqwest::{Client, ClientBuilder, Url, redirect};

use crate::{
    ImagesConfig, RegistryHost, Timeouts,
    reference::{DEFAULT_REGISTRY, RegistryReference},
    source::SourceError,
};

const MAX_REDIRECTS: usize = 5;

/// One server that may have an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `scheme://host[:port][/path]`, without a trailing slash.
    pub(crate) base: String,
    /// Whose credentials are for it: `host[:port]` as references spell it.
    pub(crate) host: String,
}

/// All that is configured about registries.
#[derive(Debug)]
pub(crate) struct Registries {
    insecure: Vec<String>,
    hosts: Vec<RegistryHost>,
    pub(crate) timeouts: Timeouts,
    pub(crate) document_bytes: u64,
    clients: Mutex<HashMap<String, Client>>,
}

impl Registries {
    pub(crate) fn new(config: &ImagesConfig) -> Self {
        Self {
            insecure: config.insecure_registries.clone(),
            hosts: config.registries.clone(),
            timeouts: config.timeouts.clone(),
            document_bytes: config.limits.document_bytes,
            clients: Mutex::default(),
        }
    }

    /// Mirrors first, the registry itself last.
    pub(crate) fn endpoints(&self, image: &RegistryReference) -> Vec<Endpoint> {
        let registry = image.registry();
        let mirrors = self.hosts.iter().filter(|h| h.host == registry).flat_map(|h| &h.mirrors);
        let mut out: Vec<Endpoint> = mirrors
            .map(|url| {
                let base = url.trim_end_matches('/').to_owned();
                let rest = base.split_once("://").map_or(&*base, |(_, rest)| rest);
                let host = rest.split('/').next().unwrap_or(rest).to_owned();
                Endpoint { base, host }
            })
            .collect();
        let serving = if registry == DEFAULT_REGISTRY { "registry-1.docker.io" } else { registry };
        // Who speaks of certificates for a registry on loopback means HTTPS.
        let tls = self.hosts.iter().any(|h| h.host == registry && (h.unverified || !h.ca_certificates.is_empty()));
        let plain = (is_loopback(registry) && !tls) || self.insecure.iter().any(|r| r == registry);
        let scheme = if plain { "http" } else { "https" };
        out.push(Endpoint { base: format!("{scheme}://{serving}"), host: registry.to_owned() });
        out
    }

    /// The client for an endpoint: with its certificates, our timeouts and our rules for redirects.
    pub(crate) fn client(&self, endpoint: &Endpoint) -> Result<Client, SourceError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&endpoint.host) {
            return Ok(client.clone());
        }
        let fail = |source| SourceError::Client { registry: endpoint.host.clone(), source };
        let mut certificates = Vec::new();
        for pem in self.hosts.iter().filter(|h| h.host == endpoint.host).flat_map(|h| &h.ca_certificates) {
            certificates.extend(reqwest::Certificate::from_pem_bundle(pem).map_err(fail)?);
        }
        let built = self.builder(endpoint).tls_certs_merge(certificates.clone()).build();
        let client = match built {
            // A machine without any certificates of its own can still talk plain HTTP.
            Err(_) if endpoint.base.starts_with("http://") => {
                self.builder(endpoint).tls_certs_only(certificates).build()
            }
            built => built,
        }
        .map_err(fail)?;
        clients.insert(endpoint.host.clone(), client.clone());
        Ok(client)
    }
}

impl Registries {
    /// The client for an endpoint's token service. That an endpoint is not verified does not go for others.
    pub(crate) fn token_client(&self, endpoint: &Endpoint, realm: &str) -> Result<Client, SourceError> {
        if self.is_unverified(&endpoint.host)
            && let Some(host) = Url::parse(realm).ok().as_ref().and_then(host_of).filter(|host| *host != endpoint.host)
        {
            return self.client(&Endpoint { base: realm.to_owned(), host });
        }
        self.client(endpoint)
    }

    fn is_unverified(&self, host: &str) -> bool {
        self.hosts.iter().any(|h| h.host == host && h.unverified)
    }

    fn builder(&self, endpoint: &Endpoint) -> ClientBuilder {
        let home = self.is_unverified(&endpoint.host).then(|| endpoint.host.clone());
        let builder = Client::builder()
            .user_agent(concat!("nodeless/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.timeouts.connect)
            .read_timeout(self.timeouts.progress)
            .tls_danger_accept_invalid_certs(home.is_some())
            .redirect(redirect::Policy::custom(move |attempt| follow(attempt, home.as_deref())));
        if is_loopback(&endpoint.host) { builder.no_proxy() } else { builder }
    }
}

/// As references spell it.
pub(super) fn host_of(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// At most five, never from HTTPS down to HTTP, and never away from a host that is not verified (`home`). (The library drops the authorization
/// when the host changes.)
fn follow(attempt: redirect::Attempt<'_>, home: Option<&str>) -> redirect::Action {
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    let from_https = attempt.previous().last().is_some_and(|u| u.scheme() == "https");
    if from_https && attempt.url().scheme() != "https" {
        return attempt.error("redirect from https to http");
    }
    if home.is_some_and(|home| host_of(attempt.url()).as_deref() != Some(home)) {
        return attempt.error("redirect away from a host that is not verified");
    }
    attempt.follow()
}

/// `localhost`, 127.0.0.0/8 and ::1, with or without a port.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reference;

    fn bases(config: &ImagesConfig, name: &str) -> Vec<String> {
        let Reference::Registry(image) = name.parse().unwrap() else { panic!("{name} is local") };
        Registries::new(config).endpoints(&image).into_iter().map(|e| format!("{} for {}", e.base, e.host)).collect()
    }

    #[test]
    fn a_name_leads_to_its_mirrors_and_then_to_its_registry() {
        let mut config = ImagesConfig::new("/nowhere");
        config.insecure_registries = vec!["lan:5000".into()];
        config.registries = vec![RegistryHost {
            host: "docker.io".into(),
            mirrors: vec!["https://mirror.example/hub/".into()],
            ..RegistryHost::default()
        }];
        assert_eq!(
            bases(&config, "busybox"),
            ["https://mirror.example/hub for mirror.example", "https://registry-1.docker.io for docker.io"]
        );
        assert_eq!(bases(&config, "quay.io/a/b"), ["https://quay.io for quay.io"]);
        assert_eq!(bases(&config, "lan:5000/a"), ["http://lan:5000 for lan:5000"]);
        assert_eq!(bases(&config, "[::1]:5000/a"), ["http://[::1]:5000 for [::1]:5000"]);
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (host, want) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.8.9.1:5", true),
            ("[::1]:5", true),
            ("localhost.example.com", false),
            ("127.0.0.1.nip.io", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(host), want, "{host}");
        }
    }
}
