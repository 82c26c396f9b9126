-- Tables of tailrace-saga, version 8: sagas that are known by a key of the business.
--
-- A role that starts sagas by a key, and that of every service in which choreographed sagas start, since it forgets keys
-- with their sagas, needs:
--   GRANT SELECT, INSERT, DELETE ON tailrace.saga_key TO service;

CREATE TABLE tailrace.saga_key (
    definition text NOT NULL,
    key text NOT NULL,
    saga_id uuid NOT NULL,
    PRIMARY KEY (definition, key)
);
COMMENT ON TABLE tailrace.saga_key IS
    'By which key a saga was started, so that the same wish twice is the same saga.';
COMMENT ON COLUMN tailrace.saga_key.definition IS 'The name of the definition, of whatever version.';
CREATE INDEX saga_key_saga ON tailrace.saga_key (saga_id);

INSERT INTO tailrace.saga_version (version) VALUES (8);
