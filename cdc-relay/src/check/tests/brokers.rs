//! What is amiss with brokers and topics.

use tailrace_stack::{Needs, Stack};

use super::site::{Site, strict};
use crate::check::{Bounds, Level, check};
use crate::checkpoint::topic;
use crate::config::Config;

#[tokio::test]
async fn what_is_amiss_with_topics_is_found() {
    let policy = Site::new("check_policy").await;
    policy.make_topic(&topic(&policy.slot), 1, 1, &[("cleanup.policy", "delete")]).await;
    policy
        .finds(&policy.config(), strict(), ("checkpoint_topic", Level::Fail, "will be deleted"))
        .await;

    let wide = Site::new("check_wide").await;
    wide.make_topic(&topic(&wide.slot), 3, 1, &[("cleanup.policy", "compact")]).await;
    wide.finds(&wide.config(), strict(), ("checkpoint_topic", Level::Fail, "3 partitions")).await;

    let mut site = Site::new("check_topics").await;
    site.save_intent().await;
    let short = [("retention.ms", "60000"), ("max.message.bytes", "1000")];
    site.make_topic(&site.slot, 1, 1, &short).await;
    let known = |name: &str| format!("partitions:{name}");
    let entry = br#"{"version":1,"partitions":1,"relay_version":"0"}"#;
    site.save(&known(&site.slot), entry).await;
    site.save(&known(&named(&site, "gone")), entry).await;
    let many = site.config().topic_replication_factor(5);
    let odd = site.config().topic_config("no.such.setting", "1");
    let fixed = site.config().create_topics(false);
    site.make_topic(&named(&site, "compact"), 1, 1, &[("cleanup.policy", "compact")]).await;
    let compact = site.config().dead_letter_topic(named(&site, "compact"));
    let small = site.config().dead_letter_topic(&site.slot);
    for (config, finds) in [
        (site.config(), ("retention", Level::Warn, "1m 0s")),
        (site.config(), ("message_size", Level::Warn, "1000B")),
        (site.config(), ("brokers", Level::Warn, "1 of the brokers")),
        (many, ("new_topics", Level::Fail, "replication factor")),
        (odd, ("new_topics", Level::Fail, "")),
        (fixed.clone(), ("topics", Level::Fail, "_gone")),
        (fixed, ("dead_letters", Level::Fail, "does not exist, and topics.create is false")),
        (compact, ("dead_letters", Level::Fail, "compacted")),
        (small, ("dead_letters", Level::Warn, "1000B")),
    ] {
        site.finds(&config, strict(), finds).await;
    }
    let wrong = site.config();
    site.save("checkpoint", b"not a checkpoint").await;
    site.finds(&wrong, strict(), ("checkpoint", Level::Fail, "not readable")).await;
}

fn named(site: &Site, suffix: &str) -> String {
    format!("{}_{suffix}", site.slot)
}

#[tokio::test]
async fn a_cluster_that_can_lose_records_is_told_from_one_that_can_not() {
    let stack = Stack::start(Needs::BOTH.brokers(3)).await.unwrap();
    let mut site = Site::on(stack.postgres(), stack.kafka(), "check_cluster").await;
    let config = site.config().topic_replication_factor(1);

    let report = check(&site.config(), Bounds::default()).await;
    let kafkas = ["kafka", "transaction_state", "checkpoint_topic", "new_topics", "brokers"];
    let amiss = |name: &str| {
        let found = report.findings.iter().filter(|finding| finding.name == name);
        found.filter(|finding| finding.level != Level::Ok).count()
    };
    assert_eq!(kafkas.map(amiss), [0; 5], "{}", report.text());

    site.save_intent().await;
    site.finds(&config, strict(), ("checkpoint_topic", Level::Warn, "1 replicas")).await;
    site.finds(&config, strict(), ("new_topics", Level::Warn, "1 replicas")).await;
    let unclean = [("unclean.leader.election.enable", "true"), ("min.insync.replicas", "1")];
    site.make_topic(&site.slot, 1, 3, &unclean).await;
    let entry = br#"{"version":1,"partitions":1,"relay_version":"0"}"#;
    site.save(&format!("partitions:{}", site.slot), entry).await;
    site.finds(&config, strict(), ("topics", Level::Warn, "unclean.leader.election")).await;

    // A slot without a checkpoint is nothing to be told of where that can not be asked for.
    site.run("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')").await;
    let away = Config::new(site.url(), "127.0.0.1:1").slot(&site.slot);
    let report = site.finds(&away, strict(), ("checkpoint", Level::Warn, "not known")).await;
    assert!(
        report.text().contains("fail kafka") && !report.text().contains("adopt"),
        "{}",
        report.text()
    );

    drop(stack);
    let report = check(&site.config(), Bounds::default()).await;
    let kafka = report.findings.iter().find(|finding| finding.name == "kafka").unwrap();
    assert_eq!(kafka.level, Level::Fail, "{}", report.text());
}
