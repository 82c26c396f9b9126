//! How clients reach a broker over TLS.

use std::fs;
use std::path::PathBuf;

use crate::certificates::{Certificates, write_secret};
use crate::unique::random;

const USER: &str = "tailrace";
/// The same as rights are given to it.
pub(super) const PRINCIPAL: &str = "User:tailrace";

/// How a client proves who it is to a broker with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// A password that the broker knows only as a salted hash.
    ScramSha512,
    /// A password in clear text, inside TLS.
    Plain,
    /// A token that the client signs with nothing, as brokers take it for tests alone.
    OAuthBearer,
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
            Mechanism::Plain => "PLAIN",
            Mechanism::OAuthBearer => "OAUTHBEARER",
        }
    }
}

/// What the brokers of one Kafka have in common.
#[derive(Clone, Debug)]
pub(super) struct Secure {
    password: String,
    ca: PathBuf,
    server_certificate: PathBuf,
    server_key: PathBuf,
}

impl Secure {
    pub(super) fn new(certificates: &Certificates) -> Self {
        Secure {
            password: format!("{:016x}", random()),
            ca: certificates.ca(),
            server_certificate: certificates.server_certificate(),
            server_key: certificates.server_key(),
        }
    }

    /// What librdkafka, and the clients on top of it, are to be configured with.
    pub(super) fn client(
        &self,
        brokers: String,
        mechanism: Mechanism,
    ) -> Vec<(&'static str, String)> {
        let mut client = vec![
            ("bootstrap.servers", brokers),
            ("security.protocol", "SASL_SSL".to_owned()),
            ("sasl.mechanism", mechanism.name().to_owned()),
            ("ssl.ca.location", self.ca.display().to_string()),
        ];
        client.extend(match mechanism {
            Mechanism::ScramSha512 | Mechanism::Plain => {
                [("sasl.username", USER.to_owned()), ("sasl.password", self.password.clone())]
            }
            Mechanism::OAuthBearer => [
                ("enable.sasl.oauthbearer.unsecure.jwt", "true".to_owned()),
                ("sasl.oauthbearer.config", format!("principal={USER}")),
            ],
        });
        client
    }

    /// Writes key and certificate into the one file in which Kafka wants both.
    pub(super) fn write(&self, keystore: &std::path::Path) -> std::io::Result<()> {
        let key = fs::read_to_string(&self.server_key)?;
        write_secret(keystore, &(key + &fs::read_to_string(&self.server_certificate)?))
    }

    /// The properties of the listener `SECURE`.
    pub(super) fn properties(&self) -> String {
        let (scram, plain) = ("scram.ScramLoginModule", "plain.PlainLoginModule");
        let bearer = "oauthbearer.OAuthBearerLoginModule";
        let module = "org.apache.kafka.common.security";
        let password = &self.password;
        format!(
            "listener.name.secure.ssl.keystore.type=PEM
listener.name.secure.ssl.keystore.location={KEYSTORE}
listener.name.secure.sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN,OAUTHBEARER
listener.name.secure.scram-sha-512.sasl.jaas.config={module}.{scram} required;
listener.name.secure.plain.sasl.jaas.config={module}.{plain} required user_{USER}=\"{password}\";
listener.name.secure.oauthbearer.sasl.jaas.config={module}.{bearer} required unsecuredLoginStringClaim_sub=\"{USER}\";
"
        )
    }

    /// The user for the SCRAM mechanism, as the tool that formats a data directory takes it.
    pub(super) fn user(&self) -> String {
        format!("SCRAM-SHA-512=[name={USER},password={}]", self.password)
    }
}

/// The name of the file with key and certificate, in the broker's directory.
pub(super) const KEYSTORE: &str = "server.pem";
