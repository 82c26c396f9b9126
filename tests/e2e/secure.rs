//! Encrypted and authenticated on both sides, against servers with certificates.

use tailrace_stack::{Login, Mechanism, Needs, Stack};
use tests::Site;
use tests::process::Process;
use tests::writers::{Dice, Written};
use tokio::sync::OnceCell;

use crate::complaint::refuses;
use crate::run::{LEAD_MAX, all_is_well, node, published, stop};

const SETTINGS: i32 = 2;
const PERMISSION: i32 = 3;
const UNAVAILABLE: i32 = 6;

/// A stack with TLS, for the tests of this file.
async fn stack() -> &'static Stack {
    static STACK: OnceCell<Stack> = OnceCell::const_new();
    STACK.get_or_init(async || Stack::start(Needs::BOTH.tls()).await.expect("it starts")).await
}

/// How the relay comes to both servers.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) url: String,
    kafka: Vec<(&'static str, String)>,
}

impl Way {
    pub(crate) fn right(stack: &Stack, site: &Site, mechanism: Mechanism) -> Way {
        let kafka = stack.kafka().secure_client(mechanism);
        Way { url: site.database.tls_url(Login::Scram), kafka }
    }

    /// The same with another value of a Kafka setting.
    fn with(&self, name: &'static str, value: &str) -> Way {
        let mut way = self.clone();
        way.kafka.retain(|(given, _)| *given != name);
        way.kafka.push((name, value.to_owned()));
        way
    }

    fn setting(&self, name: &str) -> &str {
        let found = self.kafka.iter().find(|(given, _)| *given == name);
        found.map(|(_, value)| value.as_str()).expect("it is set")
    }

    fn run(&self, site: &Site) -> Process {
        self.starts(site, &["run"])
    }

    /// Starts a command of the sidecar.
    pub(crate) fn starts(&self, site: &Site, command: &[&str]) -> Process {
        let mut arguments = site.arguments(command);
        arguments.retain(|argument| {
            !argument.starts_with("--database-url=") && !argument.starts_with("--kafka-brokers=")
        });
        arguments.push(format!("--database-url={}", self.url));
        for (name, value) in &self.kafka {
            arguments.push(match *name {
                "bootstrap.servers" => format!("--kafka-brokers={value}"),
                name => format!("--kafka-property={name}={value}"),
            });
        }
        site.cdc_relay(&arguments)
    }
}

#[tokio::test]
async fn over_sasl_ssl_and_verify_full_each_message_is_published_once_through_restarts() {
    let stack = stack().await;
    let site = Site::new(stack, "secure", 2, &node()).await;
    site.prepare_writers().await;
    let mut dice = Dice::new("secure");
    let mut written = Written::default();

    for mechanism in [Mechanism::ScramSha512, Mechanism::Plain, Mechanism::OAuthBearer] {
        let way = Way::right(stack, &site, mechanism);
        let mut killed = way.run(&site);
        killed.says("leading", LEAD_MAX).await;
        written.add(site.write(12, 2, &mut dice).await);
        killed.signal(rustix::process::Signal::KILL);
        killed.ends(LEAD_MAX).await;
        written.add(site.write(12, 2, &mut dice).await);
        let mut relay = way.run(&site);
        relay.says("leading", LEAD_MAX).await;
        published(&site).await;
        let mut check = way.starts(&site, &["check"]);
        let status = check.ends(LEAD_MAX).await;
        let is_good = status.success() && !check.log().contains("can not be seen");
        assert!(is_good, "{mechanism:?}:\n{}", check.log());
        stop(&mut relay).await;
    }

    all_is_well(&site, &written).await;
}

#[tokio::test]
async fn what_is_wrong_with_tls_or_a_log_in_is_one_error_that_names_its_setting() {
    let stack = stack().await;
    let site = Site::new(stack, "insecure", 1, &node()).await;
    let right = Way::right(stack, &site, Mechanism::ScramSha512);
    let ca = stack.certificates().ca().display().to_string();
    let other_ca = stack.certificates().other_ca().display().to_string();
    // The same address by a name that is in no certificate.
    let elsewhere = right.setting("bootstrap.servers").replace("localhost", "127.1");
    let url = |from: &str, to: &str| Way { url: right.url.replace(from, to), ..right.clone() };
    let (login, _) = right.url.split_once('?').expect("the url has parameters");
    let plainly = Way { url: format!("{login}?sslmode=disable"), ..right.clone() };
    let password = right.url.split(['@', ':']).nth(2).expect("the login has a password");

    let certain = [
        (right.with("ssl.ca.location", &other_ca), SETTINGS, "ssl.ca.location"),
        (right.with("bootstrap.servers", &elsewhere), SETTINGS, "another host name"),
        (right.with("sasl.password", "hunter2"), PERMISSION, "sasl.password"),
        (right.with("sasl.username", "nobody"), PERMISSION, "sasl.username"),
        (right.with("sasl.mechanism", "SCRAM-SHA-256"), SETTINGS, "sasl.mechanism"),
        (url(&ca, &other_ca), SETTINGS, "sslrootcert"),
        (url("@127.0.0.1", "@127.1"), SETTINGS, "no name that a certificate can have"),
        (url(password, "hunter2"), PERMISSION, "password of role \"scram\""),
        (plainly, PERMISSION, "sslmode=disable"),
    ];
    // A broker that is starting ends connections too, so these are waited for.
    let ended = [
        (right.with("security.protocol", "PLAINTEXT"), UNAVAILABLE, "security.protocol"),
        (right.with("security.protocol", "SASL_PLAINTEXT"), UNAVAILABLE, "security.protocol"),
        (right.with("bootstrap.servers", &site.brokers), UNAVAILABLE, "security.protocol"),
    ];
    let refused = async |(way, code, named): &(Way, i32, &str)| {
        let log = refuses(&mut way.run(&site), *code, &[named]).await;
        for secret in ["hunter2", password, right.setting("sasl.password")] {
            assert!(!log.contains(secret), "a password is in:\n{log}");
        }
    };
    let [plain, sasl, encrypted] = &ended;
    let at_once = async {
        for case in &certain {
            refused(case).await;
        }
    };
    tokio::join!(at_once, refused(plain), refused(sasl), refused(encrypted));
}
