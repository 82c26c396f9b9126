//! What has to be there before the services of a shop start: databases, and topics.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaErrorCode;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::timeout;

use crate::Failure;
use crate::order::FACTS;
use crate::place_order::{self, ORCHESTRATION_TOPICS};
use crate::services::control;
use crate::settings::Surroundings;

/// Databases, by their names.
pub(crate) const DATABASES: [&str; 7] =
    ["orders", "payments", "stock", "shipping", "storefront", "control", "control_payments"];

const PARTITIONS: i32 = 3;
/// Servers that are there answer by then.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Makes them on servers of somebody else, unless they are there.
pub(crate) async fn run(surroundings: &Surroundings) -> Result<(), Failure> {
    let missing = surroundings.missing(None);
    if !missing.is_empty() {
        return Err(format!("a shop is prepared with {} set", missing.join(" and ")).into());
    }
    let making = async {
        let mut conn = PgConnection::connect(&surroundings.database_url).await?;
        for name in DATABASES {
            let finding = sqlx::query("SELECT FROM pg_database WHERE datname = $1").bind(name);
            if finding.fetch_optional(&mut conn).await?.is_none() {
                let making = AssertSqlSafe(format!("CREATE DATABASE {name}"));
                sqlx::raw_sql(making).execute(&mut conn).await?;
            }
        }
        Ok::<_, Failure>(())
    };
    timeout(ANSWER_MAX, making).await.map_err(|_| "Postgres does not answer")??;
    topics(&surroundings.kafka_brokers).await
}

/// Makes all topics, unless they are there.
pub(crate) async fn topics(brokers: &str) -> Result<(), Failure> {
    let names = topic_names()?;
    let topics: Vec<NewTopic<'_>> = names
        .iter()
        .map(|name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(-1)))
        .collect();
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let options = AdminOptions::new().request_timeout(Some(ANSWER_MAX));
    for made in admin.create_topics(&topics, &options).await? {
        match made {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, error)) => {
                return Err(format!("the topic {topic} cannot be made: {error}").into());
            }
        }
    }
    Ok(())
}

/// Everything that anybody in the shop writes to.
pub(crate) fn topic_names() -> Result<Vec<String>, Failure> {
    let choreography = place_order::choreography()?;
    let services = choreography.services().into_iter().map(|it| choreography.topic_of(it));
    let all =
        services.chain(ORCHESTRATION_TOPICS).chain([FACTS, control::ORDERS, control::PAYMENTS]);
    Ok(all.map(str::to_owned).collect())
}
