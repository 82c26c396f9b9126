-- Tables of tailrace-saga, version 7: compensations whose effect lies outside the database.
--
-- No role needs more than before.

ALTER TABLE tailrace.saga_barrier
    ADD COLUMN compensation_calling bigint CHECK (compensation_calling > 0),
    ADD COLUMN caller text;
COMMENT ON COLUMN tailrace.saga_barrier.compensation_calling IS
    'The epoch of the compensation while it is made outside the database; null before and after.';
COMMENT ON COLUMN tailrace.saga_barrier.caller IS
    'The id of the message that makes a call: the same one may make it anew, every other one waits.';

INSERT INTO tailrace.saga_version (version) VALUES (7);
