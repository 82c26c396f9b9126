use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::builder::Saga;
use crate::definition::OnTimeout;
use crate::fixture::{CapturePayment, Confirmed, Order, SECOND, order};
use crate::instance::Instance;
use crate::operate::tests::{id, parked, running, stored, under};
use crate::testing::Scenario;

/// The routes as a service mounts them, and how to ask it.
struct Site {
    address: std::net::SocketAddr,
    bed: crate::bed::Bed,
}

async fn site(name: &str, actor: Option<&str>) -> Site {
    site_of(name, actor, vec![under(&running(), 1), under(&parked(), 2)]).await
}

async fn site_of(name: &str, actor: Option<&str>, sagas: Vec<Instance>) -> Site {
    let bed = stored(name, sagas).await;
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
        (format!("/sagas/{saga}?data=true"), 400, "unknown field `data`"),
        (format!("/sagas/{saga}/timeline?messages=true"), 400, "unknown field `messages`"),
        ("/definitions?name=refund".to_owned(), 400, "unknown field `name`"),
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
        (json!({ "verb": "migrate", "sagas": [id(2)] }), 400, "migrate needs a mapping"),
        (json!({ "verb": "unlock", "sagas": [id(2)] }), 400, "unlock needs the step"),
        (json!({ "verb": "stop", "step": "pay", "sagas": [id(2)] }), 400, "none of retry, skip"),
        (json!({ "verb": "unlock", "step": "a", "query": {} }), 400, "that are named, not chosen"),
        (json!({ "verb": "retry", "note": "x".repeat(BODY_BYTES_MAX) }), 413, "length limit"),
    ] {
        let (status, body) = site.post(body).await;
        assert_eq!(status, code, "{body}");
        assert!(body["detail"].as_str().unwrap().contains(named), "{body}");
    }
}

#[tokio::test]
async fn what_a_verb_makes_nothing_of_is_refused_over_http_and_nothing_is_changed() {
    let site = site("http_unused", Some("anna")).await;
    let mapping = json!({ "from": "create-order/4", "to": "create-order/5" });
    let all = [
        ("step", json!("send-mail")),
        ("mapping", mapping),
        ("signal", json!("parcel.collected.v1")),
        ("data", json!({ "by": "ada" })),
    ];
    let verbs: [(&str, &[&str]); 7] = [
        ("retry", &["step"]),
        ("skip", &["step"]),
        ("unlock", &["step"]),
        ("compensate", &[]),
        ("abort", &[]),
        ("signal", &["signal", "data"]),
        ("migrate", &["mapping"]),
    ];

    for (verb, taken) in verbs {
        for (name, value) in all.iter().filter(|(name, _)| !taken.contains(name)) {
            let mut body = json!({ "verb": verb, "sagas": [id(2)], "dry_run": false });
            body[name] = value.clone();
            let (status, said) = site.post(body).await;

            assert_eq!((status, &said["detail"]), (400, &json!(format!("{verb} takes no {name}"))));
        }
    }
    let both = json!({ "verb": "abort", "sagas": [id(2)], "step": "pay", "signal": "a.v1" });
    let (_, both) = site.post(both).await;

    assert_eq!(both["detail"], "abort takes no step and no signal");
    assert_eq!(site.bed.count("SELECT count(*) FROM tailrace.saga_input").await, 0);
    assert_eq!(site.bed.count("SELECT count(*) FROM tailrace.saga_migration").await, 0);
}

#[tokio::test]
async fn a_signal_is_given_over_http_once_to_sagas_that_are_named() {
    let saga = Saga::<Order>::define("confirm", 1)
        .wait::<Confirmed>("confirmed", SECOND, OnTimeout::Compensate, |_, _| {})
        .pivot("pay", CapturePayment::of)
        .build()
        .unwrap();
    let waits = Scenario::given(&saga, &order()).instance().clone();
    let site = site_of("http_signal", Some("anna"), vec![under(&waits, 1)]).await;
    let mut conn = site.bed.pool.acquire().await.unwrap();
    let structure = saga.definition().structure();
    crate::operate::register(&mut conn, &[structure]).await.unwrap();
    let signal = |more: Value| {
        let mut body =
            json!({ "verb": "signal", "signal": "order.confirmed.v1", "sagas": [id(1)] });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };

    let (told, dry) = site.post(signal(json!({}))).await;
    let untouched = site.bed.count("SELECT count(*) FROM tailrace.saga_input").await;
    let given = signal(json!({ "dry_run": false, "data": { "by": "ada" } }));
    let (status, done) = site.post(given.clone()).await;
    let (_, again) = site.post(given).await;
    let (_, other) = site.post(signal(json!({ "signal": "order.cancelled.v1" }))).await;
    let (chosen, why) =
        site.post(json!({ "verb": "signal", "signal": "order.confirmed.v1", "query": {} })).await;
    let (unnamed, lacks) = site.post(json!({ "verb": "signal", "sagas": [id(1)] })).await;

    let takes = json!("confirmed takes order.confirmed.v1");
    assert_eq!((told, &dry["outcomes"][0]["what"], untouched), (200, &takes, 0));
    assert_eq!((status, &done["outcomes"][0]["what"]), (200, &takes), "{done}");
    assert_eq!(again["outcomes"][0]["refused"], true, "{again}");
    let nobody = "none of its steps waits for order.cancelled.v1";
    assert_eq!(other["outcomes"][0]["what"], nobody, "{other}");
    assert_eq!(
        (chosen, &why["detail"]),
        (400, &json!("signal is for sagas that are named, not chosen"))
    );
    assert_eq!(
        (unnamed, &lacks["detail"]),
        (400, &json!("signal needs the message type of the signal"))
    );
    let given = "SELECT count(*) FROM tailrace.saga_input
        WHERE input #>> '{signal,signal_type}' = 'order.confirmed.v1' AND input #>> '{signal,payload,by}' = 'ada'";
    assert_eq!(site.bed.count(given).await, 1);
    let audited = "SELECT count(*) FROM tailrace.saga_audit
        WHERE actor = 'anna' AND action = 'signal order.confirmed.v1'";
    assert_eq!(site.bed.count(audited).await, 1);
}
