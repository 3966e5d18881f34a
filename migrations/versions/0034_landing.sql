-- The hot path of a collector: one statement lands a batch whose properties are all recorded. A rescan may have replaced
-- the record since the collector read it, so the landing transaction compares the generation itself.
create function raw.lock_generation() returns text
language plpgsql
set search_path = pg_catalog
as $$
begin
    -- The lock blocks nothing. `loader rescan` looks it up to find landing transactions older than the rebuild, and waits
    -- for them. The lock comes before the snapshot that reads the number: a transaction that a rescan does not find reads
    -- the new number.
    lock table raw.generation in row share mode;
    return (
        select concat_ws(' ', number, pg_relation_filepath('raw.properties'), extract(epoch from pg_postmaster_start_time()))
        from raw.generation
    );
end
$$;

comment on function raw.lock_generation is 'Returns the generation of raw.collections and raw.properties, which holds until the transaction ends: another number, file or server start is another record.';

create function raw.require_generation(generation text) returns void
language plpgsql
set search_path = pg_catalog
as $$
begin
    if raw.lock_generation() is distinct from generation then
        raise exception 'The recorded properties have another generation than the batch was compared with.';
    end if;
end
$$;

comment on function raw.require_generation is 'Fails unless the generation is the present one, and keeps it until the transaction ends.';

-- PostgreSQL keeps the plan of a function's statement for the session, also behind a pooler. A collector needs no prepared
-- statement.
create function raw.land(
    generation text, sources text[], collections text[], received_at timestamptz[], message_ids text[], payloads jsonb[]
) returns void
language plpgsql
set search_path = pg_catalog
as $$
begin
    perform raw.require_generation(generation);
    -- In the list of a select, arrays of one length are read side by side. In its `from`, the executor writes the rows to
    -- a table of its own first.
    insert into raw.events (source, collection, received_at, message_id, payload)
    select unnest(sources), unnest(collections), unnest(land.received_at), unnest(message_ids), unnest(payloads);
end
$$;

comment on function raw.land is 'Lands events, given as arrays of one length, whose properties are recorded in a generation; fails when the generation is another by now.';
