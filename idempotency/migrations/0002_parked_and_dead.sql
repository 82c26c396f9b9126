-- Tables of tailrace-idempotency, version 2: what waits, what was given up, and who decided so.
--
-- A service's own role needs, beside the grants of version 1:
--   GRANT SELECT, INSERT, UPDATE, DELETE ON tailrace.parked_message TO service;
--   GRANT SELECT, INSERT ON tailrace.dead_letter TO service;

-- A message that cannot be applied now, and every later message of its key behind it. A key is parked while it has a
-- row here. Its claim was made in the transaction that parked it, so replaying deletes the row instead of claiming.
CREATE TABLE tailrace.parked_message (
    consumer text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL CHECK (partition >= 0),
    "offset" bigint NOT NULL CHECK ("offset" >= 0),
    key bytea,
    message_id uuid NOT NULL,
    message_type text NOT NULL,
    payload bytea,
    header_names text[] NOT NULL,
    header_values bytea[] NOT NULL,
    written_at timestamptz,
    state text NOT NULL CHECK (state IN ('queued', 'waiting', 'stuck', 'discard')),
    retry_at timestamptz,
    attempts integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    reason text,
    detail text,
    parked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, topic, partition, "offset"),
    CHECK (cardinality(header_names) = cardinality(header_values)),
    CHECK ((state = 'waiting') = (retry_at IS NOT NULL))
);
-- By the hash of the key: a key of Kafka may be larger than an entry of an index, and failing to park it would hold up
-- the partition.
CREATE INDEX parked_message_by_key
    ON tailrace.parked_message (consumer, topic, partition, sha256(key), "offset");
COMMENT ON TABLE tailrace.parked_message IS
    'Messages that a consumer could not apply yet, in order per key; other keys go on. Only the owner of the partition replays.';
COMMENT ON COLUMN tailrace.parked_message.state IS
    'queued: behind another message of its key. waiting: tried again at retry_at. stuck: tried often enough, a person decides. discard: a person gave it up, the owner makes a dead letter of it.';

-- A message that was given up. It stays until it is pruned, and may be published again from here.
CREATE TABLE tailrace.dead_letter (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    key bytea,
    message_id uuid,
    message_type text,
    payload bytea,
    header_names text[] NOT NULL,
    header_values bytea[] NOT NULL,
    written_at timestamptz,
    reason text NOT NULL,
    detail text,
    attempts integer NOT NULL DEFAULT 1,
    dead_at timestamptz NOT NULL DEFAULT now(),
    CHECK (cardinality(header_names) = cardinality(header_values))
);
CREATE INDEX dead_letter_by_age ON tailrace.dead_letter (consumer, dead_at);
COMMENT ON COLUMN tailrace.dead_letter.reason IS
    'A stable code: undecodable, rejected, failed, unhandled, no_id, too_old, future, discarded.';

-- What a person changed by the command line. Rows are only ever added.
CREATE TABLE tailrace.inbox_audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    action text NOT NULL,
    consumer text NOT NULL,
    topic text,
    partition integer,
    "offset" bigint,
    note text,
    before jsonb,
    after jsonb
);

INSERT INTO tailrace.idempotency_version (version) VALUES (2);
