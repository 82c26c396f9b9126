//! What was published is published again, from the journal.

use sqlx::PgConnection;
use tailrace_cdc_relay::{Config, Replay, Replayed};
use tailrace_outbox::journal::{self, Retention};
use tailrace_outbox::{Message, Outbox, Store, schema};
use tests::Site;
use tokio::sync::Notify;

use crate::bad_frames::colliding;
use crate::complaint::refuses;
use crate::run::{LEAD_MAX, PUBLISH_MAX, site, stop};

const SETTINGS: i32 = 2;
const BAD_MESSAGE: i32 = 5;

/// Enough for several Kafka transactions of a replay.
const MESSAGES: usize = 3_500;

/// The second of January 2026, at noon.
const NOON_MS: u128 = 1_767_355_200_000;

/// An id of a message that was made so many milliseconds after noon.
fn id(ms: usize) -> uuid::Uuid {
    let time = NOON_MS + u128::try_from(ms).expect("small");
    uuid::Uuid::from_u128(time << 80 | 0x7 << 76 | 0x2 << 62 | 0xABC)
}

/// Messages of two topics in turn, a millisecond apart, in a journal that a relay has published.
async fn published(site: &Site) -> Vec<Message> {
    let mut connection: PgConnection = site.connect().await;
    schema::install(&mut connection).await.expect("the schema is installed");
    journal::maintain(&mut connection, &Retention::default()).await.expect("there are partitions");
    let messages: Vec<Message> = (0..MESSAGES).map(|number| message(site, number)).collect();
    let mut relay = site.cdc_relay(&site.run_arguments());
    relay.says("leading", LEAD_MAX).await;
    Outbox::new(Store::Journal)
        .write_all(&mut connection, &messages)
        .await
        .expect("rows are written");
    site.read_until(PUBLISH_MAX, |seen| seen.len() >= MESSAGES).await;
    stop(&mut relay).await;
    messages
}

fn message(site: &Site, number: usize) -> Message {
    message_to(site.topics.get(number % 2).expect("a site has two topics"), number)
}

fn message_to(topic: &str, number: usize) -> Message {
    let builder = Message::builder(topic, "order.placed.v1").source("/orders").id(id(number));
    let builder = builder.key(format!("order-{}", number % 5)).header("number", number.to_string());
    let builder = builder.subject("s").correlation_id("c");
    let built = if number % 100 == 7 { builder.tombstone() } else { builder.json(&number) };
    built.build().expect("it keeps every rule")
}

fn config(site: &Site) -> Config {
    let config = Config::new(site.database.url(), &site.brokers);
    config.slot(&site.slot).relay_id(&site.relay_id)
}

fn arguments(site: &Site, more: &[&str]) -> Vec<String> {
    let settings = site.run_arguments().into_iter().skip(1);
    let more = more.iter().map(|&text| text.to_owned());
    std::iter::once("replay".to_owned()).chain(settings).chain(more).collect()
}

/// Runs the command to its good end.
async fn replays(site: &Site, more: &[&str], told: &str) {
    let mut replay = site.cdc_relay(&arguments(site, more));
    let status = replay.ends(PUBLISH_MAX).await;
    assert!(status.success(), "{status}:\n{}", replay.log());
    assert!(replay.log().contains(told), "{told:?} is not in {}", replay.log());
}

/// What was published again to the site's topics is these messages, in their order per key and
/// topic, as they were.
async fn again(site: &Site, expected: &[&Message]) {
    let mut seen = site.read_to_end().await;
    seen.retain(|record| record.header("ce_replay") == "true");
    assert_eq!(seen.len(), expected.len());
    seen.sort_by_key(|record| (record.topic.clone(), record.key.clone(), record.offset));
    let mut wanted = expected.to_vec();
    let one_topic = site.topics.len() == 1;
    let topic = |message: &Message| if one_topic { "" } else { message.topic() }.to_owned();
    wanted.sort_by_key(|message| (topic(message), message.key().map(<[u8]>::to_vec)));
    for (record, message) in seen.iter().zip(wanted) {
        assert_eq!(record.header("ce_id"), message.id().to_string());
        assert_eq!(record.header("ce_sequence"), "");
        assert_eq!(record.key.as_deref(), message.key());
        assert_eq!(record.value.as_deref(), message.payload());
        assert_eq!(record.header("ce_type"), message.r#type());
        assert_eq!(record.header("ce_source"), message.source());
        assert_eq!(record.header("content-type"), message.content_type());
        assert_eq!(record.header("ce_subject"), message.subject().unwrap_or_default());
        for (name, value) in message.headers().chain(message.attributes()) {
            assert_eq!(record.header(name), value);
        }
        assert!(one_topic || record.topic == message.topic());
    }
}

#[tokio::test]
async fn a_range_of_the_journal_is_published_again_as_it_was() {
    let mut site = site("replay").await;
    let messages = published(&site).await;
    let one = |number: usize| messages.get(number).expect("there are so many");
    let (from, to) = (id(100).to_string(), id(1_099).to_string());

    let counted = Replay::from(&from).to(&to).plan(&config(&site)).await.expect("it counts");
    replays(&site, &["--from", &from, "--to", &to, "--dry-run"], "").await;
    let told = format!("published 1000 messages again, the last is {to}");
    replays(&site, &["--from", &from, "--to", &to], &told).await;

    let counts: Vec<_> = counted.iter().map(|count| (&count.topic, count.messages)).collect();
    let mut topics = site.topics.clone();
    topics.sort();
    assert_eq!(counts, topics.iter().map(|topic| (topic, 500)).collect::<Vec<_>>());
    again(&site, &(100..1_100).map(one).collect::<Vec<_>>()).await;

    // A time belongs to what it begins, and not to what it ends.
    let elsewhere = format!("{}.again", site.relay_id);
    let first = site.topics.first().expect("a site has topics");
    let (from, to) = ("2026-01-02 12:00:03", "2026-01-02T12:00:03.4Z");
    let more = ["--from", from, "--to", to, "--topic", &elsewhere, "--where-topic", first];
    replays(&site, &more, "published 200 messages again").await;
    let nothing = arguments(&site, &["--resume"]);
    refuses(&mut site.cdc_relay(&nothing), SETTINGS, &["no replay to resume"]).await;
    let no_time = arguments(&site, &["--from", "soon"]);
    refuses(&mut site.cdc_relay(&no_time), SETTINGS, &["\"soon\" is neither"]).await;
    let backwards = arguments(&site, &["--from", to, "--to", from]);
    refuses(&mut site.cdc_relay(&backwards), SETTINGS, &["--to is before its --from"]).await;
    let in_vain = Replay::from("2020-01-01").to("2020-01-02").plan(&config(&site)).await;
    assert_eq!(in_vain.expect("it counts").len(), 0);
    // What can not be published is named, and holds up nothing.
    let never = message_to(&colliding(first), 4_000);
    let behind = message_to(&elsewhere, 4_001);
    let mut connection = site.connect().await;
    let journal = Outbox::new(Store::Journal);
    journal.write_all(&mut connection, &[never, behind.clone()]).await.expect("rows are written");
    let more = arguments(&site, &["--from", &id(4_000).to_string(), "--to", "2026-01-03"]);
    let named = ["1 messages can not be published again", "--from ID"];
    let log = refuses(&mut site.cdc_relay(&more), BAD_MESSAGE, &named).await;
    assert!(log.contains(&id(4_000).to_string()) && log.contains("its name collides"), "{log}");
    site.topics = vec![elsewhere];
    let range = (3_000..3_400).step_by(2).map(one);
    again(&site, &range.chain([&behind]).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_replay_that_was_ended_goes_on_without_gap_or_repetition() {
    let mut site = site("replay_ended").await;
    let messages = published(&site).await;
    let topic = format!("{}.again", site.relay_id);
    let config = config(&site);

    // Dropped in the middle, with a transaction open, as by a crash.
    let reached = Notify::new();
    let crashing = Replay::from(id(0).to_string()).into_topic(&topic);
    let crashing = crashing.run(&config, std::future::pending(), |done, _| {
        if done > 1_200 {
            reached.notify_one();
        }
    });
    tokio::select! {
        biased;
        () = reached.notified() => {}
        ended = crashing => panic!("it ended by itself: {ended:?}"),
    }
    // Asked to stop.
    let reached = Notify::new();
    let stopped = Replay::resume();
    let stopped = stopped.run(&config, reached.notified(), |done, _| {
        if done > 0 {
            reached.notify_one();
        }
    });
    let Replayed { messages: some, is_complete, .. } = stopped.await.expect("it stops");
    assert!(some > 0 && !is_complete, "{some} {is_complete}");
    replays(&site, &["--resume"], "messages again, the last is").await;

    site.topics = vec![topic];
    again(&site, &messages.iter().collect::<Vec<_>>()).await;
    let nothing = arguments(&site, &["--resume"]);
    refuses(&mut site.cdc_relay(&nothing), SETTINGS, &["no replay to resume"]).await;
}
