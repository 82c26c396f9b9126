//! The certificates of a stack that speaks TLS, made anew for each.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::error::{Error, Kind};
use crate::home::{Farewell, Home};
use crate::settings::Settings;

/// The names under which the servers can be reached.
const SERVER_NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

/// A name under which they cannot; `.test` is reserved for that (RFC 6761).
const ELSEWHERE: &str = "elsewhere.test";

/// The files with which servers and clients of one stack prove who they are, all in PEM.
///
/// They are made when the stack starts and removed with it. The servers' certificate is signed by
/// [`ca`](Certificates::ca) and valid for `localhost` and `127.0.0.1`. Postgres has one more for the
/// same key, valid for `elsewhere.test` alone, which it shows after
/// `alter system set ssl_cert_file = 'misnamed.pem'` and `select pg_reload_conf()`.
///
/// ```no_run
/// # async fn example() -> Result<(), tailrace_stack::Error> {
/// # use tailrace_stack::{Login, Needs, Stack};
/// let stack = Stack::start(Needs::POSTGRES.tls()).await?;
/// let url = stack.postgres().tls_url(Login::Scram);
/// // Whoever trusts another authority must refuse the server.
/// let (ca, other) = (stack.certificates().ca(), stack.certificates().other_ca());
/// let refused = url.replace(ca.to_str().unwrap(), other.to_str().unwrap());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Certificates {
    home: Home,
}

impl Certificates {
    pub(crate) fn create(settings: &Settings) -> Result<Self, Error> {
        let home = Home::create(&settings.temporary, "tailrace_tls", Farewell::Kill, None)?;
        let certificates = Certificates { home };
        certificates.fill().map_err(|error| {
            Error::new(Kind::Server, "cannot make certificates").caused_by(error)
        })?;
        Ok(certificates)
    }

    /// The certificate of the authority that signed all others here.
    pub fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// The certificate of an authority that signed none of them.
    pub fn other_ca(&self) -> PathBuf {
        self.path("other_ca.pem")
    }

    /// A client's certificate, for the user of
    /// [`Login::Certificate`](crate::Login::Certificate).
    pub fn client_certificate(&self) -> PathBuf {
        self.path("client.pem")
    }

    /// The key to [`client_certificate`](Certificates::client_certificate).
    pub fn client_key(&self) -> PathBuf {
        self.path("client.key")
    }

    pub(crate) fn server_certificate(&self) -> PathBuf {
        self.path("server.pem")
    }

    pub(crate) fn misnamed_certificate(&self) -> PathBuf {
        self.path("misnamed.pem")
    }

    pub(crate) fn server_key(&self) -> PathBuf {
        self.path("server.key")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn fill(&self) -> Result<(), std::io::Error> {
        let refused = std::io::Error::other;
        let ca = Authority::new("tailrace stack").map_err(refused)?;
        fs::write(self.ca(), &ca.certificate)?;
        let other = Authority::new("somebody else").map_err(refused)?;
        fs::write(self.other_ca(), other.certificate)?;
        let key = KeyPair::generate().map_err(refused)?;
        let sign = |hosts: &[&str]| {
            ca.sign("server", hosts, ExtendedKeyUsagePurpose::ServerAuth, &key).map_err(refused)
        };
        fs::write(self.server_certificate(), sign(&SERVER_NAMES)?)?;
        fs::write(self.misnamed_certificate(), sign(&[ELSEWHERE])?)?;
        write_secret(&self.server_key(), &key.serialize_pem())?;
        let key = KeyPair::generate().map_err(refused)?;
        let client = ca.sign(CLIENT, &[], ExtendedKeyUsagePurpose::ClientAuth, &key);
        fs::write(self.client_certificate(), client.map_err(refused)?)?;
        write_secret(&self.client_key(), &key.serialize_pem())
    }
}

/// The name in the client's certificate, which is that of its user.
pub(crate) const CLIENT: &str = "certificate";

/// Who signs.
struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::new([])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Authority { certificate, issuer: Issuer::new(params, key) })
    }

    /// A certificate for the owner of this key.
    fn sign(
        &self,
        name: &str,
        hosts: &[&str],
        purpose: ExtendedKeyUsagePurpose,
        key: &KeyPair,
    ) -> Result<String, rcgen::Error> {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }
}

/// Readable by its owner alone, which servers and clients of Postgres insist on.
pub(crate) fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())
}
