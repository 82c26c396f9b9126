//! Settings and servers with which no relay can work: one error each, and nothing is lost.

use sqlx::Executor;
use tailrace_stack::{Needs, Stack};
use tests::Site;
use tests::writers::Dice;

use crate::complaint::refuses;
use crate::run::{LEAD_MAX, all_is_well, initialize, node, published, site, stop};

const SETTINGS: i32 = 2;
const PERMISSION: i32 = 3;
const UNAVAILABLE: i32 = 6;

#[tokio::test]
async fn a_wrong_setting_is_one_error_that_names_it_and_loses_nothing() {
    let site = site("bad_settings").await;
    initialize(&site).await;
    let mut dice = Dice::new("bad_settings");
    let written = site.write(8, 2, &mut dice).await;
    let name = site.database.name().to_owned();
    let url = site.database.url();
    let password = password(url);
    let with_url = |url: String| Wrong { url: Some(url), brokers: None };

    let elsewhere = with_url(url.replace(&port(url), ":1/"));
    let no_url = with_url(url.replace("postgres://", "mysql://"));
    let guess = with_url(url.replace(password, "hunter2"));
    let unknown = with_url(url.replace(&name, "no_such_database"));
    let encrypted = with_url(url.replace("sslmode=disable", "sslmode=require"));
    let silent = Wrong { url: None, brokers: Some("127.0.0.1:1".to_owned()) };
    let nothing = Wrong { url: Some(String::new()), brokers: Some(String::new()) };
    tokio::join!(
        elsewhere.refused(&site, UNAVAILABLE, &["postgres at 127.0.0.1:1", "port"]),
        no_url.refused(&site, SETTINGS, &["postgres://"]),
        guess.refused(&site, PERMISSION, &["password", "postgres"]),
        unknown.refused(&site, SETTINGS, &["no_such_database"]),
        encrypted.refused(&site, SETTINGS, &["sslmode", "require"]),
        silent.refused(&site, UNAVAILABLE, &["127.0.0.1:1", "KAFKA_BROKERS"]),
        nothing.refused(&site, SETTINGS, &["DATABASE_URL", "KAFKA_BROKERS"]),
    );

    let mut relay = site.cdc_relay(&site.run_arguments());
    relay.says("leading", LEAD_MAX).await;
    published(&site).await;
    stop(&mut relay).await;
    all_is_well(&site, &written).await;
}

#[tokio::test]
async fn a_server_set_up_wrongly_is_one_error_that_says_how_to_mend_it() {
    let stack = Stack::start(Needs::BOTH.breakable()).await.unwrap();
    let site = Site::new(&stack, "bad_server", 2, &node()).await;
    site.prepare_writers().await;

    site.pool.execute("alter system set wal_level = replica").await.unwrap();
    stack.postgres().restart().await.unwrap();
    let relay = &mut site.cdc_relay(&site.run_arguments());
    refuses(relay, SETTINGS, &["wal_level", "replica", "ALTER SYSTEM"]).await;

    site.pool.execute("alter system reset wal_level").await.unwrap();
    stack.postgres().restart().await.unwrap();
    let fill = "select pg_create_physical_replication_slot('full_' || n) \
                from generate_series(1, current_setting('max_replication_slots')::int) n";
    site.pool.execute(fill).await.unwrap();
    let relay = &mut site.cdc_relay(&site.run_arguments());
    refuses(relay, SETTINGS, &["slot", "max_replication_slots"]).await;

    site.pool.execute("select pg_drop_replication_slot('full_1')").await.unwrap();
    let mut relay = site.cdc_relay(&site.run_arguments());
    relay.says("leading", LEAD_MAX).await;
    let written = site.write(8, 2, &mut Dice::new("bad_server")).await;
    published(&site).await;
    stop(&mut relay).await;
    all_is_well(&site, &written).await;
}

/// What is given in place of the right settings.
struct Wrong {
    url: Option<String>,
    brokers: Option<String>,
}

impl Wrong {
    async fn refused(&self, site: &Site, code: i32, named: &[&str]) {
        let mut arguments = site.run_arguments();
        // The last of several values would be an error of its own.
        if let Some(url) = &self.url {
            arguments.retain(|argument| !argument.starts_with("--database-url"));
            arguments.push(format!("--database-url={url}"));
        }
        if let Some(brokers) = &self.brokers {
            arguments.retain(|argument| !argument.starts_with("--kafka-brokers"));
            arguments.push(format!("--kafka-brokers={brokers}"));
        }

        let log = refuses(&mut site.cdc_relay(&arguments), code, named).await;

        for secret in [password(site.database.url()), "hunter2"] {
            assert!(!log.contains(secret), "a password is in:\n{log}");
        }
    }
}

/// The password in `scheme://user:password@host`.
fn password(url: &str) -> &str {
    let (login, _) = url.split_once('@').expect("the stack's url has a login");
    login.rsplit_once(':').expect("the login has a password").1
}

/// The port in `@host:port/database`, with what stands around it.
fn port(url: &str) -> String {
    let (_, place) = url.split_once('@').expect("the stack's url has a login");
    let (_, port) = place.split_once(':').expect("the stack's url has a port");
    format!(":{}/", port.split('/').next().expect("a port ends"))
}
