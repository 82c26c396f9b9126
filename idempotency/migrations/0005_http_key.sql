-- Tables of tailrace-idempotency, version 5: answers to HTTP requests that may come again.
--
-- A service's own role needs, beside the grants of the versions before:
--   GRANT SELECT, INSERT, DELETE ON tailrace.http_key TO service;

-- One row per caller and key, written when the answer is known, so that none is there without its effect. That a request
-- is being handled is told by an advisory lock, which ends with the transaction.
CREATE TABLE tailrace.http_key (
    scope text NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL,
    status smallint NOT NULL CHECK (status BETWEEN 100 AND 599),
    header_names text[] NOT NULL,
    header_values bytea[] NOT NULL,
    body bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (scope, key),
    CHECK (cardinality(header_names) = cardinality(header_values))
);
CREATE INDEX http_key_by_age ON tailrace.http_key (created_at);
COMMENT ON TABLE tailrace.http_key IS
    'The answer to each request with an Idempotency-Key, written in the transaction of its effect.';

-- How often a message was retried by hand is counted from the audit.
CREATE INDEX inbox_audit_by_record ON tailrace.inbox_audit (consumer, topic, partition, "offset");

INSERT INTO tailrace.idempotency_version (version) VALUES (5);
