CREATE FUNCTION publish_customer() RETURNS trigger
    LANGUAGE plpgsql
    -- The trigger's rights, not those of whoever writes to the table.
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- On a compacted topic a tombstone deletes what stands under its key: that of a row that is gone, and
    -- the old one of a row that has another now.
    IF TG_OP = 'DELETE' OR TG_OP = 'UPDATE' AND OLD.id <> NEW.id THEN
        PERFORM tailrace.emit('customers', OLD.id::text, 'customer.deleted.v1', NULL,
            source => '/legacy', tombstone => true);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        PERFORM tailrace.emit('customers', NEW.id::text,
            CASE TG_OP WHEN 'INSERT' THEN 'customer.created.v1' ELSE 'customer.changed.v1' END,
            to_jsonb(NEW) - 'password_hash',
            source => '/legacy', subject => 'customer-' || NEW.id);
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER publish_customer AFTER INSERT OR UPDATE OR DELETE ON customers
    FOR EACH ROW EXECUTE FUNCTION publish_customer();
