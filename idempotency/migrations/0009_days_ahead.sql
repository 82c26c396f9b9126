-- Tables of tailrace-idempotency, version 9: what was set aside because its id is from the future.
--
-- A service's own role needs nothing beside the grants of the versions before.

-- As in version 4, but days up to 401 ahead are possible: an id from the future that is set aside is claimed in the
-- partition of its day, so that it is known still when that day has come.
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
        IF wanted IS NULL OR wanted < today - 401 OR wanted > today + 401 THEN
            RAISE EXCEPTION 'no partition of tailrace.processed_message is made for %', wanted
                USING ERRCODE = 'datetime_field_overflow',
                      HINT = 'days from 401 days ago to 401 days ahead are possible';
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

INSERT INTO tailrace.idempotency_version (version) VALUES (9);
