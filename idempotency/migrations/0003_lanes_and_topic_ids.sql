-- Tables of tailrace-idempotency, version 3: several lanes of a partition, and which topic it was.
--
-- A service's own role needs, beside the grants of versions 1 and 2:
--   GRANT DELETE ON tailrace.consumer_progress TO service;
-- A new owner ends the session of a former one that is stopped inside its transaction. Where both use the same role
-- it needs nothing more; else GRANT pg_signal_backend TO service, or it waits for the server to end the session.

-- A topic that was deleted and made anew has the name and other records; its id tells.
ALTER TABLE tailrace.consumer_progress ADD COLUMN topic_id text;
COMMENT ON COLUMN tailrace.consumer_progress.topic_id IS
    'Kafka''s id of the topic that next_offset is about; null while not known.';

ALTER TABLE tailrace.consumer_progress ADD COLUMN former_lanes jsonb;
COMMENT ON COLUMN tailrace.consumer_progress.former_lanes IS
    'On lane 0, after the number of lanes has changed: how far each former lane had come, as arrays of offsets. Records below are applied.';

-- Has a consumer go on elsewhere in a partition, whatever was applied before; a running owner is made to look again.
-- Answers with the new epoch. The one way to set an offset by hand: it also forgets which topic it was about and what
-- former lanes had reached, either of which would contradict the new offset.
CREATE FUNCTION tailrace.seek_consumer(
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
            topic_id = NULL, former_lanes = NULL, updated_at = now()
        FROM present
        WHERE stored.consumer = for_consumer AND stored.topic = in_topic AND stored.partition = in_partition
          AND stored.lane = present.lane
        RETURNING stored.epoch
    )
    SELECT max(epoch) FROM moved
$$;
REVOKE ALL ON FUNCTION tailrace.seek_consumer(text, text, integer, bigint) FROM PUBLIC;

INSERT INTO tailrace.idempotency_version (version) VALUES (3);
