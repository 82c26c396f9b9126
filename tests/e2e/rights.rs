//! What the relay's principal may do in Kafka: the list of docs/operating.md, and nothing else.

use std::time::Duration;

use sqlx::Executor;
use tailrace_outbox::{Message, Outbox, Store};
use tailrace_stack::{Acl, Kafka, Mechanism, Needs, Operation, Stack};
use tests::Site;
use tests::process::Process;
use tests::reader::Seen;

use crate::complaint::refuses;
use crate::run::{LEAD_MAX, PUBLISH_MAX, node, stop};
use crate::secure::Way;

const PERMISSION: i32 = 3;
const REJECTED: i32 = 5;
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Enough that `check` looks at the topic of transactions.
const BROKERS: u32 = 3;

/// The rights of the manual, for topics that exist and for one that the relay is to make.
struct Rights {
    checkpoint: [Acl; 4],
    topic: [Acl; 2],
    other_topic: [Acl; 2],
    made_topic: [Acl; 3],
    dead_letters: [Acl; 3],
    transactional_ids: Acl,
    cluster: Acl,
    transaction_state: Acl,
}

impl Rights {
    fn of(site: &Site) -> Rights {
        use Operation::{Create, Describe, DescribeConfigs, Read, Write};
        let id = &site.relay_id;
        let [topic, other] = &topics(site);
        let checkpoint = format!("tailrace.checkpoint.{id}");
        let existing = |topic: &str| [Write, DescribeConfigs].map(|right| Acl::topic(topic, right));
        let made =
            |topic: &str| [Write, DescribeConfigs, Create].map(|right| Acl::topic(topic, right));
        Rights {
            checkpoint: [Read, Write, Create, DescribeConfigs]
                .map(|right| Acl::topics(&checkpoint, right)),
            topic: existing(topic),
            other_topic: existing(other),
            made_topic: made(&made_topic(site)),
            dead_letters: made(&dead_letter_topic(site)),
            transactional_ids: Acl::transactional_ids(&format!("tailrace.relay.{id}."), Write),
            cluster: Acl::cluster(DescribeConfigs),
            transaction_state: Acl::topic("__transaction_state", Describe),
        }
    }

    fn all(&self) -> Vec<Acl> {
        let single = [&self.transactional_ids, &self.cluster, &self.transaction_state];
        let several = self.checkpoint.iter().chain(&self.topic).chain(&self.other_topic);
        let several = several.chain(&self.made_topic).chain(&self.dead_letters);
        several.chain(single).cloned().collect()
    }

    fn without(&self, acl: &Acl) -> Vec<Acl> {
        self.all().into_iter().filter(|other| other != acl).collect()
    }
}

fn topics(site: &Site) -> [String; 2] {
    site.topics.clone().try_into().expect("the site has two topics")
}

/// The last of these dead letters says why it is one.
#[track_caller]
fn is_for_lack_of_a_right(letters: &[Seen], lacks: &str) {
    let last = letters.last().expect("there are some");
    assert!(last.header("tailrace-dead-detail").contains(lacks), "{last:?}");
}

fn made_topic(site: &Site) -> String {
    format!("{}.made", site.relay_id)
}

fn dead_letter_topic(site: &Site) -> String {
    format!("tailrace.dead-letter.{}", site.relay_id)
}

/// Writes a message that is known by its subject.
async fn say(site: &Site, topic: &str, subject: &str) {
    let message = Message::builder(topic, "thing.said.v1").source("/talk").key("one key");
    let message = message.subject(subject).json(&subject).build().expect("it keeps every rule");
    let mut connection = site.connect().await;
    Outbox::new(Store::Journal).write(&mut connection, &message).await.expect("it is written");
}

async fn say_nonsense(site: &Site) {
    let nonsense = "select pg_logical_emit_message(true, 'tailrace', 'no frame')";
    site.pool.execute(nonsense).await.expect("any bytes can be written");
}

/// Reads topics until so many records are there.
async fn read(site: &mut Site, topics: &[&str], count: usize) -> Vec<Seen> {
    let all = std::mem::replace(&mut site.topics, topics.iter().map(|&t| t.to_owned()).collect());
    let seen = site.read_until(PUBLISH_MAX, move |seen| seen.len() >= count).await;
    site.topics = all;
    seen
}

fn subjects(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|seen| seen.header("ce_subject")).collect()
}

/// Runs a command to its good end; answers with what it said.
async fn does(way: &Way, site: &Site, command: &[&str]) -> String {
    let mut process = way.starts(site, command);
    let status = process.ends(ANSWER_MAX).await;
    assert!(status.success(), "{command:?}: {status}:\n{}", process.log());
    process.log()
}

async fn leads(way: &Way, site: &Site) -> Process {
    let mut relay = way.starts(site, &["run"]);
    relay.says("leading", LEAD_MAX).await;
    relay
}

#[tokio::test]
async fn the_rights_of_the_manual_are_enough_and_each_of_them_is_needed() {
    let stack = Stack::start(Needs::BOTH.authorizer().brokers(BROKERS)).await.expect("it starts");
    let kafka = stack.kafka();
    let mut site = Site::new(&stack, "rights", 2, &node()).await;
    site.prepare_journal().await;
    let way = Way::right(&stack, &site, Mechanism::ScramSha512);
    let rights = Rights::of(&site);

    refuses(&mut way.starts(&site, &["init"]), PERMISSION, &["User:tailrace lacks Write"]).await;
    to_make_the_checkpoint_topic(kafka, &way, &site, &rights).await;
    kafka.allow(&rights.all()).await.expect("they are given");
    everything_works(&way, &mut site).await;
    what_check_tells(kafka, &way, &site, &rights).await;
    what_ends_a_run(kafka, &way, &site, &rights).await;
    what_makes_dead_letters(kafka, &way, &mut site, &rights).await;
}

/// Each command, with all of the rights and nothing else.
async fn everything_works(way: &Way, site: &mut Site) {
    let [topic, other] = topics(site);
    let made = made_topic(site);
    assert!(does(way, site, &["init"]).await.contains("kept from now on"));
    let mut relay = leads(way, site).await;
    for topic in [&topic, &other, &made] {
        say(site, topic, "one").await;
    }
    say_nonsense(site).await;
    say(site, &topic, "two").await;
    assert_eq!(subjects(&read(site, &[&topic], 2).await), ["one", "two"]);
    assert_eq!(subjects(&read(site, &[&other], 1).await), ["one"]);
    let letters = dead_letter_topic(site);
    assert_eq!(read(site, &[&letters], 1).await.len(), 1);
    assert!(does(way, site, &["status"]).await.contains("incarnation"));
    let check = does(way, site, &["check"]).await;
    for amiss in ["can not be seen", "lacks Write", "lacks Read", "fail "] {
        assert!(!check.contains(amiss), "{amiss:?} is in:\n{check}");
    }
    stop(&mut relay).await;

    let replay = does(way, site, &["replay", "--from", "2020-01-01"]).await;
    assert!(replay.contains("published 4 messages again"), "{replay}");
    site.on_slot("select pg_drop_replication_slot($1)").await;
    assert!(does(way, site, &["adopt", "--accept-gap"]).await.contains("lost"));
    let mut relay = way.starts(site, &["run", "--delivery=at-least-once"]);
    relay.says("leading", LEAD_MAX).await;
    say(site, &topic, "three").await;
    read(site, &[&topic], 5).await;
    stop(&mut relay).await;
}

/// Without this one the first start fails, unless somebody else has made the topic.
async fn to_make_the_checkpoint_topic(kafka: &Kafka, way: &Way, site: &Site, rights: &Rights) {
    let [_, _, create, _] = &rights.checkpoint;
    kafka.allow(&rights.without(create)).await.expect("they are given");
    let named =
        ["User:tailrace lacks Create on topic \"tailrace.checkpoint.", "--operation Create"];
    refuses(&mut way.starts(site, &["init"]), PERMISSION, &named).await;
}

/// These are for `check` alone, which says what it can not see, or it tells beforehand what a run
/// would meet.
async fn what_check_tells(kafka: &Kafka, way: &Way, site: &Site, rights: &Rights) {
    let told = |resource: &str, operation: &str| format!("lacks {operation} on {resource}");
    let [topic, _] = &topics(site);
    let on = |name: &str| format!("topic \"{name}\"");
    let checkpoint = on(&format!("tailrace.checkpoint.{}", site.relay_id));
    for (acl, told) in [
        (&rights.checkpoint[3], told(&checkpoint, "DescribeConfigs")),
        (&rights.topic[0], told(&on(topic), "Write")),
        (&rights.topic[1], told(&on(topic), "DescribeConfigs")),
        (&rights.made_topic[1], told(&on(&made_topic(site)), "DescribeConfigs")),
        (&rights.dead_letters[1], told(&on(&dead_letter_topic(site)), "DescribeConfigs")),
        (&rights.cluster, told("cluster \"kafka-cluster\"", "DescribeConfigs")),
        (&rights.transaction_state, told(&on("__transaction_state"), "Describe")),
    ] {
        kafka.allow(&rights.without(acl)).await.expect("they are given");
        let mut check = way.starts(site, &["check"]);
        check.ends(ANSWER_MAX).await;
        assert!(check.log().contains(&told), "{acl:?}: {told:?} is not in:\n{}", check.log());
        assert!(check.log().contains("kafka-acls.sh --add --allow-principal User:tailrace"));
    }
}

/// Without these nothing can be published at all.
async fn what_ends_a_run(kafka: &Kafka, way: &Way, site: &Site, rights: &Rights) {
    let [topic, _] = &topics(site);
    say(site, topic, "four").await;
    let [read, write, ..] = &rights.checkpoint;
    for (acl, lacks) in [
        (read, "lacks Read on topic \"tailrace.checkpoint."),
        (write, "lacks Write on topic \"tailrace.checkpoint."),
        (&rights.transactional_ids, "lacks Write on transactional id \"tailrace.relay."),
    ] {
        kafka.allow(&rights.without(acl)).await.expect("they are given");
        let mut relay = way.starts(site, &["run"]);
        refuses(&mut relay, PERMISSION, &["User:tailrace", lacks, "--operation"]).await;
    }
    kafka.allow(&rights.without(read)).await.expect("they are given");
    let mut status = way.starts(site, &["status"]);
    refuses(&mut status, PERMISSION, &["lacks Read on topic \"tailrace.checkpoint."]).await;
}

/// Without these a message becomes a dead letter, and the others go on.
async fn what_makes_dead_letters(kafka: &Kafka, way: &Way, site: &mut Site, rights: &Rights) {
    let [topic, other] = topics(site);
    let letters = dead_letter_topic(site);
    // Before the first record of a session to the topic, where the relay sees that it may not.
    kafka.allow(&rights.without(&rights.topic[0])).await.expect("they are given");
    let mut relay = leads(way, site).await;
    say(site, &topic, "five").await;
    say(site, &other, "five").await;
    let seen = read(site, &[&letters], 3).await;
    assert_eq!(subjects(&seen), ["", "four", "five"]);
    let lacks = format!("User:tailrace lacks Write on topic \"{topic}\"");
    is_for_lack_of_a_right(&seen, &lacks);

    // In the middle of a session, where the brokers refuse what the relay sends.
    stop(&mut relay).await;
    kafka.allow(&rights.all()).await.expect("they are given");
    let mut relay = leads(way, site).await;
    say(site, &topic, "six").await;
    read(site, &[&topic], 6).await;
    let mut described = rights.without(&rights.topic[0]);
    described.push(Acl::topic(&topic, Operation::Describe));
    kafka.allow(&described).await.expect("they are given");
    for subject in ["seven", "eight"] {
        say(site, &topic, subject).await;
        say(site, &other, subject).await;
    }
    let seen = read(site, &[&letters], 5).await;
    assert_eq!(subjects(&seen), ["", "four", "five", "seven", "eight"]);
    is_for_lack_of_a_right(&seen, &lacks);
    let others = read(site, &[&other], 5).await;
    assert_eq!(subjects(&others), ["one", "one", "five", "seven", "eight"]);

    // A topic that the relay may not make, and dead letters that have no place to go.
    stop(&mut relay).await;
    let never = format!("{}.never", site.relay_id);
    kafka
        .allow(&[rights.all(), vec![Acl::topic(&never, Operation::Write)]].concat())
        .await
        .expect("they are given");
    let mut relay = leads(way, site).await;
    say(site, &never, "nine").await;
    let seen = read(site, &[&letters], 6).await;
    is_for_lack_of_a_right(&seen, "lacks Create");
    stop(&mut relay).await;
    say_nonsense(site).await;
    kafka.allow(&rights.without(&rights.dead_letters[0])).await.expect("they are given");
    let lacks = format!("lacks Write on topic \"{letters}\"");
    refuses(&mut way.starts(site, &["run"]), REJECTED, &[&lacks, "nor can its dead letter"]).await;
    site.delete_topic(&letters).await;
    kafka.allow(&rights.without(&rights.dead_letters[2])).await.expect("they are given");
    let lacks = format!("lacks Create on topic \"{letters}\"");
    refuses(&mut way.starts(site, &["run"]), REJECTED, &[&lacks, "nor can its dead letter"]).await;
    kafka.allow(&rights.all()).await.expect("they are given");
    let mut relay = leads(way, site).await;
    relay.says("created topic", PUBLISH_MAX).await;
    read(site, &[&letters], 1).await;
    stop(&mut relay).await;
}
