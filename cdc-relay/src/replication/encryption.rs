//! What is asked of the encryption of a connection, in libpq's terms.

use std::fmt;
use std::path::PathBuf;

use crate::error::{Error, Kind};

/// How much a connection is protected
/// (<https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION>).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SslMode {
    /// Never encrypted.
    Disable,
    /// Encrypted where the server insists on it.
    Allow,
    /// Encrypted where the server offers it.
    Prefer,
    /// Always encrypted, to whoever answers.
    Require,
    /// Encrypted, to a server that an authority vouches for, whatever its name.
    VerifyCa,
    /// Encrypted, to the server of this name and no other.
    VerifyFull,
}

/// Which authorities are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Roots {
    /// Those of this PEM file.
    File(PathBuf),
    /// Those that the operating system trusts.
    System,
}

/// Whether the log-in by password is bound to the encrypted channel, so that nobody in between
/// can pass it on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ChannelBinding {
    Disable,
    #[default]
    Prefer,
    Require,
}

/// How the encryption begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Negotiation {
    /// By a question in Postgres' own protocol.
    #[default]
    Postgres,
    /// At once, which saves a round trip; from Postgres 17 on.
    Direct,
}

/// The settings of a URL, complete and free of contradictions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Encryption {
    pub(super) mode: SslMode,
    pub(super) negotiation: Negotiation,
    pub(super) channel_binding: ChannelBinding,
    /// Whom to believe; `None` when the server's certificate is not looked at.
    pub(super) roots: Option<Roots>,
    /// Certificate and key to show to the server.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
}

/// The settings as the URL has them.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) mode: Option<SslMode>,
    pub(super) negotiation: Negotiation,
    pub(super) channel_binding: ChannelBinding,
    pub(super) roots: Option<Roots>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

/// One try of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    Plain,
    /// Encrypted, and plain over the same socket when the server has no TLS.
    TlsIfOffered,
    Tls,
}

impl SslMode {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => SslMode::Disable,
            "allow" => SslMode::Allow,
            "prefer" => SslMode::Prefer,
            "require" => SslMode::Require,
            "verify-ca" => SslMode::VerifyCa,
            "verify-full" => SslMode::VerifyFull,
            _ => return None,
        })
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SslMode::Disable => "disable",
            SslMode::Allow => "allow",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        })
    }
}

impl Encryption {
    /// Settles what the settings mean together, as libpq does; `sockets_only` when no host is
    /// reached by TCP, where encryption has no part.
    ///
    /// Stricter than libpq where a setting would have no effect: a certificate or an authority
    /// that is given and then not used is an error.
    pub(super) fn settle(asked: Asked, sockets_only: bool) -> Result<Encryption, Error> {
        let Asked { mode, negotiation, channel_binding, roots, certificate, key } = asked;
        let mode = match (mode, &roots) {
            (None, Some(Roots::System)) => SslMode::VerifyFull,
            (Some(mode), Some(Roots::System)) if mode < SslMode::VerifyFull => {
                return Err(fault(format!(
                    "sslrootcert=system with sslmode={mode}: anybody can get a certificate of a public authority"
                ))
                .hint("use sslmode=verify-full"));
            }
            (mode, _) => mode.unwrap_or(SslMode::Prefer),
        };
        // With an authority at hand, `require` verifies what it vouches for.
        let mode = match (mode, &roots) {
            (SslMode::Require, Some(_)) => SslMode::VerifyCa,
            (SslMode::Disable | SslMode::Allow | SslMode::Prefer, Some(_)) => {
                return Err(fault(format!(
                    "sslrootcert is given, and sslmode={mode} goes on without verifying anything"
                ))
                .hint("use sslmode=verify-full, or verify-ca when the name cannot match"));
            }
            (SslMode::VerifyCa | SslMode::VerifyFull, None) => {
                return Err(fault(format!("sslmode={mode} needs an authority to believe"))
                    .hint("name its certificate by sslrootcert=FILE, or use sslrootcert=system"));
            }
            (mode, _) => mode,
        };
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err(fault("sslcert is given without sslkey")),
            (None, Some(_)) => return Err(fault("sslkey is given without sslcert")),
        };
        if identity.is_some() && mode == SslMode::Disable {
            return Err(fault("sslcert is given, and sslmode=disable never shows it"));
        }
        if negotiation == Negotiation::Direct && mode < SslMode::Require {
            return Err(fault(format!(
                "sslnegotiation=direct with sslmode={mode}: there is nothing to fall back to"
            ))
            .hint("use sslmode=require, verify-ca or verify-full"));
        }
        if channel_binding == ChannelBinding::Require && (mode == SslMode::Disable || sockets_only)
        {
            return Err(fault("channel_binding=require needs a connection with TLS"));
        }
        Ok(Encryption { mode, negotiation, channel_binding, roots, identity })
    }

    /// What to try, in this order.
    pub(super) fn attempts(&self) -> &'static [Attempt] {
        match self.mode {
            SslMode::Disable => &[Attempt::Plain],
            SslMode::Allow => &[Attempt::Plain, Attempt::Tls],
            SslMode::Prefer => &[Attempt::TlsIfOffered, Attempt::Plain],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Attempt::Tls],
        }
    }
}

fn fault(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Kind::Config, text)
}
