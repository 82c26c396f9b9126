//! Messages that SQL of any origin can write, and nobody can publish.

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use tailrace_outbox::{Message, frame};
use tests::Site;
use tests::reader::Seen;
use tests::writers::{Dice, Written};

use crate::complaint::refuses;
use crate::run::{LEAD_MAX, all_is_well, initialize, published, site, stop};

const BAD_MESSAGE: i32 = 5;

#[tokio::test]
async fn a_frame_that_can_not_be_published_stops_the_relay_until_it_is_skipped() {
    let site = site("bad_frames").await;
    let mut dice = Dice::new("bad_frames");
    let mut written = Written::default();
    initialize(&site).await;
    let mut arguments = site.run_arguments();
    arguments.push("--bad-messages=halt".to_owned());

    for (bytes, named) in bad_frames(&site) {
        written.add(site.write(4, 2, &mut dice).await);
        emit(&site, &bytes).await;
        written.add(site.write(4, 2, &mut dice).await);

        let log = refuses(&mut site.cdc_relay(&arguments), BAD_MESSAGE, &named).await;

        arguments.push(format!("--skip={}", place(&log)));
    }

    let mut relay = site.cdc_relay(&arguments);
    relay.says("leading", LEAD_MAX).await;
    published(&site).await;
    stop(&mut relay).await;
    all_is_well(&site, &written).await;
    assert!(relay.log().contains("skipped a message, as told"), "{}", relay.log());
}

#[tokio::test]
async fn a_message_that_can_not_be_published_becomes_a_dead_letter_and_holds_nothing_up() {
    let mut site = site("dead_letters").await;
    let mut dice = Dice::new("dead_letters");
    let mut written = Written::default();
    let mut relay = site.cdc_relay(&site.run_arguments());
    relay.says("leading", LEAD_MAX).await;
    let bad = bad_frames(&site);
    for (bytes, _) in &bad {
        written.add(site.write(4, 2, &mut dice).await);
        emit(&site, bytes).await;
    }
    written.add(site.write(4, 2, &mut dice).await);
    published(&site).await;
    stop(&mut relay).await;

    all_is_well(&site, &written).await;
    site.topics = vec![format!("tailrace.dead-letter.{}", site.relay_id)];
    let letters = site.read_to_end().await;
    assert_eq!(letters.len(), bad.len(), "{letters:?}");
    for (bytes, [_, why]) in &bad {
        let letter =
            letters.iter().find(|letter| letter.header("tailrace-dead-detail").contains(why));
        let letter = letter.unwrap_or_else(|| panic!("{why:?} in {letters:?}"));
        assert!(letter.header("ce_sequence").starts_with(&site.relay_id));
        assert!(["undecodable", "rejected"].contains(&letter.header("tailrace-dead-reason")));
        assert_eq!(letter.header("tailrace-dead-component"), site.relay_id);
        assert_eq!(letter.header("tailrace-dead-attempts"), "1");
        assert!(letter.header("tailrace-dead-at").ends_with('Z'), "{letter:?}");
        let value = letter.value.as_deref().expect("its bytes are kept");
        assert!(bytes.ends_with(value), "the payload, or the whole where that is no frame");
        assert_eq!(letter.header("tailrace-dead-bytes"), value.len().to_string());
    }
}

#[tokio::test]
async fn a_record_that_the_brokers_refuse_is_found_and_becomes_a_dead_letter() {
    let mut site = site("refused").await;
    let mut dice = Dice::new("refused");
    let mut relay = site.cdc_relay(&site.run_arguments());
    relay.says("leading", LEAD_MAX).await;
    let mut written = site.write(8, 2, &mut dice).await;
    published(&site).await;
    // From here on the topic takes less than the relay was told when it first wrote to it.
    let topic = site.topics.first().expect("a site has topics").clone();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &site.brokers);
    let admin: AdminClient<DefaultClientContext> = config.create().expect("the settings are valid");
    let smaller = AlterConfig::new(ResourceSpecifier::Topic(&topic));
    let smaller = smaller.set("max.message.bytes", "30000");
    let answers = admin.alter_configs([&smaller], &AdminOptions::new()).await;
    answers.expect("the broker answers").pop().expect("one answer").expect("it is set");

    let large = Message::builder(&topic, "t.v1").source("/sql").payload(vec![b'x'; 40_000]);
    let large = frame::encode(&large.build().expect("it keeps every rule"));
    for _ in 0..2 {
        emit(&site, &large).await;
        written.add(site.write(8, 2, &mut dice).await);
    }
    published(&site).await;
    stop(&mut relay).await;

    all_is_well(&site, &written).await;
    assert!(relay.log().contains("looking for the message"), "{}", relay.log());
    site.topics = vec![format!("tailrace.dead-letter.{}", site.relay_id)];
    let letters = site.read_to_end().await;
    let bytes: Vec<_> = letters.iter().map(|letter| letter.header("tailrace-dead-bytes")).collect();
    assert_eq!(bytes, ["40000", "40000"]);
}

#[tokio::test]
async fn a_message_too_large_to_be_received_becomes_a_dead_letter_and_is_not_kept_in_memory() {
    const BYTES: usize = 150 * 1024 * 1024;
    let mut site = site("unread").await;
    let mut dice = Dice::new("unread");
    let mut relay = site.cdc_relay(&site.run_arguments());
    relay.says("leading", LEAD_MAX).await;
    let mut written = site.write(8, 2, &mut dice).await;
    let topic = site.topics.first().expect("a site has topics").clone();
    let topic = topic.as_str();
    let empty = Message::builder(topic, "t.v1").source("/sql").key("order-7").payload("");
    let mut frame = frame::encode(&empty.build().expect("it keeps every rule"));
    let length = u32::try_from(BYTES).expect("a frame may be so long").to_be_bytes();
    frame.splice(frame.len() - length.len().., length);

    for prefix in ["tailrace", "of somebody else"] {
        let written =
            "select pg_logical_emit_message(true, $1, $2 || convert_to(repeat('x', $3), 'UTF8'))";
        let written = sqlx::query(written).bind(prefix).bind(&frame);
        let count = i32::try_from(BYTES).expect("it fits");
        written.bind(count).execute(&site.pool).await.expect("postgres takes it");
    }
    // One that is received, and whose key alone is more than a record may have.
    let keyed = Message::builder(topic, "t.v1").source("/sql").key("order-8").payload("{}");
    let keyed = frame::encode(&keyed.build().expect("it keeps every rule"));
    let long = [&17_000_000_u32.to_be_bytes()[..], &vec![b'k'; 17_000_000]].concat();
    emit(&site, &replaced(&keyed, b"\0\0\0\x07order-8", &long)).await;
    written.add(site.write(8, 2, &mut dice).await);
    published(&site).await;
    let resident = relay.resident_bytes_max().expect("a running process has a size");
    stop(&mut relay).await;

    all_is_well(&site, &written).await;
    assert!(resident < BYTES as u64, "{resident} bytes");
    site.topics = vec![format!("tailrace.dead-letter.{}", site.relay_id)];
    let letters = site.read_to_end().await;
    let unread =
        |letter: &&Seen| letter.header("tailrace-dead-detail").contains("longer than 32 MiB");
    let (unread, rest): (Vec<_>, Vec<_>) = letters.iter().partition(unread);
    let ([letter], [bare]) = (&*unread, &*rest) else { panic!("{letters:?}") };
    assert_eq!(letter.header("tailrace-dead-left-out"), "payload");
    assert_eq!(letter.value.as_deref(), Some(&b""[..]), "it is no tombstone");
    assert_eq!(bare.header("tailrace-dead-left-out"), "payload, key and headers");
    assert_eq!((bare.key.as_deref(), bare.header("tailrace-dead-topic")), (None, topic));
    assert!(relay.log().contains("without its payload"), "{}", relay.log());
    assert_eq!(letter.header("tailrace-dead-bytes"), BYTES.to_string());
    assert_eq!(letter.header("ce_type"), "t.v1");
    assert_eq!(letter.key.as_deref(), Some(&b"order-7"[..]));
}

/// Each with what the error must name. Of the last three only Kafka knows why.
fn bad_frames(site: &Site) -> [(Vec<u8>, [&'static str; 2]); 6] {
    let encoded = |builder: tailrace_outbox::Builder| {
        frame::encode(&builder.build().expect("it keeps every rule"))
    };
    let to = |topic: &str| {
        Message::builder(topic, "t.v1").source("/sql").header("xe_id", "1").payload("{}")
    };
    let topic = site.topics.first().expect("a site has topics");
    let whole = encoded(to("a-topic"));
    let cut = whole.get(..20).expect("it is longer").to_vec();
    let in_2100 = to(topic).time_micros(4_102_444_800_000_000);
    let huge = to(topic).payload(vec![b'x'; 2_000_000]).frame_bytes_max(3_000_000);
    [
        (cut, ["not a frame", "at byte 20"]),
        (replaced(&whole, b"a-topic", b"a/topic"), ["topic \"a/topic\"", "can not exist"]),
        (replaced(&whole, b"xe_id", b"ce_id"), ["header name \"ce_id\"", "reserved"]),
        (encoded(to(&colliding(topic)).payload("{1}")), ["creating topic", "its name collides"]),
        (encoded(in_2100), ["ms in the future", "message.timestamp.after.max.ms"]),
        (encoded(huge), ["more than the topic's", "max.message.bytes"]),
    ]
}

/// A name that Kafka does not tell from that of a topic, though it is another.
pub(crate) fn colliding(topic: &str) -> String {
    topic.replace('_', ".")
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from).expect("it is there");
    let mut changed = bytes.to_vec();
    changed.splice(at..at + from.len(), to.iter().copied());
    changed
}

async fn emit(site: &Site, bytes: &[u8]) {
    sqlx::query("select pg_logical_emit_message(true, 'tailrace', $1)")
        .bind(bytes)
        .execute(&site.pool)
        .await
        .expect("any bytes can be written");
}

/// The place that the way on names.
fn place(log: &str) -> &str {
    let (_, rest) = log.rsplit_once("--skip ").expect("the way on is named");
    rest.split_whitespace().next().expect("a place follows")
}
