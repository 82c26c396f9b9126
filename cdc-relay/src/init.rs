//! Makes what a relay needs before its first start, or says what that is.

use std::fmt::Write as _;

use crate::checkpoint::Stored;
use crate::config::Config;
use crate::error::Error;
use crate::milestone::Observer;
use crate::replication::{Client, quote_identifier};
use crate::resume::{self, Slot};
use crate::session::not_anothers;
use crate::sink::Connect;
use crate::{checkpoint, setup, source};

/// Makes publication, checkpoint topic, intent and slot; answers with what was done.
///
/// What exists is left as it is, so it may be run again. A relay that runs is not disturbed.
pub(crate) async fn init<C: Connect>(config: &Config, connect: &C) -> Result<String, Error> {
    let mut client = Client::connect(&config.endpoint()?).await?;
    let server = source::identify(&mut client).await?;
    let relay_id = config.relay_id_for(&server.system_identifier, &server.database)?;
    if let Some(slot) = source::slot(&mut client, config.slot_name()).await? {
        slot.check(&server)?;
        return beside(config, connect, &relay_id, &slot, &mut client).await;
    }
    let mut sink = connect.connect(&relay_id).await?;
    not_anothers(config, connect, &relay_id, &server).await?;
    let config = config.clone().init(true);
    setup::create(&config, &Observer::default(), &server, &mut sink, &mut client).await?;
    Ok(format!(
        "publication {:?} and slot {:?} are there: messages are kept from now on\n\
         relay {relay_id} keeps its checkpoint in topic {}\n",
        config.publication_name(),
        config.slot_name(),
        checkpoint::topic(&relay_id)
    ))
}

/// Makes what is missing beside a slot that exists: the publication. Without a checkpoint, or with
/// one that does not belong to the slot, `run` would refuse, and so does this.
async fn beside<C: Connect>(
    config: &Config,
    connect: &C,
    relay_id: &str,
    slot: &Slot,
    client: &mut Client,
) -> Result<String, Error> {
    let stored = connect.saved(relay_id).await?.as_ref().map(Stored::read).transpose()?;
    // Asked anew: the log has gone on, and a relay that leads may have.
    let server = source::identify(client).await?;
    let history = source::history(client, &server).await?;
    let switched = |timeline| resume::left_at(&history, timeline);
    let stored = stored.unwrap_or_default();
    resume::resume(&server, slot, &stored, switched)?;
    resume::same_prefix(&stored, config.published_prefix())?;
    let name = config.slot_name();
    if setup::has_publication(config, client).await? {
        return Ok(format!("slot {name:?} exists: nothing to do\n"));
    }
    setup::publication(config, client).await?;
    Ok(format!(
        "slot {name:?} exists; publication {:?} was missing and is made: rows that were inserted \
         while it was missing are not published\n",
        config.publication_name()
    ))
}

/// What [`init`] would do, as commands for whoever has the rights. Asks the database alone, and
/// changes nothing.
pub(crate) async fn plan(config: &Config) -> Result<String, Error> {
    let endpoint = config.endpoint()?;
    let mut client = Client::connect(&endpoint).await?;
    let server = source::identify(&mut client).await?;
    let relay_id = config.relay_id_for(&server.system_identifier, &server.database)?;
    let role = quote_identifier(endpoint.user());
    let mut text = format!(
        "-- The role that runs the relay needs LOGIN and REPLICATION, and nothing else:\n\
         ALTER ROLE {role} LOGIN REPLICATION;\n\
         -- where the provider keeps that right to itself, its own role (Amazon RDS and Aurora):\n\
         -- GRANT rds_replication TO {role};\n\n"
    );
    // A string takes any text.
    if setup::has_publication(config, &mut client).await? {
        let _ = writeln!(text, "-- Publication {:?} exists.", config.publication_name());
    } else {
        let command = setup::publication_command(config, &mut client).await?;
        let _ = write!(
            text,
            "-- Once, by a role with CREATE on the database that owns the journal, before the \
             slot:\n{command};\n"
        );
    }
    match source::slot(&mut client, config.slot_name()).await? {
        Some(slot) => {
            slot.check(&server)?;
            let _ = writeln!(text, "\n-- Slot {:?} exists.", config.slot_name());
        }
        None => {
            let command = setup::slot_command(config, client.server_version());
            let _ = write!(
                text,
                "\n-- By the relay (run, or init), which notes down in Kafka that it does so; a \
                 slot that\n-- was made by hand is refused:\n-- {command};\n"
            );
            let running = source::running(&mut client).await?;
            if !running.is_empty() {
                let _ = writeln!(
                    text,
                    "-- It would wait for the transactions of these backends to end: {running}"
                );
            }
        }
    }
    let replicas = match config.new_topics().replication_factor {
        -1 => "the brokers' default replication factor".to_owned(),
        replicas => format!("replication factor {replicas}"),
    };
    let _ = write!(
        text,
        "\n-- In Kafka, by the relay: topic {}, one partition,\n-- cleanup.policy=compact, \
         segment.bytes=8388608, {replicas};\n-- transactional ids tailrace.relay.{relay_id}.a and \
         .b\n",
        checkpoint::topic(&relay_id)
    );
    Ok(text)
}
