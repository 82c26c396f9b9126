use super::*;
use crate::fixture::{Bed, installed};

async fn bed(name: &str) -> Bed {
    let bed = installed(name).await;
    bed.execute("CREATE TABLE payment (caller text)").await;
    bed
}

fn key(text: &str) -> Key {
    Key::read(text).unwrap()
}

fn payment(body: &str) -> Fingerprint {
    Fingerprint::of("POST", "/payments", body.as_bytes())
}

/// Handles a request as a service would.
async fn pay(bed: &Bed, caller: &str, key: &Key, body: &str) -> (u16, Response) {
    let mut tx = bed.begin().await;
    let pending = match begin(&mut tx, caller, key, &payment(body)).await.unwrap() {
        Begun::First(pending) => pending,
        Begun::Replay(answer) => return (200, answer),
        Begun::Refused(refusal) => return (refusal.status(), Response::new(0, "")),
    };
    let effect = sqlx::query("INSERT INTO payment VALUES ($1)");
    effect.bind(caller).execute(&mut *tx).await.unwrap();
    let answer = Response::new(201, body).header("location", "/payments/1");
    finish(&mut tx, pending, &answer).await.unwrap();
    tx.commit().await.unwrap();
    (201, answer)
}

#[test]
fn a_key_is_read_with_or_without_quotation_marks() {
    let check = |header: &str, expected: Result<&str, Refusal>| {
        assert_eq!(Key::read(header), expected.map(|key| Key(key.to_owned())), "{header}");
    };

    check("\"8e03978e-40d5\"", Ok("8e03978e-40d5"));
    check(" 8e03978e-40d5 ", Ok("8e03978e-40d5"));
    check(&"x".repeat(KEY_BYTES_MAX), Ok(&"x".repeat(KEY_BYTES_MAX)));
    for bad in ["", "\"\"", "a b", "\"a", "ä", "a\u{0}", &"x".repeat(KEY_BYTES_MAX + 1)] {
        check(bad, Err(Refusal::BadKey));
    }
    assert_eq!(Key::required(None).unwrap_err().status(), 400);
    assert_eq!(Key::required(Some("")).unwrap_err().status(), 400);
}

#[test]
fn a_fingerprint_tells_each_part_of_a_request() {
    let one = Fingerprint::of("POST", "/a", b"bc");

    assert_eq!(one, Fingerprint::of("POST", "/a", b"bc"));
    for other in [
        Fingerprint::of("PUT", "/a", b"bc"),
        Fingerprint::of("POST", "/ab", b"c"),
        Fingerprint::of("POST", "/a", b"bd"),
    ] {
        assert_ne!(one, other);
    }
}

#[tokio::test]
async fn a_request_that_comes_again_gets_its_answer_again_and_has_no_effect() {
    let bed = bed("http_replay").await;
    let key = key("k");

    let first = pay(&bed, "anna", &key, "10").await;
    let again = pay(&bed, "anna", &key, "10").await;
    let of_another_caller = pay(&bed, "bert", &key, "20").await;
    let another_body = pay(&bed, "anna", &key, "11").await;

    assert_eq!((first.0, again.0, of_another_caller.0, another_body.0), (201, 200, 201, 422));
    assert_eq!(again.1, first.1);
    assert_eq!(bed.count("SELECT count(*) FROM payment WHERE caller = 'anna'").await, 1);
}

#[tokio::test]
async fn a_request_in_flight_refuses_its_repetition_and_one_that_died_does_not() {
    let bed = bed("http_in_flight").await;
    let key = key("k");
    let mut tx = bed.begin().await;
    let begun = begin(&mut tx, "anna", &key, &payment("10")).await.unwrap();

    let meanwhile = pay(&bed, "anna", &key, "10").await;
    tx.rollback().await.unwrap();
    let afterwards = pay(&bed, "anna", &key, "10").await;

    assert!(matches!(begun, Begun::First(_)), "{begun:?}");
    assert_eq!((meanwhile.0, afterwards.0), (409, 201));
}

#[tokio::test]
async fn of_many_requests_at_once_one_has_its_effect() {
    let bed = bed("http_many").await;
    let key = key("k");

    let requests = (0..8).map(|_| pay(&bed, "anna", &key, "10"));
    let mut tasks = Vec::from_iter(requests.map(Box::pin));
    let mut statuses = Vec::new();
    // Eight at once on one thread: each takes a step when it can.
    std::future::poll_fn(|cx| {
        tasks.retain_mut(|task| match task.as_mut().poll(cx) {
            std::task::Poll::Ready((status, _)) => {
                statuses.push(status);
                false
            }
            std::task::Poll::Pending => true,
        });
        if tasks.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;

    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 201, 409].contains(status)), "{statuses:?}");
    assert_eq!(bed.count("SELECT count(*) FROM payment").await, 1);
}

#[tokio::test]
async fn an_answer_is_kept_until_it_is_forgotten_and_no_answer_is_without_bounds() {
    let bed = bed("http_forget").await;
    let key = key("k");
    pay(&bed, "anna", &key, "10").await;
    let mut tx = bed.begin().await;

    let young = forget(&mut tx, Duration::from_secs(3600)).await.unwrap();
    for bad in [Response::new(600, ""), Response::new(200, vec![0; BODY_BYTES_MAX + 1])] {
        let Begun::First(pending) =
            begin(&mut tx, "anna", &Key::read("other").unwrap(), &payment("")).await.unwrap()
        else {
            panic!("nothing is known of it")
        };
        assert_eq!(finish(&mut tx, pending, &bad).await.unwrap_err().kind(), Kind::Payload);
    }
    tx.rollback().await.unwrap();
    bed.execute("UPDATE tailrace.http_key SET created_at = now() - interval '2 hours'").await;
    let mut conn = bed.pool.acquire().await.unwrap();
    let old = forget(&mut conn, Duration::from_secs(3600)).await.unwrap();

    assert_eq!((young, old), (0, 1));
    assert_eq!(pay(&bed, "anna", &key, "11").await.0, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_keeps_a_failed_statement_to_itself_is_told_so() {
    let bed = bed("http_aborted").await;
    let mut tx = bed.begin().await;
    let begun = begin(&mut tx, "alice", &key("k1"), &payment("1")).await.unwrap();
    let Begun::First(pending) = begun else { panic!("it comes for the first time") };
    sqlx::query("SELECT 1 / 0").execute(&mut *tx).await.unwrap_err();

    let error = finish(&mut tx, pending, &Response::new(201, "")).await.unwrap_err();

    assert_eq!(error.kind(), Kind::Handler, "{error}");
    assert!(error.to_string().contains("kept a failed statement to itself"), "{error}");
}
