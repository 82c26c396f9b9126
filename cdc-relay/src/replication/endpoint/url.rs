//! Reads a database URL.

use std::time::Duration;

use super::{Endpoint, Host, Target};
use crate::error::{Error, Kind};
use crate::replication::encryption::{
    Asked, ChannelBinding, Encryption, Negotiation, Roots, SslMode,
};
use crate::replication::password::Password;

/// The parameters a URL may carry.
const PARAMETERS: [&str; 17] = [
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "options",
    "password",
    "password_command",
    "password_file",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "target_session_attrs",
    "user",
];

/// Long enough for a slow name server and a loaded database, short enough for a standby that
/// must take over in seconds to try again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest time a URL may ask for: every wait is bounded.
const CONNECT_TIMEOUT_SECONDS_MAX: u64 = 600;

/// The most hosts a URL may name: each is waited for.
const HOSTS_MAX: usize = 16;

pub(super) fn parse(url: &str) -> Result<Endpoint, Error> {
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

/// What a URL has said so far.
#[derive(Default)]
struct Parts {
    /// Names and ports are lists that go together.
    hosts: Vec<String>,
    ports: Vec<Option<u16>>,
    user: Option<String>,
    password: Option<Password>,
    /// Sources of the password beyond the first.
    password_file: Option<String>,
    password_command: Option<String>,
    database: Option<String>,
    application_name: Option<String>,
    options: Option<String>,
    connect_timeout: Option<Duration>,
    target: Target,
    asked: Asked,
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
            parts.password = password
                .map(|password| decoded(password, "the password"))
                .transpose()?
                .map(Password::Text);
        }
        for place in address.split(',') {
            let (host, port) = split_address(place)?;
            parts.hosts.push(decoded(host, "the host")?);
            parts.ports.push(port.map(parse_port).transpose()?.flatten());
        }
        Ok(parts)
    }

    fn set(&mut self, parameter: &str) -> Result<(), Error> {
        let (name, value) = parameter
            .split_once('=')
            .ok_or_else(|| fault("a parameter of the database url has no value"))?;
        match name {
            "application_name" => self.application_name = Some(decoded(value, name)?),
            "channel_binding" => self.asked.channel_binding = parse_channel_binding(value)?,
            "connect_timeout" => self.connect_timeout = Some(parse_timeout(value)?),
            "dbname" => self.database = non_empty(decoded(value, name)?),
            "host" => {
                let hosts = decoded(value, name)?;
                self.hosts = hosts.split(',').map(str::to_owned).collect();
            }
            "options" => self.options = non_empty(decoded(value, name)?),
            "password" => self.password = Some(Password::Text(decoded(value, name)?)),
            "password_command" => self.password_command = non_empty(decoded(value, name)?),
            "password_file" => self.password_file = non_empty(decoded(value, name)?),
            "port" => {
                let ports = decoded(value, name)?;
                self.ports = ports.split(',').map(parse_port).collect::<Result<_, _>>()?;
            }
            "sslcert" => self.asked.certificate = non_empty(decoded(value, name)?).map(Into::into),
            "sslkey" => self.asked.key = non_empty(decoded(value, name)?).map(Into::into),
            "sslmode" => {
                let mode = SslMode::parse(value)
                    .ok_or_else(|| fault("sslmode in the database url is none of libpq's modes"))?;
                self.asked.mode = Some(mode);
            }
            "sslnegotiation" => self.asked.negotiation = parse_negotiation(value)?,
            "sslrootcert" => {
                self.asked.roots = non_empty(decoded(value, name)?).map(|roots| {
                    if roots == "system" { Roots::System } else { Roots::File(roots.into()) }
                });
            }
            "target_session_attrs" => self.target = parse_target(value)?,
            "user" => self.user = non_empty(decoded(value, name)?),
            _ => return Err(unknown_parameter(name)),
        }
        Ok(())
    }

    fn finish(self) -> Result<Endpoint, Error> {
        let hosts = pair(&self.hosts, &self.ports)?;
        let user = self.user.ok_or_else(|| {
            fault("the database url names no user")
                .hint("write it as postgres://user:password@host:port/database")
        })?;
        let sockets_only = hosts.iter().all(Host::is_socket);
        let mut endpoint = Endpoint {
            hosts,
            password: self.password,
            database: self.database.unwrap_or_else(|| user.clone()),
            user,
            application_name: self.application_name.unwrap_or_else(|| "cdc-relay".to_owned()),
            options: self.options,
            connect_timeout: self.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            target: self.target,
            encryption: Encryption::settle(self.asked, sockets_only)?,
        };
        if let Some(path) = self.password_file {
            endpoint = endpoint.password_file(path)?;
        }
        if let Some(command) = self.password_command {
            endpoint = endpoint.password_command(command)?;
        }
        Ok(endpoint)
    }
}

/// Each host with its port: one port serves all hosts, else there is one for each.
fn pair(names: &[String], ports: &[Option<u16>]) -> Result<Vec<Host>, Error> {
    if names.len() > HOSTS_MAX {
        return Err(fault(format!("the database url names more than {HOSTS_MAX} hosts")));
    }
    let ports: Vec<Option<u16>> = match ports {
        [] => vec![None; names.len()],
        [port] => vec![*port; names.len()],
        ports => ports.to_vec(),
    };
    if ports.len() != names.len() {
        return Err(fault(format!(
            "the database url names {} hosts and {} ports",
            names.len(),
            ports.len()
        ))
        .hint("give one port for all hosts, or one for each"));
    }
    let hosts = names.iter().zip(ports).map(|(name, port)| {
        let name = if name.is_empty() { "localhost" } else { name };
        Host { name: name.to_owned(), port: port.unwrap_or(5432) }
    });
    Ok(hosts.collect())
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

/// A port; an empty one is the default.
fn parse_port(text: &str) -> Result<Option<u16>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().ok().filter(|&port| port != 0).map(Some).ok_or_else(|| {
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

fn parse_channel_binding(text: &str) -> Result<ChannelBinding, Error> {
    Ok(match text {
        "disable" => ChannelBinding::Disable,
        "prefer" => ChannelBinding::Prefer,
        "require" => ChannelBinding::Require,
        _ => {
            return Err(fault(
                "channel_binding in the database url is none of disable, prefer and require",
            ));
        }
    })
}

fn parse_negotiation(text: &str) -> Result<Negotiation, Error> {
    match text {
        "postgres" => Ok(Negotiation::Postgres),
        "direct" => Ok(Negotiation::Direct),
        _ => Err(fault("sslnegotiation in the database url is neither postgres nor direct")),
    }
}

fn parse_target(text: &str) -> Result<Target, Error> {
    Ok(match text {
        "any" => Target::Any,
        "read-write" => Target::ReadWrite,
        "primary" => Target::Primary,
        "read-only" | "standby" | "prefer-standby" => {
            return Err(fault(format!(
                "target_session_attrs={text} in the database url is not supported: the relay needs a server that takes writes"
            ))
            .hint("use target_session_attrs=read-write"));
        }
        _ => {
            return Err(fault(
                "target_session_attrs in the database url is none of any, read-write and primary",
            ));
        }
    })
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
