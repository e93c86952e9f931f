use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::tls::{self, TlsFailure};
use super::*;

fn authority() -> (tempfile::TempDir, Arc<Authority>) {
    let dir = tempfile::tempdir().expect("tempdir");
    let authority = Authority::open_or_create(&dir.path().join("ca")).expect("a CA");
    (dir, Arc::new(authority))
}

fn enrolled(authority: &Authority, name: &str) -> (HostKey, String) {
    let key = HostKey::generate().expect("a key");
    let id = HostId::new(name).expect("an id");
    let (certificate, hash) = authority.sign_host(&key.request(&id).expect("a request"), &id).expect("signed");
    assert_eq!(hash, key.spki_hash());
    (key, certificate)
}

/// Handshakes over an in-memory pipe; the client then reads one byte that the server sends.
async fn meet(
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
) -> (std::io::Result<Option<Vec<CertificateDer<'static>>>>, std::io::Result<u8>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let serving = async move {
        let mut stream = TlsAcceptor::from(server).accept(near).await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        Ok(stream.get_ref().1.peer_certificates().map(|chain| chain.iter().map(|c| c.clone().into_owned()).collect()))
    };
    let calling = async move {
        let mut stream = TlsConnector::from(client).connect(tls::server_name(), far).await?;
        stream.read_u8().await
    };
    tokio::join!(serving, calling)
}

fn listener(authority: &Arc<Authority>) -> Arc<rustls::ServerConfig> {
    tls::listener(Arc::clone(authority), vec!["node".into(), "not a dns name".into()], vec![]).expect("listener")
}

#[test]
fn the_ca_is_made_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    assert!(matches!(Authority::open(dir.path()), Err(AuthorityError::Missing(_))));
    let first = Authority::open_or_create(dir.path()).expect("made").hash();
    assert_eq!(Authority::open_or_create(dir.path()).expect("opened").hash(), first);
}

#[test]
fn a_damaged_ca_is_refused_and_not_replaced() {
    let dir = tempfile::tempdir().expect("tempdir");
    Authority::open_or_create(dir.path()).expect("made");
    let path = dir.path().join("ca.pem");
    let whole = std::fs::read(&path).expect("read");
    std::fs::write(&path, &whole[..whole.len() / 2]).expect("cut");
    assert!(matches!(Authority::open_or_create(dir.path()), Err(AuthorityError::Damaged { .. })));
}

#[test]
fn a_host_certificate_names_its_host_and_key_and_nothing_of_the_request() {
    let (_dir, authority) = authority();
    let key = HostKey::generate().expect("a key");
    let asked = HostId::new("somebody-else").expect("id");
    let granted = HostId::new("edge-1").expect("id");
    let (pem, _) = authority.sign_host(&key.request(&asked).expect("request"), &granted).expect("signed");
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("pem");
    let peer = HostPeer::from_certificate(&der).expect("a host");
    assert_eq!((peer.host_id, peer.key), (granted, key.spki_hash()));
    assert!(HostPeer::from_certificate(authority.certificate()).is_err());
}

#[tokio::test]
async fn an_enrolled_agent_and_the_listener_know_each_other() {
    let (_dir, authority) = authority();
    let (key, certificate) = enrolled(&authority, "edge-1");
    let client = tls::agent(authority.certificate_pem(), &certificate, &key.to_pem()).expect("agent");
    let (server, byte) = meet(listener(&authority), client).await;
    assert_eq!(byte.expect("a byte"), b'x');
    let chain = server.expect("handshake").expect("a client certificate");
    assert_eq!(HostPeer::from_certificate(&chain[0]).expect("host").host_id.as_str(), "edge-1");
}

#[tokio::test]
async fn joining_trusts_the_pinned_ca_only() {
    let (_dir, authority) = authority();
    let (_other_dir, other) = self::authority();
    let (server, byte) = meet(listener(&authority), tls::joining(authority.hash()).expect("join")).await;
    assert_eq!(byte.expect("a byte"), b'x');
    assert!(server.expect("handshake").is_none(), "no client certificate");
    let (_, byte) = meet(listener(&authority), tls::joining(other.hash()).expect("join")).await;
    assert_eq!(tls::classify(&byte.expect_err("wrong CA")), TlsFailure::UntrustedServer);
}

#[tokio::test]
async fn an_agent_refuses_another_vkubelet_and_is_refused_by_it() {
    let (_dir, authority) = authority();
    let (_other_dir, other) = self::authority();
    let (key, certificate) = enrolled(&other, "edge-1");
    let trusting_other = tls::agent(other.certificate_pem(), &certificate, &key.to_pem()).expect("agent");
    let (_, byte) = meet(listener(&authority), trusting_other).await;
    assert_eq!(tls::classify(&byte.expect_err("untrusted server")), TlsFailure::UntrustedServer);
    let foreign_certificate = tls::agent(authority.certificate_pem(), &certificate, &key.to_pem()).expect("agent");
    let (_, byte) = meet(listener(&authority), foreign_certificate).await;
    assert_eq!(tls::classify(&byte.expect_err("refused by the server")), TlsFailure::OwnRefused);
}

#[tokio::test]
async fn a_host_cannot_pose_as_vkubelet() {
    let (_dir, authority) = authority();
    let (key, certificate) = enrolled(&authority, "vkubelet.nodeless.internal");
    let chain =
        vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("pem"), authority.certificate().clone()];
    let private = rustls_pki_types::PrivateKeyDer::from_pem_slice(key.to_pem().as_bytes()).expect("key");
    let mut server =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .expect("config");
    server.alpn_protocols = vec![crate::transport::ALPN_JOIN.to_vec()];
    let (_, byte) = meet(Arc::new(server), tls::joining(authority.hash()).expect("join")).await;
    assert_eq!(tls::classify(&byte.expect_err("impostor")), TlsFailure::UntrustedServer);
}
