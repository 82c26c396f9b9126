use super::{ColumnType, Mapping, Part};
use crate::schema::Schema;

#[test]
fn a_mapping_says_everything_that_is_wrong_with_it() {
    let check = |text: &str, expected: &[&str]| {
        let error = text.parse::<Mapping>().expect_err(text);
        assert!(error.is_invalid(), "{error:?}");
        for named in expected {
            assert!(error.to_string().contains(named), "{named:?} is not in: {error}");
        }
    };

    check("outbox=debezium", &["named as schema.table"]);
    check("a.b.c=debezium", &["named as schema.table"]);
    check(".b=debezium", &["the schema \"\""]);
    check("public.a\0b=debezium", &["the table"]);
    check("public.outbox", &["write it as"]);
    check("public.t=", &["says nothing"]);
    check("public.t=topic=t", &["holds the id", "holds the type", "holds the payload"]);
    check("public.t=debezium, topic=a/b", &["topic \"a/b\"", "can not exist"]);
    check("public.t=debezium, topic=a${b", &["does not end"]);
    check("public.t=debezium, topic=${a}${b}", &["more than one"]);
    check("public.t=debezium, topic=${}", &["column of the topic"]);
    check("public.t=debezium, topic:t", &["by its pattern"]);
    check("public.t=debezium, topic=${type}", &["column \"type\" is for two parts"]);
    check("public.t=debezium, id:id:bytea", &["column \"id\" is bytea", "uuid, text"]);
    check("public.t=debezium, tombstone:gone", &["both say what a tombstone is"]);
    check("public.t=debezium, source=", &["the source is empty"]);
    check("public.t=debezium, id_header=ce_id", &["header name \"ce_id\" is reserved"]);
    check("public.t=id:id, debezium", &["\"debezium\" says nothing"]);
    for wrong in ["nonsense", "id", "id:a:int", "id:a:uuid:b", "what:a", "null_payload=yes"] {
        check(&format!("public.t=debezium, {wrong}"), &[wrong, "says nothing"]);
    }
    let long = "x".repeat(64);
    check(&format!("public.t=debezium, key:{long}"), &["1 to 63 bytes"]);
}

#[test]
fn the_preset_is_debeziums_table_and_can_be_said_otherwise() {
    let preset: Mapping = "public.outbox=debezium".parse().unwrap();
    let other: Mapping =
        "a.b=debezium, payload:body:bytea, source=urn:x:y, created_at:at, null_payload=error, \
         id_header="
            .parse()
            .unwrap();

    assert_eq!(preset, Mapping::debezium("public.outbox").build().unwrap());
    let columns: Vec<_> =
        preset.columns().iter().map(|c| (c.part(), c.name(), c.r#type())).collect();
    assert_eq!(
        columns,
        [
            (Part::Id, "id", ColumnType::Uuid),
            (Part::Key, "aggregateid", ColumnType::Text),
            (Part::Type, "type", ColumnType::Text),
            (Part::Payload, "payload", ColumnType::Jsonb),
            (Part::Topic, "aggregatetype", ColumnType::Text),
        ]
    );
    let mut topic = String::new();
    preset.push_topic("Order", &mut topic);
    assert_eq!(topic, "outbox.event.Order");
    assert_eq!(preset.source(), "/public.outbox");
    assert!(preset.null_payload_is_tombstone());
    let payload = other.column(Part::Payload).unwrap();
    assert_eq!((payload.name(), payload.r#type()), ("body", ColumnType::Bytea));
    assert_eq!(other.column(Part::CreatedAt).unwrap().r#type(), ColumnType::Timestamptz);
    assert_eq!((preset.id_header(), other.id_header()), (Some("id"), None));
    assert_eq!((other.source(), other.null_payload_is_tombstone()), ("urn:x:y", false));
}

#[test]
fn the_journal_has_a_column_for_each_part() {
    let journal = Mapping::journal(&Schema::named("select").unwrap());

    assert_eq!(journal.columns().len(), Part::COUNT);
    assert!(journal.columns().iter().all(|column| column.name() == column.part().name()));
    assert_eq!(journal.table_sql(), r#""select"."outbox""#);
}

#[test]
fn a_name_of_any_letters_stays_one_name() {
    let mapping = Mapping::debezium(r#"my "own".out;box --"#).build().unwrap();

    assert_eq!(mapping.table_sql(), r#""my ""own"""."out;box --""#);
}
