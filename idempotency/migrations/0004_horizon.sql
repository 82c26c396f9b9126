-- Tables of tailrace-idempotency, version 4: how long claims are remembered, and ids that are no UUID v7.
--
-- A service's own role needs, beside the grants of the versions before:
--   GRANT SELECT ON tailrace.processed_message_day TO service;
--   GRANT EXECUTE ON FUNCTION tailrace.note_late_claims(integer[]) TO service;
--   GRANT EXECUTE ON FUNCTION tailrace.claim_opaque(text, uuid[], timestamptz[]) TO service;

-- What is known of a day beyond its partition.
CREATE TABLE tailrace.processed_message_day (
    day date PRIMARY KEY,
    claimed_at timestamptz,
    dropped_at timestamptz
);
COMMENT ON COLUMN tailrace.processed_message_day.claimed_at IS
    'A claim of an id of this day, made later than the day after it. Written at most once an hour.';
COMMENT ON COLUMN tailrace.processed_message_day.dropped_at IS
    'When the partition was dropped. Ids of the day are too old from then on: what was claimed is forgotten.';

CREATE FUNCTION tailrace.processed_message_bound(day date) RETURNS uuid
    LANGUAGE sql IMMUTABLE
RETURN (lpad(to_hex((day - date '1970-01-01')::bigint * 86400000), 12, '0') || repeat('0', 20))::uuid;
COMMENT ON FUNCTION tailrace.processed_message_bound(date) IS
    'The smallest id of a UTC day, but for the version.';

-- A partition is known by its name and by its bounds together; a table that somebody else attached is none of ours.
-- Claims up to the end of the day after leave no mark, and a mark may be an hour older than the newest claim.
CREATE VIEW tailrace.processed_message_partition AS
SELECT part.day, part.name, known.claimed_at,
       greatest((part.day + 2)::timestamp AT TIME ZONE 'UTC', known.claimed_at + interval '1 hour') AS quiet_since,
       part.bytes
FROM (
    SELECT date '1970-01-01' + (('x' || head[1] || head[2])::bit(48)::bigint / 86400000)::integer AS day, name, bounds, bytes
    FROM (
        SELECT c.relname::text AS name, pg_get_expr(c.relpartbound, c.oid) AS bounds, pg_total_relation_size(c.oid) AS bytes
        FROM pg_catalog.pg_inherits i
        JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'tailrace.processed_message'::regclass AND NOT i.inhdetachpending
    ) AS child,
    regexp_match(bounds, '^FOR VALUES FROM \(''([0-9a-f]{8})-([0-9a-f]{4})-') AS head
    WHERE head IS NOT NULL AND ('x' || head[1] || head[2])::bit(48)::bigint < 253402300800000
) AS part
LEFT JOIN tailrace.processed_message_day AS known USING (day)
WHERE part.name = 'processed_message_' || to_char(part.day, 'YYYYMMDD')
  AND part.bounds = format('FOR VALUES FROM (%L) TO (%L)',
      tailrace.processed_message_bound(part.day), tailrace.processed_message_bound(part.day + 1));
COMMENT ON VIEW tailrace.processed_message_partition IS
    'The days of tailrace.processed_message, and since when at the latest nothing has been claimed in each.';

-- Called by a claim that finds a mark missing or older than an hour, in the transaction of the claim.
CREATE FUNCTION tailrace.note_late_claims(days integer[]) RETURNS void
    LANGUAGE sql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    INSERT INTO tailrace.processed_message_day AS known (day, claimed_at)
    SELECT DISTINCT date '1970-01-01' + late, statement_timestamp()
    FROM unnest(days) AS late
    WHERE late BETWEEN (statement_timestamp() AT TIME ZONE 'UTC')::date - date '1970-01-01' - 401
                   AND (statement_timestamp() AT TIME ZONE 'UTC')::date - date '1970-01-01'
    ORDER BY 1
    ON CONFLICT (day) DO UPDATE SET claimed_at = excluded.claimed_at
        WHERE known.claimed_at IS NULL OR known.claimed_at < excluded.claimed_at - interval '1 hour';
END;
REVOKE ALL ON FUNCTION tailrace.note_late_claims(integer[]) FROM PUBLIC;

-- As in version 1, but a day that was dropped stays dropped.
CREATE OR REPLACE FUNCTION tailrace.make_processed_message_partitions(days date[]) RETURNS integer
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '5s'
AS $$
DECLARE
    today constant date := (now() AT TIME ZONE 'UTC')::date;
    wanted date;
    child text;
    is_dropped boolean;
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
        -- The lock, and the row that it needs, make a transaction with an older snapshot fail here (40001), which
        -- would not see that the day was dropped meanwhile and make it anew.
        INSERT INTO tailrace.processed_message_day (day) VALUES (wanted) ON CONFLICT DO NOTHING;
        SELECT dropped_at IS NOT NULL INTO is_dropped
        FROM tailrace.processed_message_day WHERE day = wanted FOR UPDATE;
        CONTINUE WHEN is_dropped;
        EXECUTE format(
            'CREATE TABLE tailrace.%I (LIKE tailrace.processed_message INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
            child);
        EXECUTE format(
            'ALTER TABLE tailrace.processed_message ATTACH PARTITION tailrace.%I FOR VALUES FROM (%L) TO (%L)',
            child, tailrace.processed_message_bound(wanted), tailrace.processed_message_bound(wanted + 1));
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;

-- Drops the partition of a day if nothing has been claimed in it for so many seconds, and says whether it did.
-- The table is locked first and looked at afterwards, so that no claim comes in between: it waits, and finds the day
-- dropped. The caller bounds the wait by lock_timeout. For the owner of the tables, and whom it grants it to.
CREATE FUNCTION tailrace.drop_processed_message_day(wanted date, horizon_seconds double precision) RETURNS boolean
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    child text;
BEGIN
    LOCK TABLE ONLY tailrace.processed_message IN ACCESS EXCLUSIVE MODE;
    SELECT name INTO child FROM tailrace.processed_message_partition
    WHERE day = wanted AND quiet_since + make_interval(secs => horizon_seconds) <= clock_timestamp();
    IF child IS NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP TABLE tailrace.%I', child);
    INSERT INTO tailrace.processed_message_day AS known (day, dropped_at) VALUES (wanted, clock_timestamp())
    ON CONFLICT (day) DO UPDATE SET dropped_at = excluded.dropped_at;
    RETURN true;
END
$$;
REVOKE ALL ON FUNCTION tailrace.drop_processed_message_day(date, double precision) FROM PUBLIC;

-- Ids without a time of their own (UUID v4 of a foreign producer, hashes of other texts) are remembered by when they
-- came: new ones go into this table, after the horizon it becomes the table below, and after another one it is dropped.
CREATE TABLE tailrace.processed_opaque (
    consumer text NOT NULL,
    message_id uuid NOT NULL,
    PRIMARY KEY (consumer, message_id)
);
COMMENT ON TABLE tailrace.processed_opaque IS
    'Claims of ids that are no UUID v7, of this generation. Written by tailrace.claim_opaque alone.';
CREATE TABLE tailrace.processed_opaque_before (LIKE tailrace.processed_opaque INCLUDING ALL);
COMMENT ON TABLE tailrace.processed_opaque_before IS
    'Claims of ids that are no UUID v7, of the generation before this one.';

CREATE TABLE tailrace.opaque_generation (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    began_at timestamptz NOT NULL DEFAULT now(),
    remembered_since timestamptz NOT NULL DEFAULT '-infinity'
);
COMMENT ON COLUMN tailrace.opaque_generation.began_at IS 'When tailrace.processed_opaque took its first claim.';
COMMENT ON COLUMN tailrace.opaque_generation.remembered_since IS
    'Claims since then are known; older ones were dropped.';
INSERT INTO tailrace.opaque_generation DEFAULT VALUES;

-- Claims ids of one consumer. The answer has the ids that nobody had claimed, and with too_old those that were not
-- looked at, because they were written, as far as the caller knows, before what is remembered; the caller's clock may
-- be an hour off.
-- That an id is unique over both tables rests on the order of things: the tables are locked before the snapshot of
-- the insert is taken, and a generation ends under a lock that waits for every claim in progress. So whoever claims in
-- a new generation sees every claim of the one before. A transaction that took its snapshot earlier would not, hence
-- the isolation level.
CREATE FUNCTION tailrace.claim_opaque(claimant text, ids uuid[], written_at timestamptz[])
    RETURNS TABLE (id uuid, too_old boolean)
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    known_since timestamptz;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'an id that is no UUID v7 is claimed at isolation level %', current_setting('transaction_isolation')
            USING ERRCODE = 'feature_not_supported', HINT = 'claim it in a transaction of READ COMMITTED';
    END IF;
    LOCK TABLE tailrace.processed_opaque IN ROW EXCLUSIVE MODE;
    SELECT remembered_since + interval '1 hour' INTO known_since FROM tailrace.opaque_generation;
    RETURN QUERY
        WITH asked AS MATERIALIZED (
            SELECT DISTINCT given.id, coalesce(given.written_at < known_since, false) AS too_old
            FROM unnest(ids, written_at) AS given (id, written_at)
        ), claimed AS (
            INSERT INTO tailrace.processed_opaque AS opaque (consumer, message_id)
            SELECT claimant, asked.id FROM asked
            WHERE NOT asked.too_old AND NOT EXISTS (
                SELECT FROM tailrace.processed_opaque_before AS before
                WHERE before.consumer = claimant AND before.message_id = asked.id)
            ORDER BY asked.id
            ON CONFLICT DO NOTHING
            RETURNING opaque.message_id
        )
        SELECT claimed.message_id, false FROM claimed
        UNION ALL
        SELECT asked.id, true FROM asked WHERE asked.too_old;
END
$$;
REVOKE ALL ON FUNCTION tailrace.claim_opaque(text, uuid[], timestamptz[]) FROM PUBLIC;

-- Ends the generation if it is older than so many seconds, and says whether it did. The caller bounds the
-- wait by lock_timeout. Locks are taken in the order in which a claim takes them.
CREATE FUNCTION tailrace.turn_opaque_generation(horizon_seconds double precision) RETURNS boolean
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    LOCK TABLE tailrace.processed_opaque IN ACCESS EXCLUSIVE MODE;
    LOCK TABLE tailrace.processed_opaque_before IN ACCESS EXCLUSIVE MODE;
    UPDATE tailrace.opaque_generation
    SET began_at = clock_timestamp(),
        remembered_since = CASE WHEN EXISTS (SELECT FROM tailrace.processed_opaque_before) OR remembered_since > '-infinity'
                                THEN began_at ELSE remembered_since END
    WHERE began_at + make_interval(secs => horizon_seconds) <= clock_timestamp()
      AND (EXISTS (SELECT FROM tailrace.processed_opaque) OR EXISTS (SELECT FROM tailrace.processed_opaque_before));
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    DROP TABLE tailrace.processed_opaque_before;
    ALTER TABLE tailrace.processed_opaque RENAME TO processed_opaque_before;
    CREATE TABLE tailrace.processed_opaque (LIKE tailrace.processed_opaque_before INCLUDING ALL);
    COMMENT ON TABLE tailrace.processed_opaque IS
        'Claims of ids that are no UUID v7, of this generation. Written by tailrace.claim_opaque alone.';
    COMMENT ON TABLE tailrace.processed_opaque_before IS
        'Claims of ids that are no UUID v7, of the generation before this one.';
    RETURN true;
END
$$;
REVOKE ALL ON FUNCTION tailrace.turn_opaque_generation(double precision) FROM PUBLIC;

INSERT INTO tailrace.idempotency_version (version) VALUES (4);
