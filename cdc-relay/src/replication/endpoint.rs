//! Where the database is, and who asks.

mod url;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::encryption::Encryption;
use super::password::Password;
use crate::error::{Error, Kind};

/// Addresses, database, role, password and protection, as read from a URL.
///
/// `Debug` and [`Endpoint::describe`] leave the password out.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    hosts: Vec<Host>,
    user: String,
    password: Option<Password>,
    database: String,
    application_name: String,
    options: Option<String>,
    connect_timeout: Duration,
    target: Target,
    encryption: Encryption,
}

/// One of the places where the server may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) port: u16,
}

/// Which of several servers is the right one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Target {
    /// Each that lets us in.
    #[default]
    Any,
    /// One that takes writes: no standby, and not set to read only.
    ReadWrite,
    /// One that is no standby.
    Primary,
}

impl Endpoint {
    /// Reads a URL of libpq's form, `postgres://user:password@host:port/database?name=value`
    /// (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS>).
    ///
    /// Percent-encoding is undone. A host may be an IPv6 address in brackets, or the directory of
    /// a Unix socket, percent-encoded in place or as `?host=/dir`. Several hosts stand between
    /// commas, `host1:port1,host2:port2`, and are tried in order. Parameters win over the part
    /// before them. The user is required. Defaults: host `localhost`, port 5432, database = the
    /// user's name, `application_name` `cdc-relay`, `connect_timeout` 10 s for each host,
    /// `target_session_attrs` `any`, `sslmode` `prefer`.
    ///
    /// The settings of TLS mean what they mean to libpq; `sslmode` has no meaning for a Unix
    /// socket. What contradicts itself or is not supported is refused and never downgraded.
    /// `password_file` and `password_command` are ours: see [`Endpoint::password_file`] and
    /// [`Endpoint::password_command`]. No error repeats any part that may hold a piece of the
    /// password.
    pub(crate) fn parse(url: &str) -> Result<Endpoint, Error> {
        url::parse(url)
    }

    /// Has the password read from this file at each log-in. Refused when there is another source.
    pub(crate) fn password_file(self, path: impl Into<PathBuf>) -> Result<Endpoint, Error> {
        self.with_password(Password::File(path.into()))
    }

    /// Has this command, run by `sh`, print the password at each log-in, within the time for the
    /// log-in. Refused when there is another source.
    pub(crate) fn password_command(self, command: impl Into<String>) -> Result<Endpoint, Error> {
        self.with_password(Password::Command(command.into()))
    }

    fn with_password(self, password: Password) -> Result<Endpoint, Error> {
        if self.password.is_some() {
            return Err(Error::new(Kind::Config, "the password has more than one source")
                .hint("give it in the database url, by password_file, or by password_command"));
        }
        Ok(Endpoint { password: Some(password), ..self })
    }

    /// Host name, address, or directory of the Unix socket; of the first host.
    pub(crate) fn host(&self) -> &str {
        &self.first().name
    }

    /// TCP port, or the number in the Unix socket's name; of the first host.
    pub(crate) fn port(&self) -> u16 {
        self.first().port
    }

    /// The role to log in as.
    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    /// The database's name.
    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    /// `user@host:port/database`, with all hosts.
    pub(crate) fn describe(&self) -> String {
        format!("{}@{}/{}", self.user, self.address(), self.database)
    }

    /// `host:port`, with all hosts; an IPv6 address in brackets.
    pub(super) fn address(&self) -> String {
        self.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// The same for each host alone, in the order in which they are tried.
    pub(super) fn alternatives(&self) -> impl Iterator<Item = Endpoint> {
        self.hosts.iter().map(|host| Endpoint { hosts: vec![host.clone()], ..self.clone() })
    }

    /// Whether the host is the directory of a Unix socket.
    pub(super) fn is_socket(&self) -> bool {
        self.first().is_socket()
    }

    /// Where the password is to be had.
    pub(super) fn password_source(&self) -> Option<&Password> {
        self.password.as_ref()
    }

    /// The password, when the URL has it.
    #[cfg(test)]
    pub(super) fn password(&self) -> Option<&str> {
        match &self.password {
            Some(Password::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn application_name(&self) -> &str {
        &self.application_name
    }

    /// What the server is to set for this session, as `-c name=value`.
    pub(super) fn options(&self) -> Option<&str> {
        self.options.as_deref()
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    pub(super) fn target(&self) -> Target {
        self.target
    }

    pub(super) fn encryption(&self) -> &Encryption {
        &self.encryption
    }

    fn first(&self) -> &Host {
        self.hosts.first().expect("an endpoint has a host")
    }
}

impl Host {
    fn is_socket(&self) -> bool {
        self.name.starts_with('/')
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Host { name, port } = self;
        if name.contains(':') && !self.is_socket() {
            write!(f, "[{name}]:{port}")
        } else {
            write!(f, "{name}:{port}")
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Target::Any => "any",
            Target::ReadWrite => "read-write",
            Target::Primary => "primary",
        })
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("hosts", &self.hosts)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("application_name", &self.application_name)
            .field("connect_timeout", &self.connect_timeout)
            .field("target", &self.target)
            .field("encryption", &self.encryption)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
