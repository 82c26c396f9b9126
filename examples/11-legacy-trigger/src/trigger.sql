-- What makes messages of the rows of customers: one transaction, run by the owner of the table, as
--   psql --single-transaction -v ON_ERROR_STOP=1 -v topic=customers -f trigger.sql
-- It needs the functions of tailrace-outbox (tailrace_outbox::schema::install, or `tailrace outbox install`) and a relay
-- whose slot is there.

-- What is published is said here, and so is what stays where it is.
CREATE FUNCTION customer_changed(customer customers) RETURNS uuid
    LANGUAGE sql
RETURN tailrace.emit(:'topic', customer.id::text, 'customer.changed.v1',
    to_jsonb(customer) - 'password_hash', source => '/legacy');

CREATE FUNCTION customer_deleted(id bigint) RETURNS uuid
    LANGUAGE sql
RETURN tailrace.emit(:'topic', id::text, 'customer.deleted.v1', NULL, source => '/legacy', tombstone => true);

CREATE FUNCTION publish_customer() RETURNS trigger
    LANGUAGE plpgsql
    -- The owner's rights: whoever writes to the table needs none on what stands here.
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Messages are known by their key: that of a row that is gone, and the old one of a row that has another now.
    IF TG_OP = 'DELETE' OR TG_OP = 'UPDATE' AND OLD.id <> NEW.id THEN
        PERFORM public.customer_deleted(OLD.id);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        PERFORM public.customer_changed(NEW);
    END IF;
    RETURN NULL;
END
$$;

-- From here on writers wait until this transaction has committed; readers do not.
CREATE TRIGGER publish_customer AFTER INSERT OR UPDATE OR DELETE ON customers
    FOR EACH ROW EXECUTE FUNCTION publish_customer();

-- The rows that are there already.
SELECT count(customer_changed(customers)) FROM customers;
