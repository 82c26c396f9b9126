-- Tables of tailrace-saga, version 4: what an observer keeps.
--
-- Its role needs, beside what stands at the head of the first migration:
--   GRANT SELECT, INSERT, DELETE ON tailrace.saga_story TO service;

-- Append-only. No payload: who may read the story need not be one who may read what it is about.
CREATE TABLE tailrace.saga_story (
    saga_id uuid NOT NULL,
    message_id text NOT NULL,
    at timestamptz NOT NULL,
    topic text NOT NULL,
    source text NOT NULL,
    type text NOT NULL,
    definition text NOT NULL,
    step text NOT NULL,
    operation text NOT NULL,
    outcome text,
    cause text,
    PRIMARY KEY (saga_id, message_id)
);
COMMENT ON TABLE tailrace.saga_story IS
    'Every command, reply and event of a saga that an observer has read, one row each.';
COMMENT ON COLUMN tailrace.saga_story.outcome IS 'Null on commands.';
COMMENT ON COLUMN tailrace.saga_story.cause IS 'The id of the message that caused it.';

INSERT INTO tailrace.saga_version (version) VALUES (4);
