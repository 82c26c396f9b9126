-- Tables of tailrace-saga, version 6: what people need who operate an orchestrator's sagas.
--
-- An orchestrator's own role needs, beside what stands at the head of the second migration:
--   GRANT SELECT, INSERT ON tailrace.saga_definition TO service;
--   GRANT SELECT, UPDATE, DELETE ON tailrace.saga_migration TO service;
--
-- The role of operators, who use `tailrace saga` or the routes of this crate, needs:
--   GRANT USAGE ON SCHEMA tailrace TO operator;
--   GRANT SELECT ON tailrace.saga_version, tailrace.saga_instance, tailrace.saga_journal, tailrace.saga_story,
--       tailrace.saga_engine, tailrace.saga_definition TO operator;
--   GRANT SELECT, INSERT ON tailrace.saga_input, tailrace.saga_audit TO operator;
--   GRANT SELECT, INSERT, UPDATE ON tailrace.saga_migration TO operator;
-- Who may look and change nothing needs USAGE, and SELECT on the same tables.

-- Since when a saga is being undone; null before that.
ALTER TABLE tailrace.saga_instance ADD COLUMN turned_at timestamptz;

-- Lists go by id, page by page. No index is on a column that changes while a saga only gets on, so that its row stays a
-- heap-only tuple; that of most sagas is in two of them while it runs, and in none but the primary key once it has
-- completed.
CREATE INDEX saga_instance_live ON tailrace.saga_instance (id)
    WHERE status IN ('running', 'compensating', 'parked');
CREATE INDEX saga_instance_attention ON tailrace.saga_instance (status, id)
    WHERE status IN ('compensating', 'parked');
CREATE INDEX saga_instance_undone ON tailrace.saga_instance (status, id)
    WHERE status IN ('compensated', 'aborted');
CREATE INDEX saga_instance_turned ON tailrace.saga_instance (definition, turned_at)
    WHERE status IN ('compensating', 'parked') AND turned_at IS NOT NULL;

-- The structure of every definition that an engine could ever run here, for programs without its code.
CREATE TABLE tailrace.saga_definition (
    definition text NOT NULL,
    version bigint NOT NULL CHECK (version > 0),
    hash text NOT NULL,
    structure json NOT NULL,
    registered_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (definition, version, hash)
);

-- What people wanted, of which saga, who, and by which query. Rows are only ever added.
CREATE TABLE tailrace.saga_audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    batch uuid NOT NULL,
    actor text NOT NULL,
    note text,
    action text NOT NULL,
    step text,
    query text NOT NULL,
    saga_id uuid NOT NULL,
    definition text NOT NULL,
    version bigint NOT NULL,
    status text NOT NULL,
    revision bigint NOT NULL
);
CREATE INDEX saga_audit_saga ON tailrace.saga_audit (saga_id, id);
COMMENT ON COLUMN tailrace.saga_audit.batch IS 'The same for all sagas of one change.';
COMMENT ON COLUMN tailrace.saga_audit.query IS 'How the saga was chosen.';
COMMENT ON COLUMN tailrace.saga_audit.status IS 'How the saga stood when it was chosen, with revision.';

-- Sagas that are to go on under another definition. Only an engine with that definition's code can move them: it takes
-- the row, and deletes it with the move, or says why it does not.
CREATE TABLE tailrace.saga_migration (
    saga_id uuid PRIMARY KEY,
    definition text NOT NULL,
    version bigint NOT NULL CHECK (version > 0),
    hash text NOT NULL,
    mapping json NOT NULL,
    actor text NOT NULL,
    inserted_at timestamptz NOT NULL DEFAULT now(),
    refused text
);
CREATE INDEX saga_migration_open ON tailrace.saga_migration (definition, version, hash, saga_id)
    WHERE refused IS NULL;

INSERT INTO tailrace.saga_version (version) VALUES (6);
