//! TLS on both servers.

use std::time::Instant;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use sqlx::{Connection, Executor, PgConnection, Row};

use super::{BOUND, connect, guarded};
use crate::{Login, Mechanism};

#[tokio::test]
async fn each_way_to_log_in_works_over_tls_and_only_with_the_right_authority() {
    let stack = guarded().await;
    let (postgres, kafka) = (stack.postgres(), stack.kafka());
    let (ca, other_ca) = (stack.certificates().ca(), stack.certificates().other_ca());
    let (ca, other_ca) = (ca.to_str().unwrap(), other_ca.to_str().unwrap());

    let database = postgres.fresh_database("secure").await.unwrap();
    for (login, user) in
        [(Login::Scram, "scram"), (Login::Md5, "md5"), (Login::Certificate, "certificate")]
    {
        let url = database.tls_url(login);
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let query = "select session_user::text, ssl, coalesce(client_dn, '')
            from pg_stat_ssl where pid = pg_backend_pid()";
        let row = connection.fetch_one(query).await.unwrap();
        assert_eq!((row.get(0), row.get(1)), (user, true));
        let named = if login == Login::Certificate { "/CN=certificate" } else { "" };
        assert_eq!(row.get::<&str, _>(2), named);

        let stranger = PgConnection::connect(&url.replace(ca, other_ca)).await.unwrap_err();
        assert!(stranger.to_string().contains("UnknownIssuer"), "{stranger}");
        let plain = url.replace("verify-full", "disable");
        let refused = PgConnection::connect(&plain).await.unwrap_err().to_string();
        assert!(refused.contains("pg_hba.conf rejects"), "{refused}");
    }

    let mut superuser = connect(postgres.url()).await;
    superuser.execute("alter system set ssl_cert_file = 'misnamed.pem'").await.unwrap();
    superuser.execute("select pg_reload_conf()").await.unwrap();
    let url = postgres.tls_url(Login::Scram);
    let deadline = Instant::now() + BOUND;
    let error = loop {
        match PgConnection::connect(&url).await {
            Err(error) => break error.to_string(),
            Ok(_) => assert!(Instant::now() < deadline, "it shows the certificate of its own name"),
        }
    };
    assert!(error.contains("certificate not valid for name"), "{error}");
    PgConnection::connect(&url.replace("verify-full", "verify-ca")).await.unwrap();

    let topic = kafka.fresh_topic("secure", 1).await.unwrap();
    for mechanism in [Mechanism::ScramSha512, Mechanism::Plain] {
        let mut client = ClientConfig::new();
        client.extend(kafka.secure_client(mechanism).into_iter().map(|(k, v)| (k.to_owned(), v)));
        let consumer: BaseConsumer = client.create().unwrap();
        let metadata = consumer.fetch_metadata(Some(&topic), BOUND).unwrap();
        assert!(metadata.topics()[0].partitions()[0].leader() > 0);
        for (setting, wrong) in [("ssl.ca.location", other_ca), ("sasl.password", "wrong")] {
            let consumer: BaseConsumer = client.clone().set(setting, wrong).create().unwrap();
            consumer.fetch_metadata(None, BOUND / 30).map(drop).unwrap_err();
        }
    }
}
