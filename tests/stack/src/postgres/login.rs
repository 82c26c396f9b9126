//! How clients log in over TLS.

use std::path::Path;

use sqlx::Executor;

use super::connect;
use crate::certificates::{CLIENT, Certificates};
use crate::unique::random;

/// How a client proves who it is to a Postgres with TLS. Each is a superuser of its own that is
/// refused without TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// By a password, with SCRAM-SHA-256.
    Scram,
    /// By a password whose MD5 is stored.
    Md5,
    /// By a client certificate alone.
    Certificate,
}

impl Login {
    const ALL: [Login; 3] = [Login::Scram, Login::Md5, Login::Certificate];

    fn user(self) -> &'static str {
        match self {
            Login::Scram => "scram",
            Login::Md5 => "md5",
            Login::Certificate => CLIENT,
        }
    }
}

/// The lines that come first in `pg_hba.conf`. Those after them allow every user a password with
/// SCRAM.
pub(super) const ACCESS: &str = r#"
hostnossl all,replication "scram","md5","certificate" all reject
hostssl all,replication "md5" all md5
hostssl all,replication "certificate" all cert
"#;

/// What the URLs are made of.
#[derive(Clone, Debug)]
pub(super) struct Logins {
    port: u16,
    password: String,
    ca: String,
    certificate: String,
    key: String,
}

impl Logins {
    /// Makes the users, by the superuser's URL.
    pub(super) async fn create(
        url: &str,
        port: u16,
        certificates: &Certificates,
    ) -> Result<Self, sqlx::Error> {
        let password = format!("{:016x}", random());
        let mut connection = connect(url).await?;
        for login in Login::ALL {
            let user = login.user();
            let stored = match login {
                Login::Md5 => "md5",
                Login::Scram | Login::Certificate => "scram-sha-256",
            };
            let statements = format!(
                r#"set password_encryption = '{stored}';
                create role "{user}" login superuser password '{password}'"#
            );
            connection.execute(sqlx::AssertSqlSafe(statements)).await?;
        }
        Ok(Logins {
            port,
            password,
            ca: encoded(&certificates.ca()),
            certificate: encoded(&certificates.client_certificate()),
            key: encoded(&certificates.client_key()),
        })
    }

    /// The same users on another server, which is a copy.
    pub(super) fn at(&self, port: u16) -> Self {
        Logins { port, ..self.clone() }
    }

    pub(super) fn url(&self, database: &str, login: Login) -> String {
        let Logins { port, password, ca, certificate, key } = self;
        let user = login.user();
        let (proof, parameters) = match login {
            Login::Scram | Login::Md5 => (format!(":{password}"), String::new()),
            Login::Certificate => (String::new(), format!("&sslcert={certificate}&sslkey={key}")),
        };
        format!(
            "postgres://{user}{proof}@127.0.0.1:{port}/{database}\
             ?sslmode=verify-full&sslrootcert={ca}{parameters}"
        )
    }
}

/// A path as the value of a parameter.
fn encoded(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let encode = |byte: &u8| match byte {
        b'/' | b'-' | b'_' | b'.' | b'~' => char::from(*byte).to_string(),
        _ if byte.is_ascii_alphanumeric() => char::from(*byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    path.as_os_str().as_bytes().iter().map(encode).collect()
}
