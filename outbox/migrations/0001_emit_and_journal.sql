-- Functions and tables of tailrace-outbox, version 1.
-- Plain SQL for any migration tool. Run it in one transaction, by a role that may create functions and tables;
-- `schema::install` does so under an advisory lock and may be called by any number of processes at once.
-- For another schema than tailrace take the text from `Schema::render`.
--
-- What a service's own role needs. To call emit and emit_bytes:
--   GRANT USAGE ON SCHEMA tailrace TO service;
-- To let `schema::check` read the version:
--   GRANT SELECT ON tailrace.outbox_version TO service;
-- To write to the journal:
--   GRANT INSERT ON tailrace.outbox TO service;
-- Functions may be executed by everybody, unless default privileges were changed. Only in that case also:
--   GRANT EXECUTE ON FUNCTION tailrace.emit, tailrace.emit_bytes TO service;
--   GRANT EXECUTE ON FUNCTION tailrace.frame_pairs, tailrace.check_attribute_text TO service;
-- The journal's partitions are made and dropped by the owner of tailrace.outbox.

-- Not CREATE SCHEMA IF NOT EXISTS: that one asks for the right to create schemas even when there is
-- nothing to create, and it fails when another crate's migration makes the same schema at the same moment.
DO $$
BEGIN
    IF to_regnamespace('tailrace') IS NULL THEN
        BEGIN
            CREATE SCHEMA tailrace;
        EXCEPTION WHEN duplicate_schema OR unique_violation THEN
            NULL;
        END;
    END IF;
END
$$;

CREATE TABLE tailrace.outbox_version (
    version integer PRIMARY KEY,
    installed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE tailrace.outbox_version IS
    'The migrations of tailrace-outbox that were applied.';

-- In all functions: text is compared under the collation "C", or not at all, because a function works under the collation
-- of its arguments, which may know no patterns or take different letters for equal; and no literal has a bare
-- backslash, which standard_conforming_strings could give another meaning.

-- What CloudEvents asks of an attribute: it is not empty and has no control character (U+0000 to U+001F, U+007F to
-- U+009F). Outside UTF-8 the upper range may be letters; the relay, which sees UTF-8, judges it there.
CREATE FUNCTION tailrace.check_attribute_text(name text, value text) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $check$
BEGIN
    IF value IS NULL THEN
        RAISE EXCEPTION 'the % is null', name USING ERRCODE = 'null_value_not_allowed';
    ELSIF octet_length(value) = 0 THEN
        RAISE EXCEPTION 'the % is empty', name USING ERRCODE = 'invalid_parameter_value';
    ELSIF value COLLATE "C" ~ E'[\\u0001-\\u001F\\u007F]'
        OR getdatabaseencoding() COLLATE "C" = 'UTF8' AND value COLLATE "C" ~ E'[\\u0080-\\u009F]'
    THEN
        RAISE EXCEPTION 'the % contains a control character', name USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$check$;
COMMENT ON FUNCTION tailrace.check_attribute_text(text, text) IS
    'Part of emit_bytes; not to be called.';

-- Count, names and values of a JSON object in the order of the names' bytes, as a frame has them.
CREATE FUNCTION tailrace.frame_pairs(pairs jsonb, of_user boolean) RETURNS bytea
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
AS $pairs$
#variable_conflict use_variable
DECLARE
    what constant text := CASE WHEN of_user THEN 'header' ELSE 'attribute' END;
    name text;
    content jsonb;
    value text;
    name_bytes bytea;
    value_bytes bytea;
    total integer := 0;
    body bytea := '';
BEGIN
    IF jsonb_typeof(pairs) COLLATE "C" <> 'object' THEN
        RAISE EXCEPTION '%s are no json object', what
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'give names and values, for example jsonb_build_object(''tenant'', ''acme'')';
    END IF;
    FOR name, content IN
        SELECT pair.key, pair.value FROM jsonb_each(pairs) AS pair ORDER BY convert_to(pair.key, 'UTF8')
    LOOP
        IF of_user THEN
            IF octet_length(name) = 0 THEN
                RAISE EXCEPTION 'a header has an empty name' USING ERRCODE = 'invalid_parameter_value';
            END IF;
            IF left(lower(name COLLATE "C"), 3) = 'ce_'
                OR lower(name COLLATE "C") IN ('traceparent', 'tracestate', 'content-type')
            THEN
                RAISE EXCEPTION 'header name % is reserved', to_json(name)
                    USING ERRCODE = 'invalid_parameter_value',
                          HINT = 'names that begin with ce_, and traceparent, tracestate and content-type, are taken';
            END IF;
        ELSIF name COLLATE "C" !~ '^(ce_[a-z0-9]+|traceparent|tracestate)$'
            OR name COLLATE "C" IN ('ce_specversion', 'ce_id', 'ce_type', 'ce_source', 'ce_time', 'ce_subject',
                                    'ce_sequence', 'ce_replay')
        THEN
            RAISE EXCEPTION '% is not the name of a system attribute', to_json(name)
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        IF jsonb_typeof(content) COLLATE "C" <> 'string' THEN
            RAISE EXCEPTION '% % is no string', what, to_json(name)
                USING ERRCODE = 'invalid_parameter_value', HINT = 'cast the value to text';
        END IF;
        value := content #>> '{}';
        IF NOT of_user THEN
            PERFORM tailrace.check_attribute_text(name, value);
        END IF;
        name_bytes := convert_to(name, 'UTF8');
        value_bytes := convert_to(value, 'UTF8');
        body := body || int4send(octet_length(name_bytes)) || name_bytes
                     || int4send(octet_length(value_bytes)) || value_bytes;
        total := total + 1;
    END LOOP;
    RETURN int4send(total) || body;
END
$pairs$;
COMMENT ON FUNCTION tailrace.frame_pairs(jsonb, boolean) IS
    'Part of emit_bytes; not to be called.';

-- Writes a message in the current transaction: it is published if the transaction commits.
-- A null for an optional argument means its default. The frame's size is bounded as in the Rust builder; a service
-- that raised the limits of topic and producer raises this one with SET tailrace_outbox.frame_bytes_max, and one
-- whose topic takes less lowers it.
-- Statements below are assignments on purpose: PL/pgSQL evaluates those without starting a query.
CREATE FUNCTION tailrace.emit_bytes(
    topic text,
    key text,
    type text,
    payload bytea,
    source text DEFAULT NULL,
    subject text DEFAULT NULL,
    content_type text DEFAULT 'application/json',
    headers jsonb DEFAULT '{}',
    attributes jsonb DEFAULT '{}',
    tombstone boolean DEFAULT false,
    id uuid DEFAULT NULL
) RETURNS uuid
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
AS $emit$
DECLARE
    micros constant bigint := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
    none constant bytea := int4send(-1);
    limit_bytes bigint := 983040;
    limit_setting constant text := current_setting('tailrace_outbox.frame_bytes_max', true);
    key_bytes bytea;
    type_bytes bytea;
    source_bytes bytea;
    subject_bytes bytea;
    content_type_bytes bytea;
    id_bytes bytea;
    frame bytea;
    written pg_lsn;
BEGIN
    tombstone := coalesce(tombstone, false);
    source := coalesce(source, '/' || current_database()::text);
    content_type := coalesce(content_type, 'application/json');

    IF (payload IS NULL) <> tombstone THEN
        IF tombstone THEN
            RAISE EXCEPTION 'a tombstone has a payload'
                USING ERRCODE = 'invalid_parameter_value', HINT = 'give null for the payload';
        END IF;
        RAISE EXCEPTION 'the message has no payload'
            USING ERRCODE = 'null_value_not_allowed',
                  HINT = 'give a payload, or ask for a null one with tombstone => true';
    END IF;
    IF topic IS NULL OR topic COLLATE "C" !~ '^[A-Za-z0-9._-]+$' OR octet_length(topic) > 249
        OR topic COLLATE "C" IN ('.', '..', '__consumer_offsets', '__transaction_state')
    THEN
        IF topic IS NULL THEN
            RAISE EXCEPTION 'the topic is null' USING ERRCODE = 'null_value_not_allowed';
        ELSIF octet_length(topic) = 0 THEN
            RAISE EXCEPTION 'the topic is empty' USING ERRCODE = 'invalid_parameter_value';
        ELSIF topic COLLATE "C" IN ('.', '..') THEN
            RAISE EXCEPTION 'topic % can not exist in Kafka', to_json(topic)
                USING ERRCODE = 'invalid_parameter_value';
        ELSIF topic COLLATE "C" IN ('__consumer_offsets', '__transaction_state') THEN
            RAISE EXCEPTION 'topic % belongs to Kafka itself', to_json(topic)
                USING ERRCODE = 'invalid_parameter_value';
        ELSIF octet_length(topic) > 249 THEN
            RAISE EXCEPTION 'the topic has % bytes, and Kafka takes 249', octet_length(topic)
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        RAISE EXCEPTION 'topic % can not exist in Kafka: it takes letters, digits, ''.'', ''_'' and ''-''',
            to_json(topic) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- One look at all four texts; which of them is wrong is asked when one is.
    IF type IS NULL OR octet_length(type) = 0 OR octet_length(source) = 0 OR octet_length(subject) = 0
        OR octet_length(content_type) = 0
        OR concat(type, source, subject, content_type) COLLATE "C" ~ E'[\\u0001-\\u001F\\u007F-\\u009F]'
    THEN
        PERFORM tailrace.check_attribute_text('type', type);
        PERFORM tailrace.check_attribute_text('source', source);
        IF subject IS NOT NULL THEN
            PERFORM tailrace.check_attribute_text('subject', subject);
        END IF;
        PERFORM tailrace.check_attribute_text('content type', content_type);
    END IF;

    IF id IS NULL THEN
        -- UUID version 7 (RFC 9562, 5.7): 48 bits of milliseconds, the version, 12 bits of the fraction of the
        -- millisecond (6.2, method 3), which keeps ids of one session in order, then variant and 62 random bits,
        -- which are those of a version 4. The same on every Postgres, with the time that the frame has.
        id_bytes := int8send((micros / 1000) << 16 | 28672 | (micros % 1000) * 4096 / 1000)
                    || substring(uuid_send(gen_random_uuid()) FROM 9);
        id := encode(id_bytes, 'hex')::uuid;
    ELSIF id = '00000000-0000-0000-0000-000000000000' THEN
        RAISE EXCEPTION 'the id is nil' USING ERRCODE = 'invalid_parameter_value';
    ELSE
        id_bytes := uuid_send(id);
    END IF;
    IF tombstone AND key IS NULL THEN
        RAISE EXCEPTION 'a tombstone needs a key' USING ERRCODE = 'null_value_not_allowed';
    END IF;

    key_bytes := convert_to(key, 'UTF8');
    type_bytes := convert_to(type, 'UTF8');
    source_bytes := convert_to(source, 'UTF8');
    subject_bytes := convert_to(subject, 'UTF8');
    content_type_bytes := convert_to(content_type, 'UTF8');
    -- The payload comes last, so that it is copied once.
    frame := CASE WHEN tombstone THEN decode('54520101', 'hex') ELSE decode('54520100', 'hex') END
        || id_bytes || int8send(micros)
        || int4send(octet_length(topic)) || convert_to(topic, 'UTF8')
        || coalesce(int4send(octet_length(key_bytes)) || key_bytes, none)
        || int4send(octet_length(type_bytes)) || type_bytes
        || int4send(octet_length(source_bytes)) || source_bytes
        || coalesce(int4send(octet_length(subject_bytes)) || subject_bytes, none)
        || int4send(octet_length(content_type_bytes)) || content_type_bytes
        || CASE WHEN attributes IS NULL OR attributes = '{}' THEN int4send(0)
                ELSE tailrace.frame_pairs(attributes, false) END
        || CASE WHEN headers IS NULL OR headers = '{}' THEN int4send(0)
                ELSE tailrace.frame_pairs(headers, true) END
        || coalesce(int4send(octet_length(payload)) || payload, none);

    -- A session that set it once and took it back has it empty.
    IF octet_length(limit_setting) > 0 THEN
        IF limit_setting COLLATE "C" !~ '^[0-9]{1,18}$' THEN
            RAISE EXCEPTION 'tailrace_outbox.frame_bytes_max is %, and takes a number of bytes', to_json(limit_setting)
                USING ERRCODE = 'invalid_parameter_value', HINT = 'write it in digits alone, for example 2000000';
        END IF;
        limit_bytes := least(limit_setting::bigint, 1000000000);
    END IF;
    IF octet_length(frame) > limit_bytes THEN
        RAISE EXCEPTION 'the message has % bytes, and its limit is %', octet_length(frame), limit_bytes
            USING ERRCODE = 'program_limit_exceeded',
                  HINT = 'store large content elsewhere and send a reference, or raise the limit with '
                         'tailrace_outbox.frame_bytes_max together with max.message.bytes of the topic and '
                         'message.max.bytes of the relay''s producer';
    END IF;
    written := pg_logical_emit_message(true, 'tailrace', frame);
    RETURN id;
END
$emit$;
COMMENT ON FUNCTION tailrace.emit_bytes IS
    'Writes a message with a payload of bytes in the current transaction and returns its id.';

-- Small enough for the planner to put emit_bytes in its place, so that it costs no call of its own. It has another name,
-- because an untyped literal as the payload would fit both.
CREATE FUNCTION tailrace.emit(
    topic text,
    key text,
    type text,
    payload jsonb,
    source text DEFAULT NULL,
    subject text DEFAULT NULL,
    content_type text DEFAULT 'application/json',
    headers jsonb DEFAULT '{}',
    attributes jsonb DEFAULT '{}',
    tombstone boolean DEFAULT false,
    id uuid DEFAULT NULL
) RETURNS uuid
    LANGUAGE sql VOLATILE
RETURN tailrace.emit_bytes(
    topic, key, type, pg_catalog.convert_to(payload::pg_catalog.text, 'UTF8'), source, subject, content_type, headers,
    attributes, tombstone, id);
COMMENT ON FUNCTION tailrace.emit IS
    'Writes a message with a payload of JSON in the current transaction and returns its id.';

-- The journal: the same messages as rows. Append-only; a row that was updated or deleted was still published.
-- No index: writers would pay for it with every message, and who reads rows again names a range of ids or of time,
-- which the partitions narrow down.
CREATE TABLE tailrace.outbox (
    id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    topic text NOT NULL,
    key bytea,
    type text NOT NULL,
    source text NOT NULL,
    subject text,
    content_type text NOT NULL DEFAULT 'application/json',
    attributes jsonb NOT NULL DEFAULT '{}',
    headers jsonb NOT NULL DEFAULT '{}',
    tombstone boolean NOT NULL DEFAULT false,
    payload bytea,
    CONSTRAINT outbox_null_payload_is_a_tombstone CHECK (tombstone = (payload IS NULL))
) PARTITION BY RANGE (id);
COMMENT ON TABLE tailrace.outbox IS
    'Messages as rows. One partition per UTC day of the id, a UUID v7; old days leave by dropping their table.';

-- A day without partition must not fail the business transaction: its rows go here, and are published as all others.
CREATE TABLE tailrace.outbox_default PARTITION OF tailrace.outbox DEFAULT;
COMMENT ON TABLE tailrace.outbox_default IS
    'Messages whose day had no partition when they were written.';

INSERT INTO tailrace.outbox_version (version) VALUES (1);
