//! The brokers, their durability, and the topics.

use std::collections::BTreeMap;

use super::Report;
use crate::checkpoint;
use crate::config::Config;
use crate::config::measure::{show_duration, show_size};
use crate::error::{Error, Kind};
use crate::sink::Saved;
use crate::sink::inspect::{Inspector, TRANSACTION_TIMEOUT, TopicSight, known_topics};

/// Copies of what must not be lost, and how many of them a write waits for.
const REPLICAS_MIN: usize = 3;
const IN_SYNC_MIN: u32 = 2;

/// A consumer that is away over a weekend should find its records.
const RETENTION_MS_MIN: u64 = 24 * 3_600 * 1_000;

/// Topics of the relay that are looked at, of those it has published to.
const TOPICS_MAX: usize = 50;

/// What a topic of dead letters must take, as one that the relay makes.
const DEAD_LETTER_BYTES: u64 = 17_000_000;

/// Kafka's own topic of transactions.
const TRANSACTION_STATE: &str = "__transaction_state";

type Settings = BTreeMap<String, String>;

/// Looks at the cluster.
pub(super) async fn check(
    report: &mut Report,
    config: &Config,
    relay_id: Option<&str>,
    saved: Option<&Saved>,
) {
    let checked = async {
        let inspector = Inspector::connect(config.cluster())?;
        let brokers = inspector.brokers().await?;
        let Some(first) = brokers.first() else {
            return Err(Error::new(Kind::Unavailable, "no broker is known"));
        };
        report.ok("kafka", format!("{}: brokers {brokers:?}", config.cluster().brokers()));
        let replicated = brokers.len() >= REPLICAS_MIN;
        if !replicated {
            report.warn(
                "brokers",
                format!(
                    "{} of the brokers: one that is lost may take records with it",
                    brokers.len()
                ),
                "run three or more, with replication factor 3 and min.insync.replicas 2",
            );
        }
        let cluster = broker(report, &inspector, *first).await;
        if replicated {
            transaction_state(report, &inspector, &cluster).await?;
        }
        let durable = Durable { replicated, report };
        topics(durable, config, &inspector, &cluster, relay_id, saved).await
    };
    if let Err(error) = checked.await {
        report.error("kafka", &error);
    }
}

/// The settings of a broker, as far as they may be seen.
async fn broker(report: &mut Report, inspector: &Inspector, id: i32) -> Settings {
    let settings = match inspector.broker_settings(id).await {
        Ok(settings) => settings,
        Err(error) => {
            report.warn(
                "broker_settings",
                format!("they can not be seen: {error}"),
                error.mend().unwrap_or("check them yourself").to_owned(),
            );
            return Settings::new();
        }
    };
    judge(report, &settings);
    settings
}

/// What the settings of a broker say of the whole cluster.
fn judge(report: &mut Report, settings: &Settings) {
    // The brokers of 4.0 and later have no such setting any more.
    let version = settings.get("inter.broker.protocol.version");
    let version = version.map_or("4 or later", String::as_str);
    match version.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
        Some(major) if major < 3 => report.fail(
            "kafka_version",
            format!("the brokers speak version {version}"),
            "3.0 is the oldest that is supported",
        ),
        _ => report.ok("kafka_version", version),
    }
    let ours = u64::try_from(TRANSACTION_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
    match number(settings, "transaction.max.timeout.ms") {
        Some(theirs) if theirs < ours => report.fail(
            "transaction_timeout",
            format!("transaction.max.timeout.ms is {theirs}, and the relay asks for {ours}"),
            "raise it on the brokers: its default is 15 minutes",
        ),
        _ => report.ok("transaction_timeout", format!("{ours} ms are granted")),
    }
}

/// What is lost of it is lost of every transaction.
async fn transaction_state(
    report: &mut Report,
    inspector: &Inspector,
    cluster: &Settings,
) -> Result<(), Error> {
    let name = "transaction_state";
    let factor = match inspector.topic(TRANSACTION_STATE, "Describe").await {
        Err(error) if error.kind() == Kind::Permission => {
            let mend = error.mend().unwrap_or_default().to_owned();
            report.warn(name, format!("its replicas can not be seen: {error}"), mend);
            return Ok(());
        }
        Err(error) => return Err(error),
        Ok(Some(sight)) => sight.replicas,
        // It is made with the first transaction.
        Ok(None) => {
            number(cluster, "transaction.state.log.replication.factor").unwrap_or(3) as usize
        }
    };
    let in_sync = number(cluster, "transaction.state.log.min.isr");
    if factor < REPLICAS_MIN || in_sync.is_some_and(|in_sync| in_sync < IN_SYNC_MIN.into()) {
        report.warn(
            name,
            format!(
                "{TRANSACTION_STATE} has {factor} replicas, and waits for {}",
                in_sync.map_or_else(|| "nobody knows how many".to_owned(), |n| n.to_string())
            ),
            "three replicas (kafka-reassign-partitions.sh) and transaction.state.log.min.isr=2",
        );
    } else {
        report.ok(name, format!("{factor} replicas"));
    }
    Ok(())
}

/// Judges topics where there are brokers enough for more than one copy.
struct Durable<'r> {
    replicated: bool,
    report: &'r mut Report,
}

async fn topics(
    mut durable: Durable<'_>,
    config: &Config,
    inspector: &Inspector,
    cluster: &Settings,
    relay_id: Option<&str>,
    saved: Option<&Saved>,
) -> Result<(), Error> {
    let replicas = config.new_topics().replication_factor;
    if let Some(relay_id) = relay_id {
        let topic = checkpoint::topic(relay_id);
        match inspector.topic(&topic, "Write").await? {
            Some(sight) => {
                let settings = durable.settings(inspector, &topic).await;
                durable.checkpoint(&topic, sight, &settings);
                durable.copies("checkpoint_topic", &topic, sight, &settings);
            }
            None => durable.new_topic(
                "checkpoint_topic",
                &topic,
                inspector.may_create_checkpoint(&topic, replicas).await,
            ),
        }
    }
    if let Some(relay_id) = relay_id.filter(|_| config.sets_aside()) {
        let topic = config.dead_letter_topic_for(relay_id);
        durable.dead_letter_topic(inspector, &topic, config.new_topics().create).await?;
    }
    let known: Vec<String> = saved.map(known_topics).unwrap_or_default();
    for topic in known.iter().take(TOPICS_MAX) {
        let sight = match inspector.topic(topic, "Write").await {
            Err(error) if error.kind() == Kind::Permission => {
                durable.report.error("topics", &error);
                continue;
            }
            sight => sight?,
        };
        if let Some(sight) = sight {
            let settings = durable.settings(inspector, topic).await;
            durable.copies("topics", topic, sight, &settings);
            durable.keeping(topic, &settings);
            durable.sizes(topic, &settings);
        } else if !config.new_topics().create {
            durable.report.fail(
                "topics",
                format!("topic {topic:?} was published to and is gone, and topics.create is false"),
                "make it again",
            );
        }
    }
    if config.new_topics().create {
        match inspector.may_create(config.new_topics()).await {
            // It was asked for a name that is in no list of rights.
            Err(error) if error.kind() == Kind::Permission => durable.report.warn(
                "new_topics",
                format!("whether they can be made is not seen: {error}"),
                "let the principal Create topics of the names that your messages have, or make \
                 them beforehand",
            ),
            made => durable.new_topic("new_topics", "new topics", made),
        }
        durable.defaults(replicas, cluster);
    }
    durable.sizes("new topics", cluster);
    Ok(())
}

impl Durable<'_> {
    /// The settings of a topic, as far as they may be seen.
    async fn settings(&mut self, inspector: &Inspector, topic: &str) -> Settings {
        match inspector.topic_settings(topic).await {
            Ok(settings) => settings,
            Err(error) => {
                let mend = error.mend().unwrap_or_default().to_owned();
                let text = format!("they can not be seen: {error}");
                self.report.warn("topic_settings", text, mend);
                Settings::new()
            }
        }
    }

    /// A checkpoint that the brokers delete is a checkpoint that is lost.
    fn checkpoint(&mut self, topic: &str, sight: TopicSight, settings: &Settings) {
        let name = "checkpoint_topic";
        let policy = settings.get("cleanup.policy").map_or("compact", String::as_str);
        if policy != "compact" {
            self.report.fail(
                name,
                format!("{topic} has cleanup.policy={policy}: the checkpoint will be deleted"),
                format!(
                    "kafka-configs.sh --alter --entity-type topics --entity-name {topic} \
                     --add-config cleanup.policy=compact"
                ),
            );
        } else if sight.partitions != 1 {
            self.report.fail(
                name,
                format!(
                    "{topic} has {} partitions, and a checkpoint needs order",
                    sight.partitions
                ),
                "with every relay stopped: delete it, and cdc-relay adopt --accept-gap",
            );
        } else {
            self.report.ok(name, topic);
        }
    }

    async fn dead_letter_topic(
        &mut self,
        inspector: &Inspector,
        topic: &str,
        is_made: bool,
    ) -> Result<(), Error> {
        match inspector.topic(topic, "Write").await {
            Ok(Some(_)) => {
                let settings = self.settings(inspector, topic).await;
                self.dead_letters(topic, Some(&settings));
            }
            Ok(None) if is_made => {}
            Ok(None) => self.dead_letters(topic, None),
            Err(error) if error.kind() == Kind::Permission => {
                self.report.error("dead_letters", &error);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Where the topic of dead letters takes none, the first bad message stops the relay.
    fn dead_letters(&mut self, topic: &str, settings: Option<&Settings>) {
        let name = "dead_letters";
        let bytes = DEAD_LETTER_BYTES;
        let Some(settings) = settings else {
            self.report.fail(
                name,
                format!(
                    "topic {topic:?} does not exist, and topics.create is false: the first message \
                     that can not be published stops the relay"
                ),
                format!(
                    "kafka-topics.sh --create --topic {topic} --config retention.ms=-1 --config \
                     max.message.bytes={bytes}"
                ),
            );
            return;
        };
        let alter = |setting: &str| {
            format!(
                "kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config \
                 {setting}"
            )
        };
        let max = number(settings, "max.message.bytes");
        if settings.get("cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
            self.report.fail(
                name,
                format!("{topic} is compacted: it takes no dead letter without a key"),
                alter("cleanup.policy=delete"),
            );
        } else if let Some(max) = max.filter(|max| *max < bytes) {
            self.report.warn(
                name,
                format!("{topic} takes {}: a longer dead letter stops the relay", show_size(max)),
                alter(&format!("max.message.bytes={bytes}")),
            );
        } else {
            self.report.ok(name, topic);
        }
    }

    fn copies(&mut self, name: &'static str, topic: &str, sight: TopicSight, settings: &Settings) {
        if !self.replicated {
            return;
        }
        let in_sync = number(settings, "min.insync.replicas");
        let mut faults = Vec::new();
        if sight.replicas < REPLICAS_MIN {
            faults.push(format!("{} replicas", sight.replicas));
        }
        if in_sync.is_some_and(|in_sync| in_sync < IN_SYNC_MIN.into()) {
            faults.push("min.insync.replicas=1".to_owned());
        }
        if settings.get("unclean.leader.election.enable").is_some_and(|unclean| unclean == "true") {
            faults.push("unclean.leader.election.enable=true".to_owned());
        }
        if !faults.is_empty() {
            self.report.warn(
                name,
                format!("{topic} can lose what was acknowledged: {}", faults.join(", ")),
                "three replicas, min.insync.replicas=2, no unclean election",
            );
        }
    }

    fn new_topic(&mut self, name: &'static str, topic: &str, made: Result<(), Error>) {
        match made {
            Ok(()) => self.report.ok(name, format!("{topic} can be made")),
            Err(error) => self.report.error(name, &error),
        }
    }

    /// What the brokers give a topic of which nothing is said.
    fn defaults(&mut self, replicas: i32, cluster: &Settings) {
        let by_default = number(cluster, "default.replication.factor");
        let factor = u64::try_from(replicas).ok().or(by_default);
        if self.replicated && factor.is_some_and(|factor| factor < REPLICAS_MIN as u64) {
            self.report.warn(
                "new_topics",
                format!("they get {} replicas", factor.unwrap_or_default()),
                "set topics.replication_factor to 3, or default.replication.factor on the brokers",
            );
        }
        let in_sync = number(cluster, "min.insync.replicas");
        if self.replicated && in_sync.is_some_and(|in_sync| in_sync < IN_SYNC_MIN.into()) {
            self.report.warn(
                "new_topics",
                "the brokers' min.insync.replicas is 1: an acknowledged record can be lost",
                "set it to 2 on the brokers, or under topics.configs",
            );
        }
    }

    fn keeping(&mut self, topic: &str, settings: &Settings) {
        let deletes =
            settings.get("cleanup.policy").is_some_and(|policy| policy.contains("delete"));
        if let Some(ms) = number(settings, "retention.ms")
            && deletes
            && ms < RETENTION_MS_MIN
        {
            let kept = show_duration(std::time::Duration::from_millis(ms));
            self.report.warn(
                "retention",
                format!("{topic} keeps records for {kept}: a consumer that is away loses them"),
                "raise retention.ms to the longest absence of a consumer that you want to survive",
            );
        }
    }

    /// A message that a service may write should not be refused later.
    fn sizes(&mut self, topic: &str, settings: &Settings) {
        let longest = tailrace_outbox::FRAME_BYTES_MAX as u64;
        // A broker's name for it, and a topic's.
        let max =
            number(settings, "max.message.bytes").or_else(|| number(settings, "message.max.bytes"));
        if let Some(max) = max
            && max < longest
        {
            self.report.warn(
                "message_size",
                format!(
                    "{topic} take {}, and services may write messages of {}",
                    show_size(max),
                    show_size(longest)
                ),
                "raise max.message.bytes (message.max.bytes on the brokers), or larger messages \
                 become dead letters",
            );
        }
    }
}

fn number(settings: &Settings, name: &str) -> Option<u64> {
    settings.get(name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Report, Settings, judge};
    use crate::check::Level;

    #[test]
    fn brokers_too_old_or_too_strict_are_told() {
        for (version, timeout, levels) in [
            (None, "900000", [Level::Ok, Level::Ok]),
            (Some("3.9-IV0"), "15000", [Level::Ok, Level::Ok]),
            (Some("2.8-IV1"), "14999", [Level::Fail, Level::Fail]),
        ] {
            let mut settings = Settings::new();
            settings.insert("transaction.max.timeout.ms".to_owned(), timeout.to_owned());
            if let Some(version) = version {
                settings.insert("inter.broker.protocol.version".to_owned(), version.to_owned());
            }
            let mut report = Report::default();

            judge(&mut report, &settings);

            let found: Vec<Level> = report.findings.iter().map(|finding| finding.level).collect();
            assert_eq!(found, levels, "{version:?} {timeout}");
        }
    }
}
