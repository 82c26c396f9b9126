//! Changes that are too large to be received: a relay keeps no more of them than says whose they are.
//!
//! Nothing so large could be published, so nothing is lost by it. What became of the message is told as of
//! any other that can not be published: by a dead letter in its place.

use std::time::Instant;

use tailrace_outbox::frame::Frame;

use super::Publisher;
use crate::error::Error;
use crate::lsn::Lsn;
use crate::pgoutput::Head;
use crate::progress::Verdict;
use crate::record::Unpublishable;
use crate::sink::Sink;

impl<S: Sink> Publisher<'_, S> {
    /// Takes in what was received of such a change.
    pub(super) async fn unread(
        &mut self,
        head: Head<'_>,
        unread: usize,
        change_lsn: Lsn,
        now: Instant,
    ) -> Result<(), Error> {
        let content = match head {
            Head::Message { transactional: false, prefix, .. } => {
                self.outside_a_transaction(prefix, change_lsn);
                return Ok(());
            }
            Head::Message { prefix, content, .. } => {
                let ours = prefix == self.config.message_prefix();
                if !self.config.publishes_messages() {
                    if ours {
                        self.unwanted_message();
                    }
                    return Ok(());
                }
                ours.then_some(content)
            }
            Head::Row { relation, new: true } if self.tables.hold(relation) => Some(&[][..]),
            Head::Row { relation, .. } => return self.row(&[relation], change_lsn),
        };
        let Verdict::Fresh(position) = self.progress.change(change_lsn)? else { return Ok(()) };
        let Some(content) = content else { return Ok(()) };
        let (frame, left_out) = without_payload(content);
        let why = "it is longer than 32 MiB, and was not read".to_owned();
        let fault = Unpublishable { unread: left_out + unread, ..Unpublishable::rejected(why) };
        self.fault(&frame, fault, position, change_lsn, now).await
    }
}

/// The beginning of a frame as a frame with an empty payload, and how many bytes of the payload are
/// thereby left out; nothing where the beginning does not reach that far.
fn without_payload(content: &[u8]) -> (Vec<u8>, usize) {
    let nothing = (Vec::new(), content.len());
    let Err(error) = Frame::decode(content) else { return nothing };
    let Some((before, rest)) = content.split_at_checked(error.at()) else { return nothing };
    let Some((_, payload)) = rest.split_first_chunk::<4>() else { return nothing };
    let frame = [before, &0_i32.to_be_bytes()].concat();
    match Frame::decode(&frame) {
        Ok(_) => (frame, payload.len()),
        Err(_) => nothing,
    }
}

#[cfg(test)]
mod tests {
    use tailrace_outbox::Message;
    use tailrace_outbox::frame::{self, Frame};

    use super::without_payload;

    #[test]
    fn a_frame_that_was_cut_in_its_payload_says_whose_it_is() {
        let message = Message::builder("orders", "order.placed.v1").source("/orders");
        let message = message.key("order-7").payload(vec![b'x'; 1_000]).build().unwrap();
        let whole = frame::encode(&message);

        for kept in 0..whole.len() {
            let (patched, left_out) = without_payload(&whole[..kept]);

            match Frame::decode(&patched) {
                Ok(frame) => {
                    assert_eq!(frame.key(), Some(&b"order-7"[..]));
                    assert_eq!(left_out + whole.len() - kept, 1_000);
                }
                Err(_) => assert_eq!((patched.len(), left_out), (0, kept)),
            }
        }
    }
}
