-- Tables of tailrace-idempotency, version 8: read models that are built beside the live one; an index of what waits.
--
-- A role that runs a projection needs, beside the grants of the versions before and the right to create schemas in its
-- database (GRANT CREATE ON DATABASE):
--   GRANT SELECT, INSERT, UPDATE ON tailrace.projection_build TO service;

-- One row per time that a read model was built. Its tables are in a schema of their own, with the read model's name
-- while it is the live one; its consumer is `projection.build`, so no build meets claims or progress of another.
CREATE TABLE tailrace.projection_build (
    projection text NOT NULL,
    build integer NOT NULL CHECK (build > 0),
    version integer NOT NULL,
    state text NOT NULL CHECK (state IN ('building', 'live', 'former', 'leaving', 'dropped')),
    definition bytea NOT NULL,
    began_at timestamptz NOT NULL DEFAULT now(),
    switched_at timestamptz,
    PRIMARY KEY (projection, build)
);
CREATE UNIQUE INDEX projection_build_live ON tailrace.projection_build (projection) WHERE state = 'live';
CREATE UNIQUE INDEX projection_build_building ON tailrace.projection_build (projection) WHERE state = 'building';
COMMENT ON COLUMN tailrace.projection_build.version IS
    'The version of the code that builds it.';
COMMENT ON COLUMN tailrace.projection_build.state IS
    'building: beside the live one. live: what readers see. former: kept for going back. leaving: to be dropped. dropped: gone.';
COMMENT ON COLUMN tailrace.projection_build.definition IS
    'A digest of the statements that made its tables, and of its topics.';

CREATE FUNCTION tailrace.projection_schema(projection text, build integer, state text) RETURNS text
    LANGUAGE sql IMMUTABLE
RETURN CASE state WHEN 'live' THEN projection ELSE projection || '_build' || build END;

-- Each transaction that writes to a build begins with this: it holds up a switch, and is held up by one, so none
-- writes under a name that changes its meaning. The answer is the schema.
CREATE FUNCTION tailrace.enter_projection(name text, number integer) RETURNS text
    LANGUAGE plpgsql
AS $$
DECLARE
    found_schema text;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('tailrace.projection ' || name, number));
    -- A statement after the lock, so that it sees what was committed before the lock was free.
    SELECT tailrace.projection_schema(b.projection, b.build, b.state) INTO found_schema
    FROM tailrace.projection_build AS b
    WHERE b.projection = name AND b.build = number AND b.state IN ('building', 'live', 'former');
    IF found_schema IS NULL THEN
        RAISE EXCEPTION 'build % of the read model % is gone', number, name USING ERRCODE = 'no_data_found';
    END IF;
    RETURN found_schema;
END
$$;

-- A consumer looks for messages that were put back by hand, however many are parked behind others.
CREATE INDEX parked_message_waiting ON tailrace.parked_message (consumer, topic, partition, "offset")
    WHERE state = 'waiting';

INSERT INTO tailrace.idempotency_version (version) VALUES (8);
