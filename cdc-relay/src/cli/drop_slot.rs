//! `cdc-relay drop-slot`: ends the life of a slot.

use crate::config::Config;
use crate::error::{Error, Kind};
use crate::replication::Client;
use crate::{adopt, checkpoint, source};

/// Drops the slot, or tells what that would mean.
pub(super) async fn drop_slot(config: &Config, yes: bool) -> Result<String, Error> {
    let name = config.slot_name();
    let mut client = Client::connect(&config.endpoint()?).await?;
    let server = source::identify(&mut client).await?;
    let Some(slot) = source::slot(&mut client, name).await? else {
        return Ok(format!("slot {name:?} does not exist\n"));
    };
    slot.check(&server)?;
    let begin =
        slot.confirmed_flush.map_or_else(|| "its beginning".to_owned(), |lsn| lsn.to_string());
    if !yes {
        let text = format!(
            "dropping slot {name:?} loses what committed after {begin} (the log ends at {}) and \
             is not published, and all that commits before there is a slot again",
            server.flushed
        );
        return Err(Error::new(Kind::Config, text).hint("add --yes to drop it"));
    }
    adopt::drop_slot(name, &mut client).await?;
    let relay_id = config.relay_id_for(&server.system_identifier, &server.database)?;
    Ok(format!(
        "dropped slot {name:?}, which was flushed to {begin}\n\
         the checkpoint stays in topic {}: run refuses to begin anew while it is there, and \
         adopt --accept-gap makes a new slot with the gap told\n\
         to be rid of the relay for good, delete that topic and drop publication {:?}\n",
        checkpoint::topic(&relay_id),
        config.publication_name()
    ))
}
