-- Tables of tailrace-idempotency, version 1.
-- Plain SQL for any migration tool. Run it in one transaction, by a role that may create tables;
-- `schema::install` does so under an advisory lock and may be called by any number of processes at once.
--
-- A service's own role needs no right to create anything:
--   GRANT USAGE ON SCHEMA tailrace TO service;
--   GRANT SELECT ON tailrace.idempotency_version TO service;
--   GRANT SELECT, INSERT ON tailrace.processed_message TO service;
--   GRANT SELECT, INSERT, UPDATE ON tailrace.consumer_progress TO service;
--   GRANT EXECUTE ON FUNCTION tailrace.make_processed_message_partitions(date[]) TO service;

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

CREATE TABLE tailrace.idempotency_version (
    version integer PRIMARY KEY,
    installed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE tailrace.idempotency_version IS
    'The migrations of tailrace-idempotency that were applied.';

-- Partitioned by the id alone: UUID v7 begins with its time, so an id lives in exactly one partition
-- (the primary key is unique over all of them) and old ids leave by dropping a table.
CREATE TABLE tailrace.processed_message (
    consumer text NOT NULL,
    message_id uuid NOT NULL,
    PRIMARY KEY (consumer, message_id)
) PARTITION BY RANGE (message_id);
COMMENT ON TABLE tailrace.processed_message IS
    'One row per message that a consumer has applied, written in the transaction of its effect. One partition per UTC day of the id.';

-- The row is rewritten with every batch: the free half of each page keeps those updates out of the index.
CREATE TABLE tailrace.consumer_progress (
    consumer text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL CHECK (partition >= 0),
    lane integer NOT NULL CHECK (lane >= 0),
    epoch bigint NOT NULL CHECK (epoch > 0),
    next_offset bigint CHECK (next_offset >= 0),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, topic, partition, lane)
) WITH (fillfactor = 50);
COMMENT ON COLUMN tailrace.consumer_progress.epoch IS
    'Counts the owners of the partition. A transaction that holds an older epoch cannot commit.';
COMMENT ON COLUMN tailrace.consumer_progress.next_offset IS
    'The offset after the last applied record; null while nothing was applied.';

-- Makes the partitions of the given UTC days where they are missing, and says how many it made.
-- It runs with its owner's rights, so that a service can have partitions made without the right to create tables;
-- the days are bounded, so that it cannot be made to create tables without end.
-- The table is made first and attached afterwards: attaching lets inserts into the other partitions go on,
-- while CREATE TABLE ... PARTITION OF would wait for all of them and hold up new ones meanwhile.
CREATE FUNCTION tailrace.make_processed_message_partitions(days date[]) RETURNS integer
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '5s'
AS $$
DECLARE
    epoch_start constant date := date '1970-01-01';
    today constant date := (now() AT TIME ZONE 'UTC')::date;
    wanted date;
    child text;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('tailrace.processed_message', 0));
    FOR wanted IN SELECT DISTINCT d FROM unnest(days) AS d ORDER BY d LOOP
        IF wanted IS NULL OR wanted < today - 401 OR wanted > today + 8 THEN
            RAISE EXCEPTION 'no partition of tailrace.processed_message is made for %', wanted
                USING ERRCODE = 'datetime_field_overflow',
                      HINT = 'days from 401 days ago to 8 days ahead are possible';
        END IF;
        child := 'processed_message_' || to_char(wanted, 'YYYYMMDD');
        CONTINUE WHEN to_regclass('tailrace.' || child) IS NOT NULL;
        -- A session remembers the names that it did not find, and who has waited for the lock above has not heard of
        -- what its holder made: only a lock on a table that is new to the transaction makes it listen. Attaching
        -- takes this one anyway.
        LOCK TABLE tailrace.processed_message IN SHARE UPDATE EXCLUSIVE MODE;
        CONTINUE WHEN to_regclass('tailrace.' || child) IS NOT NULL;
        EXECUTE format(
            'CREATE TABLE tailrace.%I (LIKE tailrace.processed_message INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
            child);
        EXECUTE format(
            'ALTER TABLE tailrace.processed_message ATTACH PARTITION tailrace.%I FOR VALUES FROM (%L) TO (%L)',
            child,
            (lpad(to_hex((wanted - epoch_start)::bigint * 86400000), 12, '0') || repeat('0', 20))::uuid,
            (lpad(to_hex((wanted - epoch_start + 1)::bigint * 86400000), 12, '0') || repeat('0', 20))::uuid);
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;
REVOKE ALL ON FUNCTION tailrace.make_processed_message_partitions(date[]) FROM PUBLIC;

INSERT INTO tailrace.idempotency_version (version) VALUES (1);
