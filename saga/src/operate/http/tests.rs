use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::operate::tests::{id, parked, running, stored, under};

/// The routes as a service mounts them, and how to ask it.
struct Site {
    address: std::net::SocketAddr,
    bed: crate::bed::Bed,
}

async fn site(name: &str, actor: Option<&str>) -> Site {
    let bed = stored(name, vec![under(&running(), 1), under(&parked(), 2)]).await;
    let mut router = Router::new().nest("/operate", Routes::new(bed.pool.clone()).router());
    if let Some(actor) = actor {
        router = router.layer(Extension(Actor(actor.to_owned())));
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Site { address, bed }
}

impl Site {
    async fn ask(&self, request: String) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }

    async fn get(&self, path: &str) -> (u16, String, String) {
        let rest = "HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        self.ask(format!("GET /operate{path} {rest}")).await
    }

    async fn post(&self, body: Value) -> (u16, Value) {
        let body = body.to_string();
        let length = body.len();
        let (status, _, answer) = self
            .ask(format!(
                "POST /operate/changes HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
                 content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
            ))
            .await;
        (status, serde_json::from_str(&answer).unwrap())
    }
}

#[tokio::test]
async fn sagas_are_looked_at_over_http_and_what_is_wrong_is_a_problem_that_names_it() {
    let site = site("http_look", None).await;
    let saga = id(2).to_string();

    let (status, _, list) = site.get("/sagas?state=parked,running&limit=1").await;
    let (_, _, rest) = site.get(&format!("/sagas?after={}", id(1))).await;
    let (_, _, shown) = site.get(&format!("/sagas/{saga}")).await;
    let (_, head, drawn) = site.get(&format!("/sagas/{saga}/diagram")).await;
    let (_, _, definitions) = site.get("/definitions").await;
    let (_, _, states) = site.get("/definitions/create-order/4/diagram?form=states").await;
    let list: Value = serde_json::from_str(&list).unwrap();
    let rest: Value = serde_json::from_str(&rest).unwrap();

    assert_eq!((status, list["next"].as_str()), (200, Some(&*id(1).to_string())));
    assert_eq!((rest["sagas"][0]["saga"].as_str(), &rest["next"]), (Some(&*saga), &Value::Null));
    assert!(shown.contains("stuck_acting") && !shown.contains("ada"), "{shown}");
    assert!(head.contains("image/svg+xml") && drawn.contains("stuck acting"), "{drawn}");
    assert!(definitions.contains(r#""has_engine":false"#), "{definitions}");
    assert!(states.starts_with("stateDiagram-v2"), "{states}");
    for (path, code, named) in [
        (format!("/sagas/{}", id(9)), 404, "there is no saga 00000000"),
        (format!("/sagas/{}/timeline", id(9)), 404, "there is no saga"),
        ("/sagas/here".to_owned(), 400, "is no id of a saga"),
        ("/sagas?state=open".to_owned(), 400, "is no state"),
        ("/sagas?limit=1001".to_owned(), 400, "between 1 and 1000"),
        ("/sagas?older_than=soon".to_owned(), 400, "older_than is no time"),
        ("/sagas?stat=parked".to_owned(), 400, "stat"),
        ("/definitions/refund/1/diagram".to_owned(), 404, "refund/1"),
    ] {
        let (status, head, body) = site.get(&path).await;
        assert_eq!(status, code, "{path}: {body}");
        assert!(head.contains("application/problem+json"), "{path}: {head}");
        assert!(body.contains(named) && body.contains(r#""title""#), "{path}: {body}");
    }
}

#[tokio::test]
async fn a_change_over_http_is_dry_unless_it_says_otherwise_and_the_router_knows_who_asks() {
    let site = site("http_change", Some("anna")).await;
    let retry = |dry: Option<bool>| {
        let mut retry = json!({ "verb": "retry", "query": { "state": "parked" }, "actor": "eve" });
        if let (Some(dry), Some(object)) = (dry, retry.as_object_mut()) {
            object.insert("dry_run".to_owned(), json!(dry));
        }
        retry
    };

    let (_, told) = site.post(retry(None)).await;
    let untouched = site.bed.count("SELECT count(*) FROM tailrace.saga_input").await;
    let (status, done) = site.post(retry(Some(false))).await;
    let (_, again) = site.post(retry(Some(false))).await;

    assert_eq!((&told["dry_run"], untouched), (&json!(true), 0));
    assert_eq!((status, &done["outcomes"][0]["what"]), (200, &json!("asks again: send-mail")));
    assert_eq!(done["next"], Value::Null);
    assert_eq!(again["outcomes"][0]["refused"], true);
    let audited =
        "SELECT count(*) FROM tailrace.saga_audit WHERE actor = 'anna' AND query = 'state=parked'";
    assert_eq!(site.bed.count(audited).await, 1);
    let many: Vec<String> = (0..501).map(|number| id(number).to_string()).collect();
    for (body, code, named) in [
        (json!({ "verb": "retry" }), 400, "no saga is named or chosen"),
        (json!({ "verb": "skip", "sagas": [id(2)] }), 400, "needs the step"),
        (json!({ "verb": "stop", "sagas": [id(2)] }), 400, "none of retry, skip"),
        (json!({ "verb": "retry", "sagas": many }), 400, "at most 500 sagas"),
        (json!({ "verb": "retry", "saga": id(2) }), 422, "unknown field"),
        (json!({ "verb": "retry", "note": "x".repeat(BODY_BYTES_MAX) }), 413, "length limit"),
    ] {
        let (status, body) = site.post(body).await;
        assert_eq!(status, code, "{body}");
        assert!(body["detail"].as_str().unwrap().contains(named), "{body}");
    }
}
