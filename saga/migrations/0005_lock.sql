-- Tables of tailrace-saga, version 5: locks of sagas, in the orchestrator's database.
--
-- An orchestrator's own role needs, beside what stands at the head of the second migration:
--   GRANT SELECT, INSERT, UPDATE, DELETE ON tailrace.saga_lock, tailrace.saga_lock_look TO service;

-- One row for each lock that a saga has or stands in line for. It goes when the saga has ended, in the same transaction.
CREATE TABLE tailrace.saga_lock (
    saga_id uuid NOT NULL,
    lock text NOT NULL,
    key text NOT NULL,
    ticket bigint GENERATED ALWAYS AS IDENTITY,
    ttl interval NOT NULL,
    wanted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    held_at timestamptz,
    PRIMARY KEY (saga_id, lock, key)
);
COMMENT ON TABLE tailrace.saga_lock IS
    'Which saga has which lock, and which stand in line. Not to be edited: tell the saga by tailrace.saga_input.';
COMMENT ON COLUMN tailrace.saga_lock.ticket IS 'The lowest one that waits is next.';
COMMENT ON COLUMN tailrace.saga_lock.ttl IS
    'For how long its saga may go forward with it; it keeps the lock in any case.';
-- Whatever else is wrong, no two sagas have the same lock.
CREATE UNIQUE INDEX saga_lock_held ON tailrace.saga_lock (lock, key) WHERE held_at IS NOT NULL;
CREATE INDEX saga_lock_waiting ON tailrace.saga_lock (lock, key, ticket) WHERE held_at IS NULL;

-- No transaction of an engine waits for a lock's line. Where two meet at one, the second leaves a row here, and somebody
-- looks at that line again once both have committed.
CREATE TABLE tailrace.saga_lock_look (
    lock text NOT NULL,
    key text NOT NULL
);

-- So that engines of different services refuse to live together if their sagas could wait for each other for ever.
ALTER TABLE tailrace.saga_engine ADD COLUMN lock_order text[] NOT NULL DEFAULT '{}';

INSERT INTO tailrace.saga_version (version) VALUES (5);
