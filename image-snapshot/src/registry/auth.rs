//! Challenges and tokens: what a registry answers to the unauthorized, and how one becomes authorized.

use base64::Engine as _;
use http_auth::ChallengeRef;
use reqwest::{
    Client, Url,
    header::{HeaderMap, WWW_AUTHENTICATE},
};
use serde::Deserialize;

use super::{
    body::{SMALL_BODY, read, refuse, transport},
    endpoint::Endpoint,
};
use crate::{RegistryAuth, Secret, Timeouts, source::SourceError};

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token from this service.
    Bearer { realm: String, service: Option<String> },
    /// Name and password with each request.
    Basic,
}

/// The challenge to take up: a token service is preferred. `None`: nothing that we know.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut found = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Some(parsed) = value.to_str().ok().and_then(|v| http_auth::parse_challenges(v).ok()) else {
            continue;
        };
        for one in parsed {
            if one.scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = parameter(&one, "realm") {
                    return Some(Challenge::Bearer { realm, service: parameter(&one, "service") });
                }
            } else if one.scheme.eq_ignore_ascii_case("basic") {
                found = Some(Challenge::Basic);
            }
        }
    }
    found
}

fn parameter(challenge: &ChallengeRef<'_>, name: &str) -> Option<String> {
    let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
    Some(found.1.to_unescaped())
}

/// The value of the `Authorization` header that answers `challenge`. `None`: these credentials have no answer to it.
pub(super) async fn answer(
    client: &Client,
    endpoint: &Endpoint,
    repository: &str,
    challenge: &Challenge,
    auth: Option<&RegistryAuth>,
    timeouts: &Timeouts,
) -> Result<Option<Secret>, SourceError> {
    match (challenge, auth) {
        (_, Some(RegistryAuth::Bearer(token))) => Ok(Some(bearer(token.expose()))),
        (Challenge::Basic, Some(RegistryAuth::Basic { username, password })) => Ok(Some(basic(username, password))),
        (Challenge::Basic, _) => Ok(None),
        (Challenge::Bearer { realm, service }, auth) => {
            let token = fetch_token(client, endpoint, repository, realm, service.as_deref(), auth, timeouts).await?;
            Ok(Some(bearer(&token)))
        }
    }
}

fn bearer(token: &str) -> Secret {
    Secret::new(format!("Bearer {token}"))
}

fn basic(username: &str, password: &Secret) -> Secret {
    let pair = format!("{username}:{}", password.expose());
    Secret::new(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

async fn fetch_token(
    client: &Client,
    endpoint: &Endpoint,
    repository: &str,
    realm: &str,
    service: Option<&str>,
    auth: Option<&RegistryAuth>,
    timeouts: &Timeouts,
) -> Result<String, SourceError> {
    let what = format!("GET {}", realm.split('?').next().unwrap_or(realm));
    let refused = |problem| SourceError::Protocol { what: what.clone(), problem };
    let mut url = Url::parse(realm).map_err(|_| refused("the registry's token service has no URL"))?;
    // Credentials must not travel less safely to the token service than to the registry.
    let safe = url.scheme() == "https" || (url.scheme() == "http" && endpoint.base.starts_with("http://"));
    if !safe {
        return Err(refused("the registry's token service is not on https"));
    }
    let mut query = vec![("scope", format!("repository:{repository}:pull"))];
    query.extend(service.map(|s| ("service", s.to_owned())));
    let request = match auth {
        Some(RegistryAuth::Identity(token)) => {
            query.push(("grant_type", "refresh_token".to_owned()));
            query.push(("client_id", "nodeless".to_owned()));
            query.push(("refresh_token", token.expose().to_owned()));
            let mut form = url.clone();
            form.set_query(None);
            form.query_pairs_mut().extend_pairs(&query);
            client
                .post(url)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(form.query().unwrap_or_default().to_owned())
        }
        Some(RegistryAuth::Basic { username, password }) => {
            url.query_pairs_mut().append_pair("account", username).extend_pairs(&query);
            client.get(url).header("authorization", basic(username, password).expose())
        }
        Some(RegistryAuth::Bearer(_)) | None => {
            url.query_pairs_mut().extend_pairs(&query);
            client.get(url)
        }
    };
    let waited = timeouts.progress;
    let response = request.send().await.map_err(|e| transport(&what, waited, e))?;
    if !response.status().is_success() {
        return Err(refuse(&what, response, waited).await);
    }
    let bytes = read(&what, response, SMALL_BODY, waited).await?;
    let token: Token =
        serde_json::from_slice(&bytes).map_err(|source| SourceError::Parse { what: what.clone(), source })?;
    let token = token.token.or(token.access_token).filter(|t| !t.is_empty());
    token.ok_or(refused("the token service's answer holds no token"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        challenge(&headers)
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let hub =
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#;
        let bearer = Challenge::Bearer {
            realm: "https://auth.docker.io/token".into(),
            service: Some("registry.docker.io".into()),
        };
        assert_eq!(of(&[hub]), Some(bearer.clone()));
        assert_eq!(of(&[r#"basic realm="x""#]), Some(Challenge::Basic));
        assert_eq!(of(&[r#"Basic realm="x""#, hub]), Some(bearer));
        assert_eq!(of(&["Negotiate"]), None);
        assert_eq!(of(&["Bearer"]), None);
        assert_eq!(of(&[]), None);
    }
}
