-- Tables of tailrace-saga, version 2: what an orchestrator keeps.
--
-- An orchestrator's own role needs, beside what stands at the head of the first migration:
--   GRANT SELECT, INSERT, UPDATE ON tailrace.saga_instance TO service;
--   GRANT INSERT ON tailrace.saga_journal TO service;
--   GRANT SELECT, INSERT, UPDATE, DELETE ON tailrace.saga_timer, tailrace.saga_input, tailrace.saga_engine TO service;

-- A running saga is rewritten with every answer. Half of each page is free for that, and no index is on what changes
-- then, so the new version stays on its page (a heap-only tuple).
CREATE TABLE tailrace.saga_instance (
    id uuid PRIMARY KEY,
    definition text NOT NULL,
    version bigint NOT NULL CHECK (version > 0),
    hash text NOT NULL,
    status text NOT NULL,
    revision bigint NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    changed_at timestamptz NOT NULL DEFAULT now(),
    instance json NOT NULL,
    origin json NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50);
COMMENT ON TABLE tailrace.saga_instance IS
    'One row per saga. Only the machine changes it: whoever wants something of a saga inserts into tailrace.saga_input.';
COMMENT ON COLUMN tailrace.saga_instance.origin IS
    'The attributes that tie the messages of the saga to what started it.';
-- What is over is in no index but the primary key, however much it is.
CREATE INDEX saga_instance_unfinished ON tailrace.saga_instance (definition, version, hash, status)
    WHERE status IN ('running', 'compensating', 'parked');

-- Append-only: what happened, one row for each input that a saga was given.
CREATE TABLE tailrace.saga_journal (
    saga_id uuid NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    revision bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    entries json NOT NULL,
    PRIMARY KEY (saga_id, id)
);

-- A timer is taken with SKIP LOCKED and deleted by who has taken it, in the transaction of what it does. One that says
-- nothing any more is taken too, and ignored: nobody deletes timers that may still be wanted.
CREATE TABLE tailrace.saga_timer (
    due_at timestamptz NOT NULL,
    saga_id uuid NOT NULL,
    tick json NOT NULL
);
CREATE INDEX saga_timer_due ON tailrace.saga_timer (due_at);

-- What sagas are to be told and could not be told at once: what people want, and what came before its saga, for a
-- version that nobody could run, or failed.
CREATE TABLE tailrace.saga_input (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    saga_id uuid NOT NULL,
    input json NOT NULL,
    cause json NOT NULL DEFAULT '{}',
    reason text NOT NULL DEFAULT 'told',
    attempts integer NOT NULL DEFAULT 0,
    inserted_at timestamptz NOT NULL DEFAULT now(),
    not_before timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz
);
CREATE INDEX saga_input_saga ON tailrace.saga_input (saga_id);

-- Which engines live, and which definitions each of them can run.
CREATE TABLE tailrace.saga_engine (
    engine uuid NOT NULL,
    definition text NOT NULL,
    version bigint NOT NULL CHECK (version > 0),
    hash text NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (engine, definition, version)
) WITH (fillfactor = 50);

INSERT INTO tailrace.saga_version (version) VALUES (2);
