//! Messages that SQL of any origin can write, and nobody can publish.

use tailrace_outbox::{Message, frame};
use tests::Site;
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

/// Each with what the error must name. The last two only Kafka itself can refuse, with good
/// messages around them in the same batch.
fn bad_frames(site: &Site) -> [(Vec<u8>, [&'static str; 2]); 5] {
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
        (cut, ["not a frame", "byte 20"]),
        (replaced(&whole, b"a-topic", b"a/topic"), ["topic \"a/topic\"", "can not exist"]),
        (replaced(&whole, b"xe_id", b"ce_id"), ["header name \"ce_id\"", "reserved"]),
        (encoded(in_2100), ["refused the message at", "InvalidTimestamp"]),
        (encoded(huge), ["2000000 bytes", "MessageSizeTooLarge"]),
    ]
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
