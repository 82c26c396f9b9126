//! Certificates that no sound server has, and passwords over TLS, played by a script that speaks
//! real TLS.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tailrace_stack::unique;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::log_in::refusal;
use super::server::DEADLINE;
use super::wire::{ask, logged_in};
use crate::error::{Error, Kind};
use crate::replication::{Client, Endpoint};

/// A server for one connection with a certificate of its own making, which is also its own
/// authority; answers each message as the script says and tells what it heard.
async fn server(
    shape: impl FnOnce(&mut CertificateParams),
    names: &[&str],
    answers: Vec<Vec<u8>>,
) -> (u16, String, JoinHandle<Vec<u8>>) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    shape(&mut params);
    let certificate = params.self_signed(&key).unwrap();
    let path = std::env::temp_dir().join(unique("certificate"));
    std::fs::write(&path, certificate.pem()).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut question = [0; 8];
        socket.read_exact(&mut question).await.unwrap();
        assert_eq!(question, [0, 0, 0, 8, 4, 210, 22, 47]);
        socket.write_all(b"S").await.unwrap();
        let mut heard = Vec::new();
        // A client that does not like the certificate leaves in the middle.
        let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(socket).await else {
            return heard;
        };
        for answer in answers {
            if !matches!(stream.read_buf(&mut heard).await, Ok(1..)) {
                break;
            }
            stream.write_all(&answer).await.ok();
        }
        stream.shutdown().await.ok();
        heard
    });
    (port, path.to_str().unwrap().replace('/', "%2F"), task)
}

async fn refused(shape: impl FnOnce(&mut CertificateParams), names: &[&str], mode: &str) -> Error {
    let (port, ca, task) = server(shape, names, vec![]).await;
    let url = format!("postgres://u:secret@127.0.0.1:{port}/d?sslmode={mode}&sslrootcert={ca}");
    let error = refusal(&Endpoint::parse(&url).unwrap()).await;
    timeout(DEADLINE, task).await.unwrap().unwrap();
    std::fs::remove_file(ca.replace("%2F", "/")).unwrap();
    error
}

#[tokio::test]
async fn a_certificate_for_another_name_is_told_with_both_names() {
    let error = refused(|_| {}, &["db.example.com", "10.0.0.1"], "verify-full").await;

    assert_eq!(error.kind(), Kind::Config);
    let text = error.to_string();
    assert!(text.contains("for db.example.com, 10.0.0.1, and not for 127.0.0.1"), "{text}");
    assert!(error.mend().unwrap().contains("sslmode=verify-ca"));

    let nameless = refused(|_| {}, &[], "verify-full").await;
    assert!(nameless.to_string().contains("no name at all"), "{nameless}");
}

#[tokio::test]
async fn the_name_is_nothing_to_verify_ca() {
    let error = refused(|_| {}, &["db.example.com"], "verify-ca").await;

    // Past the certificate: the script ends here.
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_certificate_out_of_its_time_is_the_servers_fault() {
    for (from, to, expected) in [(1990, 2000, "has expired"), (4000, 4001, "not valid yet")] {
        let shape = |params: &mut CertificateParams| {
            params.not_before = date_time_ymd(from, 1, 1);
            params.not_after = date_time_ymd(to, 1, 1);
        };
        let error = refused(shape, &["127.0.0.1"], "verify-full").await;
        assert_eq!(error.kind(), Kind::Server, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn an_authority_in_a_servers_place_is_refused_with_its_mend() {
    let authority = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    };

    let error = refused(authority, &["127.0.0.1"], "verify-full").await;

    assert_eq!(error.kind(), Kind::Server, "{error}");
    assert!(error.mend().unwrap().contains("CA:FALSE"), "{error:?}");
}

#[tokio::test]
async fn a_clear_text_password_is_sent_over_tls() {
    let [log_in, version] = logged_in("180006");
    let answers = vec![ask(3, b""), log_in, version];
    let (port, ca, task) = server(|_| {}, &["127.0.0.1"], answers).await;
    let url =
        format!("postgres://u:secret@127.0.0.1:{port}/d?sslmode=verify-full&sslrootcert={ca}");

    let client = timeout(DEADLINE, Client::connect(&Endpoint::parse(&url).unwrap())).await;

    drop(client.unwrap().unwrap());
    let heard = timeout(DEADLINE, task).await.unwrap().unwrap();
    assert!(heard.windows(7).any(|window| window == b"secret\0"), "{heard:?}");
    std::fs::remove_file(ca.replace("%2F", "/")).unwrap();
}
