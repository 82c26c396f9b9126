-- Tables of tailrace-idempotency, version 7: messages that are known by their place in the source.
--
-- A service's own role needs, beside the grants of the versions before:
--   GRANT SELECT, INSERT, UPDATE ON tailrace.consumer_dedupe TO service;
--   GRANT SELECT, INSERT, UPDATE ON tailrace.consumer_position TO service;

-- How a consumer knows a message that comes again is decided once per topic, so that a setting which has changed is
-- told and not obeyed: each way has written what the other one does not look at.
CREATE TABLE tailrace.consumer_dedupe (
    consumer text NOT NULL,
    topic text NOT NULL,
    dedupe text NOT NULL CHECK (dedupe IN ('ids', 'position')),
    was_position boolean NOT NULL DEFAULT false,
    partitions integer CHECK (partitions > 0),
    PRIMARY KEY (consumer, topic)
);
COMMENT ON COLUMN tailrace.consumer_dedupe.was_position IS
    'Messages were known by their position before: what lies below the highest offset of a lane counts as applied.';
COMMENT ON COLUMN tailrace.consumer_dedupe.partitions IS
    'With dedupe = position: how many partitions the topic has. With another number of them the consumer halts.';

CREATE TABLE tailrace.consumer_position (
    consumer text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL CHECK (partition >= 0),
    lane integer NOT NULL CHECK (lane >= 0),
    relay text NOT NULL,
    sequence text COLLATE "C" NOT NULL CHECK (length(sequence) = 32),
    "offset" bigint NOT NULL,
    PRIMARY KEY (consumer, topic, partition, lane, relay)
) WITH (fillfactor = 50);
COMMENT ON TABLE tailrace.consumer_position IS
    'The highest ce_sequence of each relay that a lane has come to. What stands behind that offset has to be higher.';
COMMENT ON COLUMN tailrace.consumer_position."offset" IS
    'Where the record with this sequence stands; -1 after the topic was made anew.';

-- A position has no row per message that would suppress what comes again when progress is set back. So what was reached
-- before is kept until it is passed again.
ALTER TABLE tailrace.consumer_progress
    ADD COLUMN applied_below bigint,
    ADD COLUMN former_applied jsonb,
    ADD COLUMN applied_topic_id text;
COMMENT ON COLUMN tailrace.consumer_progress.applied_below IS
    'How far the lane had come before it was set back; null once that is passed.';
COMMENT ON COLUMN tailrace.consumer_progress.former_applied IS
    'The same of former lanes, on lane 0, in the form of former_lanes.';
COMMENT ON COLUMN tailrace.consumer_progress.applied_topic_id IS 'Kafka''s id of the topic that both are about.';

-- As in version 3, but what was reached before is kept.
CREATE OR REPLACE FUNCTION tailrace.seek_consumer(
    for_consumer text, in_topic text, in_partition integer, to_offset bigint
) RETURNS bigint
    LANGUAGE sql
    SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO tailrace.consumer_progress AS stored (consumer, topic, partition, lane, epoch, next_offset)
    VALUES (for_consumer, in_topic, in_partition, 0, 1, to_offset)
    ON CONFLICT DO NOTHING;
    WITH present AS (
        SELECT lane, epoch FROM tailrace.consumer_progress
        WHERE consumer = for_consumer AND topic = in_topic AND partition = in_partition
        ORDER BY lane
        FOR UPDATE
    ), moved AS (
        UPDATE tailrace.consumer_progress AS stored
        SET epoch = (SELECT max(epoch) FROM present) + 1, next_offset = to_offset,
            applied_below = greatest(stored.applied_below, stored.next_offset),
            former_applied = nullif(
                coalesce(stored.former_applied, '[]') || coalesce(stored.former_lanes, '[]'), '[]'),
            applied_topic_id = coalesce(stored.topic_id, stored.applied_topic_id),
            topic_id = NULL, former_lanes = NULL, updated_at = now()
        FROM present
        WHERE stored.consumer = for_consumer AND stored.topic = in_topic AND stored.partition = in_partition
          AND stored.lane = present.lane
        RETURNING stored.epoch
    )
    SELECT max(epoch) FROM moved
$$;

-- From now on a consumer knows messages that come again in this way, and begins anew with what it needs to. An owner that
-- was overlooked loses its epoch. Answers with how many topics it concerns.
CREATE FUNCTION tailrace.set_consumer_dedupe(for_consumer text, to_dedupe text) RETURNS bigint
    LANGUAGE sql
    SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE tailrace.consumer_progress AS stored
    SET epoch = stored.epoch + 1, updated_at = now()
    WHERE consumer = for_consumer;
    DELETE FROM tailrace.consumer_position WHERE consumer = for_consumer;
    WITH met AS (
        SELECT DISTINCT topic FROM tailrace.consumer_progress WHERE consumer = for_consumer
        UNION
        SELECT topic FROM tailrace.consumer_dedupe WHERE consumer = for_consumer
    ), set AS (
        INSERT INTO tailrace.consumer_dedupe AS known (consumer, topic, dedupe)
        SELECT for_consumer, topic, to_dedupe FROM met
        ON CONFLICT (consumer, topic) DO UPDATE
            SET dedupe = excluded.dedupe, partitions = NULL,
                was_position = known.was_position OR known.dedupe = 'position'
        RETURNING topic
    )
    SELECT count(*) FROM set
$$;
REVOKE ALL ON FUNCTION tailrace.set_consumer_dedupe(text, text) FROM PUBLIC;

INSERT INTO tailrace.idempotency_version (version) VALUES (7);
