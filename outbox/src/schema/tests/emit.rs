//! `tailrace.emit` and `tailrace.emit_bytes` against the codec and the rules of this crate.

use super::*;

/// Calls `emit_bytes` with every part of a message but its time.
async fn emit_bytes(connection: &mut PgConnection, message: &Message) {
    // Pairs in the opposite order: the function has to sort them.
    let object = |pairs: Vec<(&str, &str)>| {
        let pairs: Vec<_> = pairs
            .into_iter()
            .rev()
            .map(|(name, value)| {
                format!("{}:{}", serde_json::Value::from(name), serde_json::Value::from(value))
            })
            .collect();
        format!("{{{}}}", pairs.join(","))
    };
    let key = message.key().map(|key| str::from_utf8(key).unwrap());
    let id: Uuid = sqlx::query_scalar(
        "SELECT tailrace.emit_bytes($1, $2, $3, $4, $5, $6, $7, $8::jsonb, $9::jsonb, $10, $11)",
    )
    .bind(message.topic())
    .bind(key)
    .bind(message.r#type())
    .bind(message.payload())
    .bind(message.source())
    .bind(message.subject())
    .bind(message.content_type())
    .bind(object(message.headers().collect()))
    .bind(object(message.attributes().collect()))
    .bind(message.is_tombstone())
    .bind(message.id())
    .fetch_one(connection)
    .await
    .unwrap();
    assert_eq!(id, message.id());
}

/// The message with the time that the frame has: it is the one part that SQL does not take.
fn at_the_time_of(frame: &[u8], builder: Builder) -> Vec<u8> {
    frame::encode(
        &builder.time_micros(Frame::decode(frame).unwrap().time_micros()).build().unwrap(),
    )
}

/// Every part, and pairs in an order that only bytes explain.
fn full() -> Builder {
    builder()
        .subject("order-42")
        .content_type("application/octet-stream")
        .caused_by([
            ("tracestate", "a=1"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            ("ce_causationid", "c"),
            ("ce_correlationid", "z"),
        ])
        .header("zone", "b")
        .header("Zone", "A")
        .header("aa", "")
        .header("b", "line\nbreak \"quoted\" \\ back")
        .header("ünï", "größe €")
        .header("𝄞", "above the plane")
        .header("\u{e000}", "below it")
        .payload([0, 1, 0xff, 0x80])
}

#[tokio::test]
async fn sql_and_rust_write_the_same_bytes() {
    let (_database, mut connection, slot) = installed("emit_golden").await;
    let id = Uuid::from_u128(0x0199_8a5c_7e00_7abc_8def_0123_4567_89ab);
    let cases: [fn() -> Builder; 8] = [
        full,
        || Message::builder("t", "x").source("/").payload([]),
        || builder().tombstone(),
        || builder().key("").tombstone(),
        || builder().key("schlüssel-🔑").payload("grün"),
        || Message::builder("a.b_C-9", "größe").source("urn:ü").subject("日本").json("x"),
        || builder().payload(vec![7; 100_000]),
        || builder().header("tenant", "acme").json(&[1, 2, 3]),
    ];

    for case in cases {
        emit_bytes(&mut connection, &case().id(id).build().unwrap()).await;
    }

    let frames = logged(&mut connection, &slot).await;
    assert_eq!(frames.len(), cases.len());
    for (frame, case) in frames.iter().zip(cases) {
        assert_eq!(*frame, at_the_time_of(frame, case().id(id)));
    }
}

#[tokio::test]
async fn emit_publishes_the_text_of_the_jsonb_with_the_defaults() {
    let (database, mut connection, slot) = installed("emit_json").await;

    let id: Uuid = sqlx::query_scalar(
        "SELECT tailrace.emit('orders', 'k', 't', '{\"b\": 1.50, \"a\": \"ü\"}', headers => NULL, \
         content_type => NULL, attributes => NULL, tombstone => NULL)",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    run(&mut connection, "SELECT tailrace.emit('orders', NULL, 't', 'null')").await;

    let frames = logged(&mut connection, &slot).await;
    let source = format!("/{}", database.name());
    let expected =
        |payload: &'static str| Message::builder("orders", "t").source(&source).payload(payload);
    let first = expected("{\"a\": \"ü\", \"b\": 1.50}").key("k").id(id);
    assert_eq!(frames[0], at_the_time_of(&frames[0], first));
    let other = Frame::decode(&frames[1]).unwrap().id();
    assert_eq!(frames[1], at_the_time_of(&frames[1], expected("null").id(other)));
}

#[tokio::test]
async fn a_minted_id_is_a_uuid_v7_of_the_frames_time_and_ids_of_a_session_ascend() {
    let (_database, mut connection, slot) = installed("emit_id").await;
    let before = message().time_micros();

    run(&mut connection, "SELECT tailrace.emit('t', 'k', 't', '1') FROM generate_series(1, 500)")
        .await;

    let after = message().time_micros();
    let frames = logged(&mut connection, &slot).await;
    let mut last = (0, 0);
    for bytes in &frames {
        let frame = Frame::decode(bytes).unwrap();
        let (id, micros) = (frame.id(), frame.time_micros());
        assert_eq!((id.get_version_num(), id.get_variant()), (7, uuid::Variant::RFC4122));
        assert!((before..=after).contains(&micros), "{before} {micros} {after}");
        let high = i64::try_from(id.as_u128() >> 64).unwrap();
        assert_eq!(high >> 16, micros / 1000);
        assert_eq!(high & 0xfff, micros % 1000 * 4096 / 1000);
        // The clock may stand still for a microsecond; it does not go back.
        assert!((micros, high) >= last);
        last = (micros, high);
    }
    let distinct: std::collections::HashSet<_> =
        frames.iter().map(|bytes| Frame::decode(bytes).unwrap().id()).collect();
    assert_eq!(distinct.len(), 500);
}

#[tokio::test]
async fn what_the_builder_refuses_sql_refuses_in_the_same_words() {
    let (_database, mut connection, slot) = installed("emit_refused").await;
    let named = |topic: &str| Message::builder(topic, "t").source("/").json(&1);
    let typed = |r#type: &str| Message::builder("t", r#type).source("/").json(&1);
    let headed = |name: &str| builder().header(name, "x").json(&1);
    let long = "a".repeat(250);
    let cases = [
        ("'', 'k', 't', '1'", named("")),
        ("'..', 'k', 't', '1'", named("..")),
        ("'a b', 'k', 't', '1'", named("a b")),
        ("'__consumer_offsets', 'k', 't', '1'", named("__consumer_offsets")),
        ("'__transaction_state', 'k', 't', '1'", named("__transaction_state")),
        ("'bücher', 'k', 't', '1'", named("bücher")),
        ("repeat('a', 250), 'k', 't', '1'", named(&long)),
        ("'t', 'k', '', '1'", typed("")),
        ("'t', 'k', E'a\\tb', '1'", typed("a\tb")),
        ("'t', 'k', U&'a\\0085', '1'", typed("a\u{85}")),
        ("'t', 'k', 't', '1', source => ''", named("t").source("")),
        ("'t', 'k', 't', '1', source => E'\\x7f'", named("t").source("\x7f")),
        ("'t', 'k', 't', '1', subject => ''", named("t").subject("")),
        ("'t', 'k', 't', '1', content_type => E'\\n'", named("t").content_type("\n")),
        (
            "'t', 'k', 't', '1', id => '00000000-0000-0000-0000-000000000000'",
            named("t").id(Uuid::nil()),
        ),
        ("'t', NULL, 't', NULL, tombstone => true", named("t").tombstone()),
        ("'t', 'k', 't', NULL", Message::builder("t", "t").source("/")),
        ("'t', 'k', 't', '1', headers => '{\"\": \"x\"}'", headed("")),
        ("'t', 'k', 't', '1', headers => '{\"CE_x\": \"x\"}'", headed("CE_x")),
        ("'t', 'k', 't', '1', headers => '{\"Content-Type\": \"x\"}'", headed("Content-Type")),
        (
            "'t', 'k', 't', '1', attributes => '{\"ce_causationid\": \"\"}'",
            named("t").correlation_id(""),
        ),
        ("'t', 'k', 't', to_jsonb(repeat('a', 983040))", builder().payload(vec![b'a'; 983_042])),
    ];

    for (arguments, builder) in cases {
        let refused = builder.build().unwrap_err();
        let (code, text, hint) = refusal(&mut connection, arguments).await;

        // Sizes differ with the other parts, and names with the case.
        let ours = refused.to_string();
        let wanted = ours.split(';').next().unwrap().replace("correlationid", "causationid");
        let alike = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
        assert_eq!(alike(&text), alike(&wanted), "{arguments}");
        assert_eq!(hint.is_some(), refused.mend().is_some(), "{arguments}");
        let expected = if refused.is_too_large() { ["54000"; 2] } else { ["22023", "22004"] };
        assert!(expected.contains(&code.as_str()), "{arguments}: {code}");
    }
    assert!(logged(&mut connection, &slot).await.is_empty());
}

#[tokio::test]
async fn what_only_sql_can_say_is_refused_with_its_reason() {
    let (_database, mut connection, slot) = installed("emit_refused_sql").await;

    for (arguments, wanted) in [
        ("NULL, 'k', 't', '1'", "the topic is null"),
        ("'t', 'k', NULL, '1'", "the type is null"),
        ("'t', 'k', 't', '1', tombstone => true", "a tombstone has a payload"),
        ("'t', 'k', 't', '1', headers => '[]'", "headers are no json object"),
        ("'t', 'k', 't', '1', headers => 'null'", "headers are no json object"),
        ("'t', 'k', 't', '1', attributes => '1'", "attributes are no json object"),
        ("'t', 'k', 't', '1', headers => '{\"n\": 1}'", "header \"n\" is no string"),
        ("'t', 'k', 't', '1', headers => '{\"n\": null}'", "header \"n\" is no string"),
        (
            "'t', 'k', 't', '1', attributes => '{\"tenant\": \"x\"}'",
            "\"tenant\" is not the name of a system attribute",
        ),
        (
            "'t', 'k', 't', '1', attributes => '{\"ce_id\": \"x\"}'",
            "\"ce_id\" is not the name of a system attribute",
        ),
    ] {
        let (code, text, _) = refusal(&mut connection, arguments).await;

        assert_eq!(text, wanted, "{arguments}");
        assert!(["22023", "22004"].contains(&code.as_str()), "{arguments}: {code}");
    }
    assert!(logged(&mut connection, &slot).await.is_empty());
}

/// Code, text and hint of what `emit` raises.
async fn refusal(
    connection: &mut PgConnection,
    arguments: &str,
) -> (String, String, Option<String>) {
    let call = format!("SELECT tailrace.emit({arguments})");
    let error = sqlx::raw_sql(AssertSqlSafe(call)).execute(connection).await.expect_err(arguments);
    let fault = error.as_database_error().expect("the database refuses");
    let fault = fault.downcast_ref::<sqlx::postgres::PgDatabaseError>();
    (fault.code().to_owned(), fault.message().to_owned(), fault.hint().map(str::to_owned))
}

#[tokio::test]
async fn a_session_sets_the_limit_of_a_frame_both_ways() {
    let (_database, mut connection, slot) = installed("emit_limit").await;
    let call =
        "SELECT tailrace.emit_bytes('t', 'k', 't', convert_to(repeat('a', 1500000), 'UTF8'))";

    let refused = Executor::execute(&mut connection, call).await;
    run(&mut connection, "SET tailrace_outbox.frame_bytes_max = 2000000").await;
    run(&mut connection, call).await;
    run(&mut connection, "RESET tailrace_outbox.frame_bytes_max").await;
    let refused_again = Executor::execute(&mut connection, call).await;
    let small = "SELECT tailrace.emit('t', 'k', 't', '1')";
    run(&mut connection, "SET tailrace_outbox.frame_bytes_max = 50").await;
    let lowered = Executor::execute(&mut connection, small).await.unwrap_err().to_string();
    let mut wrong = Vec::new();
    for value in ["-1", "1MB", "2e6", " 5", "99999999999999999999"] {
        run(&mut connection, format!("SET tailrace_outbox.frame_bytes_max = '{value}'")).await;
        wrong.push(Executor::execute(&mut connection, small).await.unwrap_err().to_string());
    }

    assert!(lowered.contains("bytes, and its limit is 50"), "{lowered}");
    for text in wrong {
        assert!(text.contains("tailrace_outbox.frame_bytes_max is \""), "{text}");
    }
    assert!(refused.is_err() && refused_again.is_err());
    assert_eq!(logged(&mut connection, &slot).await.len(), 1);
}

#[tokio::test]
async fn no_setting_of_the_session_and_no_collation_changes_the_bytes() {
    let (_database, mut connection, slot) = installed("emit_settings").await;
    let id = Uuid::from_u128(0x0199_8a5c_7e00_7abc_8def_0123_4567_89ab);
    let build = || builder().header("b", "1").header("Z", "2").payload("x").id(id);
    run(
        &mut connection,
        "CREATE COLLATION loose \
         (provider = icu, locale = 'tr-u-ks-level1', deterministic = false); \
         CREATE TABLE mine (topic text COLLATE loose, key text COLLATE loose); \
         INSERT INTO mine VALUES ('orders', 'order-42'); \
         CREATE SCHEMA evil; \
         CREATE FUNCTION evil.convert_to(text, name) RETURNS bytea LANGUAGE sql RETURN '\\x00'::bytea; \
         SET search_path = evil, pg_catalog; SET bytea_output = 'escape'; \
         SET standard_conforming_strings = off; SET escape_string_warning = off; \
         SET plpgsql.variable_conflict = 'use_column'; SET IntervalStyle = 'iso_8601'",
    )
    .await;

    let emit = "SELECT tailrace.emit_bytes(topic, key, 'order.placed.v1', 'x', '/orders', \
                headers => '{\"b\": \"1\", \"Z\": \"2\"}', \
                id => '01998a5c-7e00-7abc-8def-0123456789ab') FROM public.mine";
    run(&mut connection, emit).await;
    run(&mut connection, "DISCARD ALL").await;

    let frames = logged(&mut connection, &slot).await;
    assert_eq!(frames[0], at_the_time_of(&frames[0], build()));
}
