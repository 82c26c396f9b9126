-- What makes messages of the rows of customers: one transaction, run by the owner of the table, as
--   psql --single-transaction -v topic=customers -f trigger.sql
-- It needs the functions of tailrace-outbox (tailrace_outbox::schema, or `tailrace outbox install`) and a relay whose
-- slot is there. Let people look over what is published: this is where columns stay out that are nobody's business.

CREATE FUNCTION customer_message(customer customers) RETURNS uuid
    LANGUAGE sql
RETURN tailrace.emit(:'topic', customer.id::text, 'customer.changed.v1',
    to_jsonb(customer) - 'password_hash', source => '/legacy');

CREATE FUNCTION publish_customer() RETURNS trigger
    LANGUAGE plpgsql
    -- The owner's rights: whoever writes to the table needs none on what stands here.
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM tailrace.emit(:'topic', OLD.id::text, 'customer.deleted.v1', NULL,
            source => '/legacy', tombstone => true);
    ELSE
        PERFORM public.customer_message(NEW);
    END IF;
    RETURN NULL;
END
$$;

-- From here on writers wait until this transaction has committed; readers do not.
CREATE TRIGGER publish_customer AFTER INSERT OR UPDATE OR DELETE ON customers
    FOR EACH ROW EXECUTE FUNCTION publish_customer();

-- The rows that are there already.
SELECT count(customer_message(customers)) FROM customers;
