//! The configuration of a broker.

use super::node::Listeners;

/// How soon the others take a killed broker for dead. The default of 9 seconds is spent in every
/// test of a broker's loss; far less, and a busy machine would lose brokers that live.
const SESSION_MS: u32 = 4_000;
const HEARTBEAT_MS: u32 = 500;

/// What a test may ask for its group; all other groups keep the default of their sessions.
const GROUP_SESSION_MIN_MS: u32 = 2_000;
const GROUP_HEARTBEAT_MIN_MS: u32 = 100;

/// How often members of the newer protocol (KIP-848) ask for what is theirs. One that comes into a group soon after
/// another has left it is given nothing before its second heartbeat, so that every restart of a consumer takes as long:
/// 5 seconds by default.
const GROUP_HEARTBEAT_MS: u32 = 300;

/// Who comes without a log-in is the stack itself, and the brokers are among it.
pub(super) const AUTHORIZER: &str = "
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=false
super.users=User:ANONYMOUS
";

/// The text of `server.properties` for the node of this number; `voters` are the numbers and
/// controller ports of all nodes, itself among them.
///
/// Each node is broker and controller. What has a replication factor of 3 by default has as many
/// as there are brokers, or a transaction would wait for brokers that never come; the inner topics
/// are small, so that they are created quickly; and a group does not wait for more members.
pub(super) fn properties(
    number: u32,
    listeners: &Listeners,
    voters: &[(u32, u16)],
    data: &str,
) -> String {
    let Listeners { client, controller, proxied, secure } = listeners;
    let mut bound = vec![format!("PLAINTEXT://127.0.0.1:{client}")];
    let mut advertised = bound.clone();
    if let Some((port, proxy)) = proxied {
        bound.push(format!("PROXIED://127.0.0.1:{port}"));
        advertised.push(format!("PROXIED://{}", proxy.address()));
    }
    if let Some(port) = secure {
        bound.push(format!("SECURE://127.0.0.1:{port}"));
        advertised.push(format!("SECURE://localhost:{port}"));
    }
    bound.push(format!("CONTROLLER://127.0.0.1:{controller}"));
    let quorum: Vec<String> =
        voters.iter().map(|(number, port)| format!("{number}@127.0.0.1:{port}")).collect();
    let replicas = voters.len().min(3);
    let in_sync = (replicas - 1).max(1);
    format!(
        "process.roles=broker,controller
node.id={number}
controller.quorum.voters={quorum}
listeners={bound}
advertised.listeners={advertised}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
default.replication.factor={replicas}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={replicas}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms={GROUP_SESSION_MIN_MS}
group.consumer.min.session.timeout.ms={GROUP_SESSION_MIN_MS}
group.consumer.min.heartbeat.interval.ms={GROUP_HEARTBEAT_MIN_MS}
group.consumer.heartbeat.interval.ms={GROUP_HEARTBEAT_MS}
broker.session.timeout.ms={SESSION_MS}
broker.heartbeat.interval.ms={HEARTBEAT_MS}
",
        quorum = quorum.join(","),
        bound = bound.join(","),
        advertised = advertised.join(","),
    )
}
