//! TLS on the way to Postgres.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::connection::{closed, lost};
use super::encryption::{Encryption, Negotiation, Roots, SslMode};
use super::endpoint::Endpoint;
use super::tls_error::{handshake_error, not_offered};
use super::verifier::Verifier;
use crate::error::{Error, Kind};

/// The question whether the server speaks TLS: its length and a number that is no version
/// (<https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL>).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// The name of Postgres' protocol among those that TLS may carry (ALPN).
const PROTOCOL: &[u8] = b"postgresql";

/// What the server answers to the question for TLS.
pub(super) enum Offer {
    Tls,
    None,
}

/// Asks the server for TLS.
///
/// Reads a single byte: whatever follows it unasked came from somebody in between, and goes into
/// the handshake, which then fails (CVE-2021-23222).
pub(super) async fn ask(endpoint: &Endpoint, socket: &mut TcpStream) -> Result<Offer, Error> {
    socket.write_all(&SSL_REQUEST).await.map_err(|error| lost(endpoint, error))?;
    let answer = socket.read_u8().await.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => closed(endpoint),
        _ => lost(endpoint, error),
    })?;
    match answer {
        b'S' => Ok(Offer::Tls),
        b'N' => Ok(Offer::None),
        // An error message, unprotected: what it says is anybody's word.
        b'E' => Err(Error::new(
            Kind::Unavailable,
            format!(
                "postgres at {} answers the question for TLS with an error",
                endpoint.address()
            ),
        )
        .hint("see the server's log")),
        _ => Err(Error::new(
            Kind::Malformed,
            format!("{} does not answer the question for TLS as postgres does", endpoint.address()),
        )
        .hint("make sure that the address is that of a Postgres server")),
    }
}

/// Encrypts the connection and sees to it that the server is who it should be.
pub(super) async fn encrypt(
    endpoint: &Endpoint,
    socket: TcpStream,
) -> Result<TlsStream<TcpStream>, Error> {
    let encryption = endpoint.encryption().clone();
    let direct = encryption.negotiation == Negotiation::Direct;
    let name = ServerName::try_from(endpoint.host().to_owned()).map_err(|error| {
        fault(format!("the host {:?} is no name that a certificate can have", endpoint.host()))
            .hint("name the server in the database url as its certificate does, or use sslmode=require")
            .caused_by(error)
    })?;
    // Files are read anew at each connect: certificates are replaced while the relay runs.
    let config =
        tokio::task::spawn_blocking(move || configure(&encryption)).await.map_err(|error| {
            Error::new(Kind::Unavailable, "the runtime has ended").caused_by(error)
        })??;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
        .map_err(|error| handshake_error(endpoint, error))?;
    // Whoever speaks TLS at once must say that it is for Postgres: a server of another protocol
    // could be made to take our first message for one of its own.
    if direct && stream.get_ref().1.alpn_protocol() != Some(PROTOCOL) {
        return Err(not_offered(endpoint));
    }
    Ok(stream)
}

fn configure(encryption: &Encryption) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let roots = encryption.roots.as_ref().map(load_roots).transpose()?;
    let verifier = Verifier {
        roots,
        name: encryption.mode == SslMode::VerifyFull,
        provider: Arc::clone(&provider),
    };
    let broken = |error| fault("TLS cannot be set up").caused_by(error);
    let builder = ClientConfig::builder_with_provider(provider as Arc<CryptoProvider>)
        .with_safe_default_protocol_versions()
        .map_err(broken)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &encryption.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate, "sslcert")?;
            let key = private_key(key)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                fault("the key in sslkey does not belong to the certificate in sslcert")
                    .caused_by(error)
            })?
        }
    };
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

fn load_roots(roots: &Roots) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    match roots {
        Roots::File(path) => {
            for certificate in certificates(path, "sslrootcert")? {
                store.add(certificate).map_err(|error| {
                    fault(format!(
                        "sslrootcert {}: a certificate that cannot be read",
                        path.display()
                    ))
                    .caused_by(error)
                })?;
            }
        }
        Roots::System => {
            // Some systems ship certificates that are of no use; the rest serve.
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if store.is_empty() {
                return Err(fault("sslrootcert=system: this system trusts no authority")
                    .hint("install its package of CA certificates, or name a file"));
            }
        }
    }
    Ok(store)
}

fn certificates(path: &Path, parameter: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let certificates = read().map_err(|error| unreadable(path, parameter, error))?;
    if certificates.is_empty() {
        return Err(fault(format!("{parameter} {} has no certificate in it", path.display()))
            .hint("it must be in PEM form: -----BEGIN CERTIFICATE-----"));
    }
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            fault(format!("sslkey {} has no private key that can be used", path.display()))
                .hint("it must be in PEM form and without a passphrase")
        }
        error => unreadable(path, "sslkey", error),
    })
}

fn unreadable(path: &Path, parameter: &str, error: pem::Error) -> Error {
    fault(format!("{parameter} {} cannot be read", path.display())).caused_by(error)
}

fn fault(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Kind::Config, text)
}
