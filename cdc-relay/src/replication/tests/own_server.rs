//! Faults that take a server down or set it up wrong: each test has a server to itself.

use tailrace_stack::{Needs, Postgres, Replication, Stack};
use tokio::time::{Instant, timeout};

use super::log_in::refusal;
use super::server::{DEADLINE, Source, until_commits, until_error};
use crate::error::Kind;
use crate::replication::{Client, Endpoint, Event, quote_identifier, quote_literal};

async fn own_server() -> Stack {
    Stack::start(Needs::POSTGRES.breakable()).await.unwrap()
}

impl Source {
    /// Goes on after the server was down.
    async fn reconnect(&mut self) {
        self.sql = Client::connect(&self.endpoint).await.unwrap();
    }
}

#[tokio::test]
async fn each_way_of_logging_in_is_taken_or_refused_as_it_should() {
    let stack = own_server().await;
    let mut source = Source::on(stack.postgres(), "logging_in").await;
    let ways = ["trust", "md5", "password", "reject", "scram-sha-256"];
    for way in ways {
        let stored = if way == "md5" { "md5" } else { "scram-sha-256" };
        let role = quote_identifier(way);
        source
            .run(&format!(
                "SET password_encryption = '{stored}';
                 CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'secret'"
            ))
            .await;
    }
    let file = source.value("SHOW hba_file").await;
    // Writing the file empties it first.
    let rest = quote_literal(&source.value(&format!("SELECT pg_read_file('{file}')")).await);
    let lines = ways.map(|way| format!(r#"('host all "{way}" all {way}')"#)).join(", ");
    source
        .run(&format!(
            "COPY (SELECT * FROM (VALUES {lines}) AS added
                   UNION ALL SELECT regexp_split_to_table(replace({rest}, E'\\t', ' '), '\\n'))
             TO '{file}'"
        ))
        .await;
    source.run("SELECT pg_reload_conf()").await;
    let endpoint = |way: &str, password: &str| {
        source.endpoint_with(&format!("user={way}&password={password}"))
    };

    // The reload is not at once; until then a password is asked for, and this one is wrong.
    let deadline = Instant::now() + DEADLINE;
    while let Err(error) = Client::connect(&endpoint("trust", "wrong")).await {
        assert!(Instant::now() < deadline, "{error}");
    }
    for way in ["md5", "scram-sha-256"] {
        Client::connect(&endpoint(way, "secret")).await.unwrap();
        let error = refusal(&endpoint(way, "wrong")).await;
        assert_eq!(error.sqlstate(), Some("28P01"), "{way}");
    }
    let error = refusal(&endpoint("password", "secret")).await;
    assert_eq!(error.kind(), Kind::Permission);
    assert!(error.to_string().contains("clear text"), "{error}");
    let error = refusal(&endpoint("reject", "secret")).await;
    assert_eq!((error.kind(), error.sqlstate()), (Kind::Permission, Some("28000")));
    assert!(error.mend().unwrap().contains("pg_hba.conf"));
}

#[tokio::test]
async fn a_killed_server_ends_the_stream_and_later_everything_comes_again() {
    let stack = own_server().await;
    let mut source = Source::on(stack.postgres(), "a_killed_server").await;
    source.make_slot().await;
    source.run("SELECT pg_logical_emit_message(true, 'p', 'a')").await;
    let mut stream = source.stream().await;
    let before = until_commits(&mut stream, 1).await;

    stack.postgres().kill().await.unwrap();
    let error = until_error(&mut stream).await;
    let down = refusal(&source.endpoint).await;
    stack.postgres().restart().await.unwrap();

    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert_eq!(down.kind(), Kind::Unavailable, "{down}");
    assert_eq!(until_commits(&mut source.stream().await, 1).await, before);
}

#[tokio::test]
async fn a_server_that_stops_in_order_tells_so() {
    let stack = own_server().await;
    let mut source = Source::on(stack.postgres(), "a_server_that_stops").await;
    source.make_slot().await;
    let mut stream = source.stream().await;
    let status = stream.status();
    // The server does not stop before its last position has been reported back.
    let until_end = async {
        loop {
            match timeout(DEADLINE, stream.next()).await.expect("the stream ends") {
                Ok(Event::Keepalive { wal_end, .. }) => status.flushed(wal_end),
                Ok(Event::Data { .. } | Event::Unread { .. }) => {}
                Err(error) => break error,
            }
        }
    };

    let (stopped, error) = tokio::join!(stack.postgres().stop(), until_end);

    stopped.unwrap();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(error.to_string().contains("ended the stream"), "{error}");
}

#[tokio::test]
async fn a_slot_whose_log_is_gone_is_a_gap() {
    let stack = own_server().await;
    let mut source = Source::on(stack.postgres(), "log_is_gone").await;
    source.make_slot().await;
    source.run("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'").await;
    source.run("ALTER SYSTEM SET max_wal_size = '32MB'").await;
    source.run("ALTER SYSTEM SET min_wal_size = '32MB'").await;
    source.run("SELECT pg_reload_conf()").await;

    let slot = quote_literal(&source.slot);
    let lost =
        format!("SELECT wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = {slot}");
    let deadline = Instant::now() + DEADLINE;
    while source.value(&lost).await != "t" {
        assert!(Instant::now() < deadline, "the slot keeps its log");
        source.run("SELECT pg_logical_emit_message(false, 'p', ''), pg_switch_wal()").await;
        source.run("CHECKPOINT").await;
    }
    let error = source.try_stream().await.err().unwrap();

    assert_eq!((error.kind(), error.sqlstate()), (Kind::Gap, Some("55000")), "{error}");
    assert!(error.mend().unwrap().contains("wal_status"), "{error:?}");
}

#[tokio::test]
async fn limits_and_a_wrong_wal_level_are_told_with_the_setting_to_change() {
    let stack = own_server().await;
    let mut source = Source::on(stack.postgres(), "limits").await;
    source.run("ALTER SYSTEM SET max_replication_slots = 1").await;
    source.run("ALTER SYSTEM SET max_wal_senders = 2").await;
    stack.postgres().restart().await.unwrap();
    source.reconnect().await;
    let slot = source.slot.clone();
    source.make_slot().await;

    source.slot = format!("{slot}_2");
    let no_slot = source.try_make_slot().await.unwrap_err();
    let other = Client::connect(&source.endpoint).await.unwrap();
    let no_sender = refusal(&source.endpoint).await;
    drop(other);
    source.run(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    source.run("ALTER SYSTEM SET wal_level = replica").await;
    stack.postgres().restart().await.unwrap();
    source.reconnect().await;
    let no_making = source.try_make_slot().await.unwrap_err();
    let no_decoding = source.try_stream().await.err().unwrap();

    for (error, kind, code, setting) in [
        (no_slot, Kind::Server, "53400", "max_replication_slots"),
        (no_sender, Kind::Unavailable, "53300", "max_wal_senders"),
        (no_making, Kind::Server, "55000", "wal_level = logical"),
        (no_decoding, Kind::Server, "55000", "wal_level = logical"),
    ] {
        assert_eq!((error.kind(), error.sqlstate()), (kind, Some(code)), "{error}");
        assert!(error.mend().unwrap().contains(setting), "{error:?}");
    }
}

#[tokio::test]
async fn of_several_servers_the_one_that_takes_writes_is_found_also_after_a_failover() {
    let stack = own_server().await;
    let standby = stack.postgres().standby(Replication::Synchronous).await.unwrap();
    let place = |url: &str| url.rsplit_once('@').unwrap().1.split('/').next().unwrap().to_owned();
    let (first, second) = (place(standby.url()), place(stack.postgres().url()));
    let login = stack.postgres().url().rsplit_once('@').unwrap().0.to_owned();
    let endpoint = |target: &str| {
        let parameters = format!("sslmode=disable&target_session_attrs={target}");
        let url = format!("{login}@{first},{second}/postgres?{parameters}");
        Endpoint::parse(&url).unwrap()
    };
    let port = "SELECT current_setting('port')";
    let expected = |postgres: &Postgres| Some(postgres.port().to_string());

    for (target, postgres) in
        [("any", &standby), ("primary", stack.postgres()), ("read-write", stack.postgres())]
    {
        let mut client = Client::connect(&endpoint(target)).await.unwrap();
        let rows = client.query(port).await.unwrap();
        assert_eq!(rows[0].get(0).map(str::to_owned), expected(postgres), "{target}");
    }
    stack.postgres().kill().await.unwrap();
    let none = refusal(&endpoint("read-write")).await;
    standby.promote().await.unwrap();
    let mut client = Client::connect(&endpoint("read-write")).await.unwrap();

    assert_eq!(none.kind(), Kind::Unavailable);
    assert!(none.to_string().contains("none of 2 hosts serves"), "{none}");
    let rows = client.query(port).await.unwrap();
    assert_eq!(rows[0].get(0).map(str::to_owned), expected(&standby));
}
