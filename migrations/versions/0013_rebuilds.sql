-- A rebuild deletes rows, so it has to know how many events raw.events still holds for a table.

alter table raw.cursors add column rebuild_ordered boolean not null default false;

comment on column raw.cursors.rebuild_ordered is 'The next run makes all rows again, for instance because `loader rescan` found properties without a column.';


-- How many events a snapshot shows of those that a table is made of, or how many ids they have. Reads the table's
-- partition of raw.events, and all partitions for tracks.
create function raw.count_events(schema_name text, table_name text, seen pg_snapshot, distinct_ids boolean)
returns bigint
language plpgsql stable
as $$
declare
    counted bigint;
begin
    execute format(
        'select count(*) from (
            select message_id
            from raw.events
            where source = %L and %s and pg_visible_in_snapshot(load_xid, %L) %s
        ) as events',
        schema_name,
        case when table_name = 'tracks' then 'collection is not null' else format('collection = %L', table_name) end,
        seen,
        case when distinct_ids then 'group by message_id' end
    ) into counted;
    return counted;
end
$$;

comment on function raw.count_events is 'Events, or ids of events, that a snapshot shows of those a table is made of.';
