//! What goes wrong with TLS, and how to mend it.

use std::io;

use rustls::{AlertDescription, CertificateError};

use super::encryption::{Negotiation, Roots};
use super::endpoint::Endpoint;
use crate::error::{Error, Kind};

/// The server has no TLS and it is asked for.
pub(super) fn not_offered(endpoint: &Endpoint) -> Error {
    let encryption = endpoint.encryption();
    let (what, hint) = match encryption.negotiation {
        Negotiation::Postgres => (
            format!("does not offer TLS, and sslmode={} needs it", encryption.mode),
            "set ssl = on at the server; on a network that is trusted, use sslmode=disable",
        ),
        Negotiation::Direct => (
            "does not take TLS at once, as sslnegotiation=direct has it".to_owned(),
            "leave sslnegotiation out for servers before Postgres 17 and for most poolers",
        ),
    };
    Error::new(Kind::Config, format!("postgres at {} {what}", endpoint.address())).hint(hint)
}

/// The handshake failed.
pub(super) fn handshake_error(endpoint: &Endpoint, error: io::Error) -> Error {
    if let Some(known) = known(endpoint, &error) {
        return known.caused_by(error);
    }
    let direct = endpoint.encryption().negotiation == Negotiation::Direct;
    let ended =
        matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
    // What an older server does with a handshake that it did not ask for.
    let garbled = matches!(cause(&error), Some(rustls::Error::InvalidMessage(_)));
    if direct && (ended || garbled) {
        return not_offered(endpoint).caused_by(error);
    }
    let kind = if cause(&error).is_some() { Kind::Server } else { Kind::Unavailable };
    Error::new(kind, format!("the TLS handshake with postgres at {} failed", endpoint.address()))
        .hint("the server must speak TLS 1.2 or 1.3")
        .caused_by(error)
}

/// What an error of an established connection means, when TLS has an explanation: with TLS 1.3 a
/// server refuses a client's certificate after the handshake.
pub(super) fn refused_later(endpoint: &Endpoint, error: &io::Error) -> Option<Error> {
    known(endpoint, error)
}

fn cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn known(endpoint: &Endpoint, error: &io::Error) -> Option<Error> {
    match cause(error)? {
        rustls::Error::InvalidCertificate(reason) => Some(bad_certificate(endpoint, reason)),
        rustls::Error::AlertReceived(alert) => refused_by_server(endpoint, *alert),
        _ => None,
    }
}

/// The server's certificate did not pass.
fn bad_certificate(endpoint: &Endpoint, reason: &CertificateError) -> Error {
    let subject = format!("the certificate of postgres at {}", endpoint.address());
    match reason {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            let roots = match &endpoint.encryption().roots {
                Some(Roots::File(path)) => path.display().to_string(),
                Some(Roots::System) | None => "the system's authorities".to_owned(),
            };
            Error::new(Kind::Config, format!("{subject} is signed by nobody in {roots}"))
                .hint("sslrootcert must hold the certificate of the authority that signed it")
        }
        CertificateError::NotValidForNameContext { presented, .. } => {
            let host = endpoint.host();
            let presented: Vec<&str> = presented.iter().map(|name| plain_name(name)).collect();
            let names = match presented.as_slice() {
                [] => "no name at all (subjectAltName)".to_owned(),
                names => names.join(", "),
            };
            Error::new(Kind::Config, format!("{subject} is for {names}, and not for {host}")).hint(
                "connect by a name that it has, have one made for this name, or use sslmode=verify-ca",
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            Error::new(Kind::Server, format!("{subject} has expired"))
                .hint("renew the server's certificate and reload its configuration")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            Error::new(Kind::Server, format!("{subject} is not valid yet"))
                .hint("compare the clocks of both machines")
        }
        _ => Error::new(Kind::Server, format!("{subject} does not pass as one of a server"))
            .hint("it must be of X.509 version 3, no authority itself (CA:FALSE), and for servers"),
    }
}

/// `DnsName("db")`, as the library writes the names in a certificate, without what is around it.
fn plain_name(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, rest)| rest.trim_end_matches(')'));
    inner.trim_matches('"')
}

/// The server did not like what we showed.
fn refused_by_server(endpoint: &Endpoint, alert: AlertDescription) -> Option<Error> {
    let refused = |what: &str| {
        Error::new(Kind::Permission, format!("postgres at {} {what}", endpoint.address()))
    };
    match alert {
        AlertDescription::CertificateRequired => {
            Some(refused("asks for a client certificate").hint(CLIENT_CERTIFICATE))
        }
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateRevoked
        | AlertDescription::DecryptError
            if endpoint.encryption().identity.is_some() =>
        {
            Some(
                refused(&format!("refuses the certificate in sslcert ({alert:?})")).hint(
                    "it must be valid, and signed by an authority in the server's ssl_ca_file",
                ),
            )
        }
        AlertDescription::NoApplicationProtocol => Some(not_offered(endpoint)),
        _ => None,
    }
}

/// How to give one.
pub(super) const CLIENT_CERTIFICATE: &str =
    "give a certificate of this role by sslcert=FILE&sslkey=FILE in the database url";
