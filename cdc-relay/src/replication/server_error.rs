//! What Postgres' refusals mean for the relay.

use super::endpoint::Endpoint;
use super::reader::{Fault, Reader};
use super::tls_error::CLIENT_CERTIFICATE;
use crate::error::{Error, Kind};

/// What was being done when the server refused.
#[derive(Clone, Copy, Debug)]
pub(super) enum During<'a> {
    /// Start-up and log-in.
    Connect,
    /// A control query.
    Query,
    /// START_REPLICATION on this slot.
    Start { slot: &'a str },
    /// The change stream of this slot.
    Stream { slot: &'a str },
}

/// The fields that decide, of all that the server sends
/// (<https://www.postgresql.org/docs/current/protocol-error-fields.html>).
#[derive(Default)]
struct Fields {
    code: String,
    message: String,
    hint: Option<String>,
    /// The function in Postgres' source that complained: unlike the message it is never
    /// translated, so it can tell apart what shares a code.
    routine: String,
}

/// The error for the body of an ErrorResponse; keeps the server's own words and code.
pub(super) fn server_error(endpoint: &Endpoint, during: During<'_>, body: &[u8]) -> Error {
    let fields = match fields(body) {
        Ok(fields) => fields,
        Err(fault) => return fault.error("an error message of the server"),
    };
    let (kind, hint) = verdict(endpoint, during, &fields);
    let Fields { code, message, hint: servers_hint, .. } = fields;
    let error =
        Error::new(kind, format!("{}: {message} (sqlstate {code})", subject(endpoint, during)))
            .with_sqlstate(&code);
    match hint.or(servers_hint) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn subject(endpoint: &Endpoint, during: During<'_>) -> String {
    match during {
        During::Connect => format!("postgres refused {}", endpoint.describe()),
        During::Query => format!("postgres at {} refused a query", endpoint.address()),
        During::Start { slot } => {
            format!("postgres at {} refused to stream slot {slot:?}", endpoint.address())
        }
        During::Stream { slot } => {
            format!("postgres at {} ended the stream of slot {slot:?}", endpoint.address())
        }
    }
}

/// Kind and hint by SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>)
/// and by what was being done.
fn verdict(endpoint: &Endpoint, during: During<'_>, fields: &Fields) -> (Kind, Option<String>) {
    let user = endpoint.user();
    let database = endpoint.database();
    let hinted = |kind, hint: String| (kind, Some(hint));
    match (fields.code.as_str(), during) {
        ("28P01", _) => hinted(
            Kind::Permission,
            format!("check user and password of role {user:?} in the database url"),
        ),
        ("28000", _) => (Kind::Permission, Some(turned_away(endpoint, fields))),
        ("42501", _) => hinted(
            Kind::Permission,
            format!("grant what is missing, for the change stream: ALTER ROLE {user} REPLICATION"),
        ),
        // What PgBouncer answers to a parameter that it does not pass on, as `replication` before
        // its version 1.23.
        ("08P01", During::Connect) if fields.message.contains("startup parameter") => hinted(
            Kind::Config,
            "the database url names PgBouncer, which carries no replication: name Postgres itself; \
             the services may go through the pooler"
                .into(),
        ),
        ("3D000", _) => hinted(
            Kind::Config,
            format!("create database {database:?} or correct its name in the database url"),
        ),
        ("42602", During::Start { .. }) => hinted(
            Kind::Config,
            "the name of a slot has only lower-case letters, digits and underscores".into(),
        ),
        ("55006", During::Start { .. }) => hinted(
            Kind::SlotBusy,
            "another relay leads; pg_replication_slots.active_pid names its connection".into(),
        ),
        ("42704", During::Start { slot }) => hinted(
            Kind::Gap,
            format!(
                "slot {slot:?} is gone, and with it every change since: cdc-relay adopt --accept-gap makes a new one"
            ),
        ),
        ("42704", During::Stream { .. }) => hinted(
            Kind::Server,
            "create the publication; one made after the slot is not seen by changes before it"
                .into(),
        ),
        // wal_level and its kin are complained about by this function, a lost slot by others.
        ("55000", _) if fields.routine == "CheckLogicalDecodingRequirements" => hinted(
            Kind::Server,
            "set wal_level = logical and max_replication_slots > 0, then restart postgres".into(),
        ),
        ("55000", During::Start { slot } | During::Stream { slot }) => hinted(
            Kind::Gap,
            format!(
                "slot {slot:?} is lost or not of this database (see wal_status and database in pg_replication_slots); of a lost one cdc-relay adopt --accept-gap tells what is missing, and makes another"
            ),
        ),
        // A WAL file that the slot needs is missing.
        ("58P01", During::Start { slot } | During::Stream { slot }) => hinted(
            Kind::Gap,
            format!(
                "the write-ahead log that slot {slot:?} needs is gone: see pg_replication_slots"
            ),
        ),
        ("53400", _) => hinted(
            Kind::Server,
            "drop a slot that nobody needs, or raise max_replication_slots and restart postgres"
                .into(),
        ),
        ("53300", _) => hinted(
            Kind::Unavailable,
            "end a connection that nobody needs, or raise max_connections or max_wal_senders"
                .into(),
        ),
        (code, during) => (by_class(code), way_past_text(code, during)),
    }
}

/// What to do where the server meets a text that it can not put into UTF-8.
fn way_past_text(code: &str, during: During<'_>) -> Option<String> {
    let is_text = matches!((code, during), ("22021" | "22P05", During::Stream { .. }));
    is_text.then(|| {
        "a text in the log is none in the database's own encoding, or has no counterpart in UTF-8, \
         and the server sends nothing behind it: cdc-relay drop-slot --yes, then adopt --accept-gap \
         goes on behind all that is written by then, and tells what is missing; rows of the journal \
         are published again by replay"
            .into()
    })
}

/// How to be let in. The server's language decides its words; where they are not English the
/// second hint is given, which is true as well.
fn turned_away(endpoint: &Endpoint, fields: &Fields) -> String {
    if fields.message.contains("client certificate") {
        return CLIENT_CERTIFICATE.into();
    }
    format!(
        "pg_hba.conf must let role {:?} with LOGIN reach database {:?} from here with sslmode={}",
        endpoint.user(),
        endpoint.database(),
        endpoint.encryption().mode
    )
}

/// What the code's class alone says: whether trying again can help.
fn by_class(code: &str) -> Kind {
    match code.get(..2) {
        // Connection exception, serialization failure or deadlock, insufficient resources,
        // operator intervention, input or output error.
        Some("08" | "40" | "53" | "57" | "58") => Kind::Unavailable,
        // A lock was not to be had in time.
        _ if code == "55P03" => Kind::Unavailable,
        _ => Kind::Server,
    }
}

fn fields(body: &[u8]) -> Result<Fields, Fault> {
    let mut reader = Reader::new(body);
    let mut fields = Fields::default();
    loop {
        let field = reader.u8()?;
        if field == 0 {
            reader.end()?;
            return Ok(fields);
        }
        // Before log-in has set the encoding, a message may be in the server's own.
        let text = String::from_utf8_lossy(reader.until_zero()?);
        match field {
            b'C' => fields.code = text.into_owned(),
            b'M' => fields.message = text.into_owned(),
            b'H' => fields.hint = Some(text.into_owned()),
            b'R' => fields.routine = text.into_owned(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{During, server_error};
    use crate::error::{Error, Kind};
    use crate::replication::Endpoint;

    fn refusal(during: During<'_>, code: &str, routine: &str) -> Error {
        let endpoint = Endpoint::parse("postgres://relay:secret@db:6000/shop").unwrap();
        let body = format!("SFATAL\0VFATAL\0C{code}\0Mthe server's words\0R{routine}\0\0");
        server_error(&endpoint, during, body.as_bytes())
    }

    #[test]
    fn a_text_that_the_server_can_not_send_is_told_with_the_way_past_it() {
        for code in ["22021", "22P05"] {
            let error = refusal(During::Stream { slot: "s" }, code, "report_untranslatable_char");

            assert_eq!(error.kind(), Kind::Server);
            assert!(error.mend().unwrap().contains("adopt --accept-gap"), "{error:?}");
        }
    }

    #[test]
    fn codes_become_kinds() {
        let start = During::Start { slot: "s" };
        let stream = During::Stream { slot: "s" };
        for (during, code, expected) in [
            (During::Connect, "28P01", Kind::Permission),
            (During::Connect, "28000", Kind::Permission),
            (During::Connect, "42501", Kind::Permission),
            (During::Connect, "3D000", Kind::Config),
            (During::Connect, "53300", Kind::Unavailable),
            (During::Connect, "57P03", Kind::Unavailable),
            (During::Connect, "08P01", Kind::Unavailable),
            (During::Query, "42601", Kind::Server),
            (During::Query, "42704", Kind::Server),
            (During::Query, "42710", Kind::Server),
            (During::Query, "55006", Kind::Server),
            (During::Query, "55P03", Kind::Unavailable),
            (During::Query, "40001", Kind::Unavailable),
            (During::Query, "53400", Kind::Server),
            (During::Query, "57014", Kind::Unavailable),
            (start, "42501", Kind::Permission),
            (start, "42602", Kind::Config),
            (start, "42704", Kind::Gap),
            (start, "55000", Kind::Gap),
            (start, "55006", Kind::SlotBusy),
            (stream, "42704", Kind::Server),
            (stream, "53200", Kind::Unavailable),
            (stream, "55000", Kind::Gap),
            (stream, "57P01", Kind::Unavailable),
            (stream, "57P05", Kind::Unavailable),
            (stream, "58P01", Kind::Gap),
            (stream, "58030", Kind::Unavailable),
            (stream, "XX000", Kind::Server),
            (stream, "", Kind::Server),
        ] {
            let error = refusal(during, code, "SomeFunction");
            assert_eq!(error.kind(), expected, "{during:?} {code}");
            assert_eq!(error.sqlstate(), Some(code));
            let text = error.to_string();
            assert!(text.contains("the server's words") && text.contains(code), "{text}");
            assert!(!text.contains("secret"), "{text}");
        }
    }

    #[test]
    fn a_wrong_wal_level_is_told_from_a_lost_slot() {
        let error =
            refusal(During::Start { slot: "s" }, "55000", "CheckLogicalDecodingRequirements");

        assert_eq!(error.kind(), Kind::Server);
        assert!(error.mend().unwrap().contains("wal_level = logical"));
    }

    #[test]
    fn the_servers_hint_is_kept_where_we_know_no_better() {
        let endpoint = Endpoint::parse("postgres://relay@db").unwrap();

        let error = server_error(&endpoint, During::Query, b"C42883\0Mno function\0Hadd casts\0\0");

        assert_eq!(error.mend(), Some("add casts"));
    }

    #[test]
    fn a_broken_error_message_is_an_error_too() {
        let endpoint = Endpoint::parse("postgres://relay@db").unwrap();
        for body in [&b""[..], b"C", b"C42601", b"C42601\0", b"C42601\0\0x"] {
            let error = server_error(&endpoint, During::Query, body);
            assert_eq!(error.kind(), Kind::Malformed, "{body:?}");
        }
    }
}
