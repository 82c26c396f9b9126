-- Tables of tailrace-saga, version 9: what waits is found by when it may be told.
--
-- Roles need nothing for it beside what they have.

-- Ten times a second an engine looks for what it may tell. What came for sagas that nobody knows, or nobody here can run,
-- stands in neither of these, however much it is: it is looked at every few seconds.
CREATE INDEX saga_input_ready ON tailrace.saga_input (not_before, id) WHERE reason IN ('told', 'failed');
CREATE INDEX saga_input_expires ON tailrace.saga_input (expires_at) WHERE expires_at IS NOT NULL;

INSERT INTO tailrace.saga_version (version) VALUES (9);
