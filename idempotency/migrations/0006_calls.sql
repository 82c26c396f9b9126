-- Tables of tailrace-idempotency, version 6: effects outside Postgres.
--
-- A service's own role needs nothing beside the grants of the versions before.

-- A message that makes a call is parked from the start, so that its key waits behind it. What its handler has prepared is
-- stored before the call is made, and the call is repeated with it after a crash.
ALTER TABLE tailrace.parked_message ADD COLUMN intent bytea;
COMMENT ON COLUMN tailrace.parked_message.intent IS
    'What the call of the message is made with, as JSON; null while it is not prepared, and for messages without a call.';

ALTER TABLE tailrace.parked_message
    DROP CONSTRAINT parked_message_state_check,
    ADD CONSTRAINT parked_message_state_check
        CHECK (state IN ('queued', 'waiting', 'calling', 'stuck', 'discard')),
    ADD CHECK (state <> 'calling' OR intent IS NOT NULL);
COMMENT ON COLUMN tailrace.parked_message.state IS
    'queued: behind another message of its key. waiting: tried again at retry_at. calling: its call is being made, and is repeated by whoever owns the partition next. stuck: tried often enough, a person decides. discard: a person gave it up, the owner makes a dead letter of it.';

INSERT INTO tailrace.idempotency_version (version) VALUES (6);
