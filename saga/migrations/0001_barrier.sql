-- Tables of tailrace-saga, version 1: the barrier of participants.
-- Plain SQL for any migration tool. Run it in one transaction, by a role that may create tables;
-- `schema::install` does so under an advisory lock and may be called by any number of processes at once.
--
-- A participant's own role needs no right to create anything:
--   GRANT USAGE ON SCHEMA tailrace TO service;
--   GRANT SELECT ON tailrace.saga_version TO service;
--   GRANT SELECT, INSERT, UPDATE, DELETE ON tailrace.saga_barrier TO service;
--   GRANT SELECT, UPDATE ON tailrace.saga_barrier_horizon TO service;

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

CREATE TABLE tailrace.saga_version (
    version integer PRIMARY KEY,
    installed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE tailrace.saga_version IS 'The migrations of tailrace-saga that were applied.';

-- One row for both operations of a step, so that an action and its compensation wait for each other
-- whichever comes first, and wherever: by the primary key.
CREATE TABLE tailrace.saga_barrier (
    saga_id uuid NOT NULL,
    step text NOT NULL,
    definition text NOT NULL,
    action_epoch bigint CHECK (action_epoch > 0),
    action_outcome text CHECK (action_outcome IN ('done', 'refused', 'calling')),
    reply bytea,
    compensation_epoch bigint CHECK (compensation_epoch > 0),
    PRIMARY KEY (saga_id, step),
    CHECK ((action_epoch IS NULL) = (action_outcome IS NULL))
) WITH (fillfactor = 80);
COMMENT ON TABLE tailrace.saga_barrier IS
    'What a participant has done for a step of a saga, written in the transaction of the effect.';
COMMENT ON COLUMN tailrace.saga_barrier.reply IS 'The reply or the refusal of the action, as it was sent.';
COMMENT ON COLUMN tailrace.saga_barrier.compensation_epoch IS
    'Set once the action is undone, or will never run.';

-- Rows of sagas with ids below this are gone, or may be. A command of such a saga is not decided.
CREATE TABLE tailrace.saga_barrier_horizon (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    saga_id uuid NOT NULL
);
INSERT INTO tailrace.saga_barrier_horizon (saga_id) VALUES ('00000000-0000-0000-0000-000000000000');

INSERT INTO tailrace.saga_version (version) VALUES (1);
