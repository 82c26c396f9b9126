//! Why no broker was reached, as far as the client library says it.
//!
//! A call that reaches no broker answers that nobody has answered, whatever the reason: that the
//! certificate is a wrong one, or the password, is in the library's log alone.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Kind};

/// What a broker, or the library about a broker, has complained of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    /// The broker's certificate does not pass.
    Certificate,
    /// The broker does not take user and password, or the token.
    Credentials,
    /// The broker does not take this way to log in.
    Mechanism,
    /// The connection is ended at once, and it was not encrypted.
    EndedPlain,
    /// The connection is ended at once, and it was encrypted.
    EndedEncrypted,
}

impl Complaint {
    /// Reads a line of the log. The texts are those of librdkafka 2.12, which is built in
    /// (`rdkafka_ssl.c`, `rdkafka_request.c`, `rdkafka_broker.c`,
    /// `rdkafka_sasl_oauthbearer.c`); of one that is not known here the log says more.
    pub(super) fn read(line: &str) -> Option<Self> {
        let known = [
            ("certificate verify failed", Complaint::Certificate),
            ("mechanism handshake failed", Complaint::Mechanism),
            ("SASL authentication error", Complaint::Credentials),
            ("authentication failed", Complaint::Credentials),
            ("connecting to a SSL listener", Complaint::EndedPlain),
            ("broker might require SASL", Complaint::EndedPlain),
            ("connecting to a PLAINTEXT broker listener", Complaint::EndedEncrypted),
            ("wrong version number", Complaint::EndedEncrypted),
        ];
        known.into_iter().find(|(part, _)| line.contains(part)).map(|(_, complaint)| complaint)
    }

    /// Whether nothing but another setting can help. A broker that is starting, or what stands
    /// before it, ends connections too.
    fn is_certain(self) -> bool {
        !matches!(self, Complaint::EndedPlain | Complaint::EndedEncrypted)
    }

    fn kind(self) -> Kind {
        match self {
            Complaint::Certificate | Complaint::Mechanism => Kind::Config,
            Complaint::Credentials => Kind::Permission,
            Complaint::EndedPlain | Complaint::EndedEncrypted => Kind::Unavailable,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Complaint::Certificate => {
                "the broker's certificate does not pass: it is signed by nobody in \
                 ssl.ca.location, or is for another host name"
            }
            Complaint::Credentials => "the broker refuses the log-in",
            Complaint::Mechanism => "the broker does not offer sasl.mechanism",
            Complaint::EndedPlain => {
                "the broker ends the connection at once, as one does that expects TLS or SASL"
            }
            Complaint::EndedEncrypted => {
                "the broker ends the connection at once, as one does that does not expect TLS"
            }
        }
    }

    fn hint(self) -> &'static str {
        match self {
            Complaint::Certificate => {
                "name the authority's certificate by --kafka-property ssl.ca.location=FILE, and \
                 the brokers in KAFKA_BROKERS, as in what they advertise, by a name that is in \
                 their certificates"
            }
            Complaint::Credentials => {
                "check sasl.username and sasl.password, or the token, and whether sasl.mechanism \
                 is the one that the user has them for, all given by --kafka-property"
            }
            Complaint::Mechanism => {
                "set sasl.mechanism by --kafka-property to one that the listener at KAFKA_BROKERS \
                 has, such as SCRAM-SHA-512"
            }
            Complaint::EndedPlain => {
                "set security.protocol by --kafka-property to what the listener at KAFKA_BROKERS \
                 speaks: SASL_SSL or SSL, where it is encrypted"
            }
            Complaint::EndedEncrypted => {
                "name the port of the encrypted listener in KAFKA_BROKERS, or set \
                 security.protocol by --kafka-property to what this one speaks"
            }
        }
    }
}

/// What has been heard about a cluster, by all its clients.
#[derive(Debug, Default)]
pub(super) struct Heard {
    last: Mutex<Option<Complaint>>,
    all_down: AtomicBool,
    reached: AtomicBool,
}

impl Heard {
    /// Takes in a line of the log.
    pub(super) fn line(&self, line: &str) {
        if let Some(complaint) = Complaint::read(line) {
            *self.last.lock().expect("no panic while it is held") = Some(complaint);
        }
    }

    /// No broker is connected.
    pub(super) fn all_down(&self) {
        self.all_down.store(true, Ordering::Relaxed);
    }

    /// A broker has answered: the settings are right, and what goes wrong from now on may pass.
    pub(super) fn reached(&self) {
        self.reached.store(true, Ordering::Relaxed);
        *self.last.lock().expect("no panic while it is held") = None;
    }

    /// Whether there is no use in waiting for an answer any longer. One broker of several may be
    /// set up wrongly, which is no obstacle.
    pub(super) fn is_hopeless(&self) -> bool {
        !self.reached.load(Ordering::Relaxed)
            && self.all_down.load(Ordering::Relaxed)
            && self.last().is_some_and(Complaint::is_certain)
    }

    /// The reason why nobody answers, where one is known.
    pub(super) fn error(&self, brokers: &str, what: &str) -> Option<Error> {
        let complaint = self.last()?;
        // What was right before is not a setting to be mended: the brokers' side may be.
        let kind = match self.reached.load(Ordering::Relaxed) {
            true => Kind::Unavailable,
            false => complaint.kind(),
        };
        let text = format!("kafka at {brokers}: {what}: {}", complaint.text());
        Some(Error::new(kind, text).hint(complaint.hint()))
    }

    fn last(&self) -> Option<Complaint> {
        *self.last.lock().expect("no panic while it is held")
    }
}

#[cfg(test)]
mod tests {
    use super::{Complaint, Heard};
    use crate::error::Kind;

    #[test]
    fn what_was_right_once_is_waited_for_and_what_never_was_is_not() {
        let heard = Heard::default();
        assert!(heard.error("b", "asking").is_none());
        heard.line("SSL handshake failed: certificate verify failed: broker certificate could");
        // Another broker of several may answer yet.
        assert!(!heard.is_hopeless());
        heard.all_down();
        assert!(heard.is_hopeless());
        assert_eq!(heard.error("b", "asking").unwrap().kind(), Kind::Config);

        heard.reached();
        assert!(heard.error("b", "asking").is_none());
        heard.line("SASL authentication error: Authentication failed");
        assert!(!heard.is_hopeless());
        let error = heard.error("b", "asking").unwrap();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.mend().unwrap().contains("sasl.password"));
    }

    #[test]
    fn a_connection_that_is_ended_may_be_one_to_a_broker_that_starts() {
        let heard = Heard::default();
        heard.all_down();
        heard.line("Disconnected: requesting ApiVersion: (connecting to a SSL listener?)");

        assert_eq!(heard.last(), Some(Complaint::EndedPlain));
        assert!(!heard.is_hopeless());
        assert_eq!(heard.error("b", "asking").unwrap().kind(), Kind::Unavailable);
    }
}
