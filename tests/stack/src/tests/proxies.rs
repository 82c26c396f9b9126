//! The proxy, with plain bytes, with a Postgres and with a Kafka behind it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use sqlx::Executor;

use super::{BOUND, connect, number, until};
use crate::{Proxy, Stack, Towards};

/// Long enough for a byte to arrive if it is on its way.
const SILENCE: Duration = Duration::from_millis(100);

/// Sends back what it gets, on every connection.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn client(proxy: &Proxy) -> TcpStream {
    let client = TcpStream::connect(proxy.address()).unwrap();
    client.set_read_timeout(Some(BOUND)).unwrap();
    client
}

fn ask(client: &mut TcpStream, text: &str) -> std::io::Result<String> {
    client.write_all(text.as_bytes())?;
    answer(client, text.len())
}

fn answer(client: &mut TcpStream, length: usize) -> std::io::Result<String> {
    let mut answer = vec![0; length];
    client.read_exact(&mut answer)?;
    Ok(String::from_utf8(answer).unwrap())
}

#[track_caller]
fn assert_silent(client: &mut TcpStream) {
    client.set_read_timeout(Some(SILENCE)).unwrap();
    let error = client.read(&mut [0]).unwrap_err();
    client.set_read_timeout(Some(BOUND)).unwrap();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
}

#[track_caller]
fn assert_reset(result: std::io::Result<String>) {
    let error = result.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
}

#[test]
fn a_text_towards_the_client_is_changed_wherever_it_comes_by_until_it_passes() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut client = client(&proxy);

    proxy.corrupt("cup");
    assert_eq!(ask(&mut client, "a cup, cup").unwrap(), "a bup, bup");
    assert_eq!((ask(&mut client, "plate").unwrap().as_str(), proxy.corrupted()), ("plate", 2));
    proxy.pass();

    assert_eq!(ask(&mut client, "a cup").unwrap(), "a cup");
}

#[test]
fn a_cut_resets_old_and_new_connections_until_it_passes() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut old = client(&proxy);
    assert_eq!(ask(&mut old, "one").unwrap(), "one");
    assert_eq!(proxy.connections(), 1);

    proxy.cut();

    assert_reset(ask(&mut old, "two"));
    assert_reset(ask(&mut client(&proxy), "three"));
    until("the connections to end", || proxy.connections() == 0);
    proxy.pass();
    assert_eq!(ask(&mut client(&proxy), "four").unwrap(), "four");
}

#[test]
fn what_is_held_arrives_when_it_passes() {
    let proxy = Proxy::start(echo()).unwrap();
    let (mut asked_before, mut asked_within) = (client(&proxy), client(&proxy));
    ask(&mut asked_before, "here").unwrap();

    proxy.hold_towards(Towards::Client);
    asked_before.write_all(b"answer").unwrap();
    assert_silent(&mut asked_before);
    proxy.hold();
    asked_within.write_all(b"request").unwrap();
    assert_silent(&mut asked_within);

    proxy.pass();
    assert_eq!(answer(&mut asked_before, 6).unwrap(), "answer");
    assert_eq!(answer(&mut asked_within, 7).unwrap(), "request");
}

#[test]
fn a_connection_whose_client_ends_while_all_is_held_stays_half_open() {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let proxy = Proxy::start(server.local_addr().unwrap()).unwrap();
    let client = client(&proxy);
    let (mut accepted, _) = server.accept().unwrap();

    proxy.hold();
    drop(client);

    assert_silent(&mut accepted);
    proxy.pass();
    accepted.set_read_timeout(Some(BOUND)).unwrap();
    assert_eq!(accepted.read(&mut [0]).unwrap(), 0, "now it learns of the end");
}

#[test]
fn exactly_so_many_bytes_pass_before_the_cut() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut cut = client(&proxy);

    proxy.cut_after(Towards::Client, 5);

    assert_eq!(ask(&mut cut, "abc").unwrap(), "abc");
    cut.write_all(b"defgh").unwrap();
    assert_eq!(answer(&mut cut, 2).unwrap(), "de");
    assert_reset(answer(&mut cut, 1));
    assert_eq!(ask(&mut client(&proxy), "again").unwrap(), "again");
}

#[test]
fn a_delay_is_added_in_each_direction() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut client = client(&proxy);
    ask(&mut client, "warm").unwrap();
    proxy.delay(SILENCE);

    let began = Instant::now();
    assert_eq!(ask(&mut client, "late").unwrap(), "late");

    assert!(began.elapsed() >= 2 * SILENCE);
}

#[tokio::test]
async fn a_statement_whose_answer_is_lost_was_executed() {
    let stack = Stack::shared().await;
    let database = stack.postgres().fresh_database("lost_answer").await.unwrap();
    let proxy = stack.postgres().proxy().unwrap();
    let mut direct = connect(database.url()).await;
    direct.execute("create table t (n int)").await.unwrap();
    let mut through = connect(&proxy.url(database.url())).await;
    number(&mut through, "select 1::bigint").await;

    proxy.hold_towards(Towards::Client);
    let mut lost = Box::pin(through.execute("insert into t values (1)"));
    let deadline = Instant::now() + BOUND;
    while number(&mut direct, "select count(*) from t").await == 0 {
        assert!(Instant::now() < deadline, "the statement does not arrive");
        let answered = tokio::time::timeout(Duration::from_millis(10), &mut lost).await;
        assert!(answered.is_err(), "nothing answers");
    }
    proxy.cut();

    lost.await.unwrap_err();
}
