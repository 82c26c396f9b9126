//! The roles of a managed Postgres, where nobody but a hidden owner is a superuser.

use std::path::PathBuf;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tailrace_outbox::journal::{self, Retention};
use tailrace_outbox::mapping::Mapping;
use tailrace_outbox::{Kind, Message, Outbox, Store, schema};
use tests::Site;
use tests::process::Process;

use crate::complaint::refuses;
use crate::run::{LEAD_MAX, PUBLISH_MAX, site, stop};

const SETTINGS: i32 = 2;
const PERMISSION: i32 = 3;
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// A leader that hangs is found by then, on a busy machine too; without the right to see it the server
/// takes a minute.
const TAKEOVER_MAX: Duration = Duration::from_secs(40);

const MAPPING: &str =
    "public.events=topic=${stream}, id:id:uuid, key:key, type:kind, payload:body, source=/service";

/// The roles of one test: roles belong to the whole server, so their names are the site's.
struct Roles<'s> {
    site: &'s Site,
}

impl Roles<'_> {
    fn name(&self, role: &str) -> String {
        format!("{}_{role}", self.site.slot)
    }

    /// As who owns the server, which a managed one keeps to itself.
    async fn hidden(&self, sql: &str) {
        let sql = sql.replace("{slot}", &self.site.slot);
        let sql = sql.replace("{database}", self.site.database.name());
        self.site
            .pool
            .execute(AssertSqlSafe(sql.clone()))
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// The URL of a role, with a password or without.
    fn url(&self, role: &str, password: &str) -> String {
        let (_, place) = self.site.url.split_once('@').expect("the url has a login");
        let colon = if password.is_empty() { "" } else { ":" };
        format!("postgres://{}{colon}{password}@{place}", self.name(role))
    }

    async fn connect(&self, role: &str) -> PgConnection {
        PgConnection::connect(&self.url(role, "one")).await.expect("the role may log in")
    }

    /// Starts a command of the sidecar as this role.
    fn starts(&self, url: &str, command: &[&str]) -> Process {
        let mut arguments = self.site.arguments(command);
        arguments.retain(|argument| !argument.starts_with("--database-url="));
        arguments.extend([format!("--database-url={url}"), format!("--table={MAPPING}")]);
        self.site.cdc_relay(&arguments)
    }

    async fn does(&self, url: &str, command: &[&str]) -> String {
        let mut process = self.starts(url, command);
        let status = process.ends(ANSWER_MAX).await;
        assert!(status.success(), "{command:?}: {status}:\n{}", process.log());
        process.log()
    }

    /// The group stands for `rds_superuser` and its like: much is granted to it, and it is no
    /// superuser. The database is the administrator's, as the provider's own console makes it.
    async fn make(&self) {
        for sql in [
            "create role \"{slot}_group\" nologin",
            "grant pg_monitor, pg_read_all_settings, pg_signal_backend to \"{slot}_group\"",
            "create role \"{slot}_admin\" login createrole createdb password 'one' in role \"{slot}_group\"",
            "create role \"{slot}_relay\" login replication password 'one'",
            "create role \"{slot}_service\" login password 'one'",
            "alter database \"{database}\" owner to \"{slot}_admin\"",
            "revoke all on database \"{database}\" from public",
            "grant connect on database \"{database}\" to public",
            "revoke all on schema public from public",
            "alter schema public owner to \"{slot}_admin\"",
        ] {
            self.hidden(sql).await;
        }
    }

    async fn drop(&self) {
        self.site.on_slot("select pg_drop_replication_slot($1)").await;
        for role in ["group", "admin", "relay", "service"] {
            self.hidden(&format!("drop owned by \"{{slot}}_{role}\" cascade")).await;
            let hand_back = "alter database \"{database}\" owner to current_user";
            self.hidden(hand_back).await;
            self.hidden(&format!("drop role \"{{slot}}_{role}\"")).await;
        }
    }
}

#[tokio::test]
async fn a_role_that_may_log_in_and_replicate_is_enough_at_run_time() {
    let site = site("roles").await;
    let roles = Roles { site: &site };
    roles.make().await;
    let mut admin = roles.connect("admin").await;
    schema::install(&mut admin).await.expect("the owner of the database may");
    journal::maintain(&mut admin, &Retention::default()).await.expect("the owner may");
    admin
        .execute("create table events (id uuid, key text, kind text, stream text, body jsonb)")
        .await
        .expect("a table of the service");
    let relay_url = roles.url("relay", "one");

    // It may not make the publication, and says what is to be run and by whom.
    let mut early = roles.starts(&relay_url, &["run"]);
    refuses(&mut early, PERMISSION, &["CREATE on the database", "CREATE PUBLICATION"]).await;
    let plan = roles.does(&relay_url, &["init", "--dry-run"]).await;
    assert!(plan.contains("by a role with CREATE on the database that owns"), "{plan}");
    let command = plan.lines().find(|line| line.starts_with("CREATE PUBLICATION"));
    let command = command.expect("the command is printed").to_owned();
    assert!(command.contains("\"tailrace\".outbox") && command.contains("events"), "{command}");
    admin.execute(AssertSqlSafe(command)).await.expect("who owns the tables may");

    assert!(roles.does(&relay_url, &["init"]).await.contains("kept from now on"));
    let mut relay = roles.starts(&relay_url, &["run", "--no-init"]);
    relay.says("leading", LEAD_MAX).await;
    let check = roles.does(&relay_url, &["check"]).await;
    assert!(!check.contains("fail "), "{check}");
    what_a_service_needs(&roles, &mut admin).await;
    stop(&mut relay).await;
    a_replay_needs_the_journal(&roles, &mut admin).await;
    a_standby_needs_to_see_the_leader(&roles).await;
    roles.drop().await;
}

/// A store that is a table needs INSERT on it, and USAGE on its schema; the log needs nothing.
async fn what_a_service_needs(roles: &Roles<'_>, admin: &mut PgConnection) {
    let site = roles.site;
    let mut service = roles.connect("service").await;
    let topic = site.topics.first().expect("a site has topics");
    let message = |key: &str| {
        let message = Message::builder(topic, "t.v1").source("/service").key(key).json(&1);
        message.build().expect("it keeps every rule")
    };
    let mapping: Mapping = MAPPING.parse().expect("a mapping");
    let stores = [
        (Store::Wal, ""),
        (
            Store::Journal,
            "grant usage on schema tailrace to \"{service}\"; \
             grant insert on tailrace.outbox to \"{service}\"",
        ),
        (
            Store::Table(mapping.clone()),
            "grant usage on schema public to \"{service}\"; \
             grant insert on public.events to \"{service}\"",
        ),
    ];
    for (number, (store, grants)) in stores.into_iter().enumerate() {
        let outbox = Outbox::new(store).slot(site.slot.clone());
        for grant in grants.split("; ").filter(|grant| !grant.is_empty()) {
            let refused = outbox.write(&mut service, &message("never")).await;
            assert_eq!(refused.map_err(|error| error.kind()), Err(Kind::Setup));
            let grant = grant.replace("{service}", &roles.name("service"));
            admin.execute(AssertSqlSafe(grant)).await.expect("the owner may");
        }
        outbox.check(&mut service).await.expect("messages would arrive");
        outbox.write(&mut service, &message("one")).await.expect("it may");
        outbox
            .write_all(&mut service, &[message("one"), message("one")])
            .await
            .expect("it may write many");
        let count = 3 * (number + 1);
        site.read_until(PUBLISH_MAX, move |seen| seen.len() >= count).await;
    }
}

async fn a_replay_needs_the_journal(roles: &Roles<'_>, admin: &mut PgConnection) {
    let relay_url = roles.url("relay", "one");
    let replay = ["replay", "--from", "2020-01-01"];
    refuses(&mut roles.starts(&relay_url, &replay), PERMISSION, &["permission denied"]).await;
    let relay = roles.name("relay");
    for grant in ["usage on schema tailrace", "select on tailrace.outbox"] {
        let grant = format!("grant {grant} to \"{relay}\"");
        admin.execute(AssertSqlSafe(grant)).await.expect("the owner may");
    }
    assert!(roles.does(&relay_url, &replay).await.contains("published 3 messages again"));
}

/// The one right beyond LOGIN and REPLICATION that changes how long a failure takes.
async fn a_standby_needs_to_see_the_leader(roles: &Roles<'_>) {
    let relay_url = roles.url("relay", "one");
    let mut leader = roles.starts(&relay_url, &["run"]);
    leader.says("leading", LEAD_MAX).await;
    let mut blind = roles.starts(&relay_url, &["run"]);
    blind.says("GRANT pg_read_all_stats", LEAD_MAX).await;
    stop(&mut blind).await;
    roles.hidden("grant pg_read_all_stats to \"{slot}_relay\"").await;
    let mut standby = roles.starts(&relay_url, &["run"]);
    standby.says("standing by", LEAD_MAX).await;
    leader.signal(rustix::process::Signal::STOP);
    standby.says("leading", TAKEOVER_MAX).await;
    drop(leader);
    stop(&mut standby).await;
}

#[tokio::test]
async fn whoever_runs_init_needs_create_on_the_database_and_no_superuser() {
    let site = site("init_by_admin").await;
    let roles = Roles { site: &site };
    roles.make().await;
    let mut admin = roles.connect("admin").await;
    admin
        .execute("create table events (id uuid, key text, kind text, stream text, body jsonb)")
        .await
        .expect("a table of the service");
    let admin_url = roles.url("admin", "one");

    let mut init = roles.starts(&admin_url, &["init"]);
    refuses(&mut init, PERMISSION, &["REPLICATION"]).await;
    roles.hidden("alter role \"{slot}_admin\" replication").await;
    assert!(roles.does(&admin_url, &["init"]).await.contains("kept from now on"));

    let mut relay = roles.starts(&roles.url("relay", "one"), &["run", "--no-init"]);
    relay.says("leading", LEAD_MAX).await;
    stop(&mut relay).await;
    roles.drop().await;
}

#[tokio::test]
async fn a_password_that_expires_is_read_anew_at_each_log_in() {
    let site = site("expiring").await;
    let roles = Roles { site: &site };
    roles.make().await;
    roles
        .hidden("create table events (id uuid, key text, kind text, stream text, body jsonb)")
        .await;
    roles.hidden("create publication tailrace for table events with (publish = 'insert', publish_via_partition_root = true)").await;
    let folder = std::env::temp_dir().join(tailrace_stack::unique("expiring"));
    std::fs::create_dir(&folder).expect("a folder is made");
    let secret = folder.join("password");
    let config = folder.join("relay.toml");
    let write = |path: &PathBuf, text: &str| std::fs::write(path, text).expect("it is written");
    let url = roles.url("relay", "");

    for (source, passwords) in [
        (format!("password_file = {secret:?}"), ["one", "two"]),
        (format!("password_command = \"cat {}\"", secret.display()), ["three", "four"]),
    ] {
        let [first, second] = passwords;
        write(&config, &format!("[database]\n{source}\n"));
        let expire = |password: &str| {
            format!("alter role \"{{slot}}_relay\" password '{password}' valid until 'infinity'")
        };
        roles.hidden(&expire(first)).await;
        write(&secret, first);
        let path = config.display().to_string();
        let mut relay = roles.starts(&url, &["run", "--config", &path]);
        relay.says("leading", LEAD_MAX).await;

        // The new one first, as a token is there before the old one has expired.
        write(&secret, second);
        roles.hidden(&expire(second)).await;
        let end =
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = '{slot}_relay'";
        roles.hidden(end).await;
        relay.says_times("leading", 2, LEAD_MAX).await;

        // A source that gives what has expired is told.
        roles.hidden("alter role \"{slot}_relay\" valid until '2020-01-01'").await;
        roles.hidden(end).await;
        refuses(&mut relay, PERMISSION, &["password authentication failed"]).await;
        for password in passwords {
            assert!(!relay.log().contains(&format!("'{password}'")), "{}", relay.log());
        }
    }
    std::fs::remove_dir_all(folder).expect("the folder goes");
    let missing = ["run", "--config", "/no/such/file.toml"];
    refuses(&mut roles.starts(&url, &missing), SETTINGS, &["/no/such/file.toml"]).await;
    roles.drop().await;
}
