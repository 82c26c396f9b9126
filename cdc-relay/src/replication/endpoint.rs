//! Where the database is, and who asks.

use std::fmt;
use std::time::Duration;

use crate::error::{Error, Kind};

/// The parameters a URL may carry.
const PARAMETERS: [&str; 8] = [
    "application_name",
    "connect_timeout",
    "dbname",
    "host",
    "password",
    "port",
    "sslmode",
    "user",
];

/// Long enough for a slow name server and a loaded database, short enough for a standby that
/// must take over in seconds to try again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest time a URL may ask for: every wait is bounded.
const CONNECT_TIMEOUT_SECONDS_MAX: u64 = 600;

/// Address, database, role and password, as read from a URL.
///
/// `Debug` and [`Endpoint::describe`] leave the password out.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    host: String,
    port: u16,
    user: String,
    password: Option<String>,
    database: String,
    application_name: String,
    connect_timeout: Duration,
}

impl Endpoint {
    /// Reads a URL of libpq's form, `postgres://user:password@host:port/database?name=value`
    /// (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS>).
    ///
    /// Percent-encoding is undone. The host may be an IPv6 address in brackets, or the directory
    /// of a Unix socket, percent-encoded in place or as `?host=/dir`. Parameters win over the
    /// part before them. The user is required. Defaults: host `localhost`, port 5432, database =
    /// the user's name, `application_name` `cdc-relay`, `connect_timeout` 10 s.
    ///
    /// This version has no TLS: any `sslmode` other than `disable` is refused, as it asks for
    /// what would not be done. No error repeats any part that may hold a piece of the password.
    pub(crate) fn parse(url: &str) -> Result<Endpoint, Error> {
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or_else(|| fault("the database url does not begin with postgres://"))?;
        let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let mut parts = Parts::from_authority(authority)?;
        if !database.is_empty() {
            parts.database = Some(decoded(database, "the database name")?);
        }
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            parts.set(parameter)?;
        }
        parts.finish()
    }

    /// Host name, address, or directory of the Unix socket.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// TCP port, or the number in the Unix socket's name.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The role to log in as.
    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    /// The database's name.
    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    /// `user@host:port/database`.
    pub(crate) fn describe(&self) -> String {
        format!("{}@{}/{}", self.user, self.address(), self.database)
    }

    /// `host:port`; an IPv6 address in brackets.
    pub(super) fn address(&self) -> String {
        if self.host.contains(':') && !self.is_socket() {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Whether the host is the directory of a Unix socket.
    pub(super) fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }

    pub(super) fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    pub(super) fn application_name(&self) -> &str {
        &self.application_name
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("application_name", &self.application_name)
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

/// What a URL has said so far.
#[derive(Default)]
struct Parts {
    host: Option<String>,
    port: Option<u16>,
    user: Option<String>,
    password: Option<String>,
    database: Option<String>,
    application_name: Option<String>,
    connect_timeout: Option<Duration>,
}

impl Parts {
    fn from_authority(authority: &str) -> Result<Self, Error> {
        let mut parts = Parts::default();
        // The last `@`: a password with an unencoded one in it is taken whole, and no piece of
        // it ends up as a host name in an error text.
        let (login, address) = match authority.rsplit_once('@') {
            Some((login, address)) => (Some(login), address),
            None => (None, authority),
        };
        if let Some(login) = login {
            let (user, password) = match login.split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (login, None),
            };
            parts.user = non_empty(decoded(user, "the user name")?);
            parts.password =
                password.map(|password| decoded(password, "the password")).transpose()?;
        }
        let (host, port) = split_address(address)?;
        parts.host = non_empty(decoded(host, "the host")?);
        if let Some(port) = port.filter(|port| !port.is_empty()) {
            parts.port = Some(parse_port(port)?);
        }
        Ok(parts)
    }

    fn set(&mut self, parameter: &str) -> Result<(), Error> {
        let (name, value) = parameter
            .split_once('=')
            .ok_or_else(|| fault("a parameter of the database url has no value"))?;
        match name {
            "application_name" => self.application_name = Some(decoded(value, name)?),
            "connect_timeout" => self.connect_timeout = Some(parse_timeout(value)?),
            "dbname" => self.database = non_empty(decoded(value, name)?),
            "host" => self.host = non_empty(decoded(value, name)?),
            "password" => self.password = Some(decoded(value, name)?),
            "port" => self.port = Some(parse_port(value)?),
            "sslmode" => check_sslmode(value)?,
            "user" => self.user = non_empty(decoded(value, name)?),
            _ => return Err(unknown_parameter(name)),
        }
        Ok(())
    }

    fn finish(self) -> Result<Endpoint, Error> {
        let user = self.user.ok_or_else(|| {
            fault("the database url names no user")
                .hint("write it as postgres://user:password@host:port/database")
        })?;
        let host = self.host.unwrap_or_else(|| "localhost".to_owned());
        if host.contains(',') {
            return Err(fault("the database url names several hosts; this version takes one"));
        }
        Ok(Endpoint {
            host,
            port: self.port.unwrap_or(5432),
            password: self.password,
            database: self.database.unwrap_or_else(|| user.clone()),
            user,
            application_name: self.application_name.unwrap_or_else(|| "cdc-relay".to_owned()),
            connect_timeout: self.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
        })
    }
}

/// Host and port; an IPv6 address stands in brackets, since it has colons of its own.
fn split_address(address: &str) -> Result<(&str, Option<&str>), Error> {
    let Some(bracketed) = address.strip_prefix('[') else {
        return Ok(match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        });
    };
    let (host, rest) = bracketed
        .split_once(']')
        .ok_or_else(|| fault("the database url has an address with an opening bracket only"))?;
    if rest.is_empty() {
        return Ok((host, None));
    }
    let port = rest
        .strip_prefix(':')
        .ok_or_else(|| fault("the database url has text between the address and the port"))?;
    Ok((host, Some(port)))
}

fn parse_port(text: &str) -> Result<u16, Error> {
    text.parse().ok().filter(|&port| port != 0).ok_or_else(|| {
        fault("the database url has a port that is not a number from 1 to 65535")
            .hint("a password with / or ? in it must be percent-encoded: %2F, %3F")
    })
}

fn parse_timeout(text: &str) -> Result<Duration, Error> {
    let seconds =
        text.parse().ok().filter(|seconds| (1..=CONNECT_TIMEOUT_SECONDS_MAX).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| {
        fault(format!(
            "connect_timeout in the database url is not a number of seconds from 1 to {CONNECT_TIMEOUT_SECONDS_MAX}"
        ))
    })
}

fn check_sslmode(mode: &str) -> Result<(), Error> {
    match mode {
        "disable" => Ok(()),
        "allow" | "prefer" | "require" | "verify-ca" | "verify-full" => Err(fault(format!(
            "sslmode={mode} in the database url is not supported: this version has no TLS"
        ))
        .hint("connect over a trusted network or a Unix socket with sslmode=disable")),
        _ => Err(fault("sslmode in the database url is none of libpq's modes")
            .hint("this version takes sslmode=disable")),
    }
}

fn unknown_parameter(name: &str) -> Error {
    let known = format!("known parameters: {}", PARAMETERS.join(", "));
    // A name with other characters may be the tail of a password that was not encoded.
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
        fault(format!("the database url has an unknown parameter `{name}`")).hint(known)
    } else {
        fault("the database url has an unknown parameter").hint(known)
    }
}

/// Undoes percent-encoding; a plus sign stands for itself, as in libpq.
fn decoded(text: &str, what: &str) -> Result<String, Error> {
    let wrong = || fault(format!("{what} in the database url is not percent-encoded UTF-8 text"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(wrong().hint("write a percent sign as %25"));
        };
        bytes.push((high * 16 + low) as u8);
    }
    // The protocol ends strings with a zero byte: one inside would cut the text short.
    if bytes.contains(&0) {
        return Err(wrong());
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn fault(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Kind::Config, text)
}

#[cfg(test)]
mod tests;
