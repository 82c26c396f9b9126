-- Tables of tailrace-saga, version 3: what the service keeps that starts choreographed sagas.
--
-- Its role needs, beside what stands at the head of the first migration:
--   GRANT SELECT, INSERT, UPDATE, DELETE ON tailrace.saga_choreography TO service;

CREATE TABLE tailrace.saga_choreography (
    saga_id uuid PRIMARY KEY,
    name text NOT NULL,
    definition text NOT NULL,
    status text NOT NULL DEFAULT 'running'
        CHECK (status IN ('running', 'expiring', 'completed', 'undone')),
    heard text[] NOT NULL DEFAULT '{}',
    started_at timestamptz NOT NULL DEFAULT now(),
    due_at timestamptz NOT NULL,
    ended_at timestamptz,
    payload bytea NOT NULL
);
COMMENT ON TABLE tailrace.saga_choreography IS
    'One row per saga that this service has started: by when it has ended, and whether it has.';
COMMENT ON COLUMN tailrace.saga_choreography.status IS
    'expiring: the deadline has passed, and the service of the pivot decides whether it was too late.';
COMMENT ON COLUMN tailrace.saga_choreography.heard IS 'Which of the events that end it have come.';
-- What is over is in no index but the primary key, however much it is.
CREATE INDEX saga_choreography_due ON tailrace.saga_choreography (name, due_at) WHERE status = 'running';
CREATE INDEX saga_choreography_overdue ON tailrace.saga_choreography (name, due_at) WHERE status = 'expiring';

INSERT INTO tailrace.saga_version (version) VALUES (3);
