-- The indexes of served tables, which the `indexes` of a model's yml list. A dashboard that filters by a time, a user or a
-- campaign then reads few pages instead of the whole table.


create table raw.waiting_indexes (
    model text not null,
    source text not null,
    name text not null,
    uniqueness text not null,
    columns text not null,
    definition text not null,
    reason text not null,
    since timestamptz not null default clock_timestamp(),
    primary key (model, source, name)
);

comment on table raw.waiting_indexes is 'One row per index of a served table that no run has built. The row goes when the index is there, or when the yml no longer lists it.';
comment on column raw.waiting_indexes.name is 'The name of the index, which is a hash: an event may have any other name, and its table too.';
comment on column raw.waiting_indexes.uniqueness is '`unique`, or empty.';
comment on column raw.waiting_indexes.columns is 'The columns of the index, for people.';
comment on column raw.waiting_indexes.definition is 'The index after the name of the table in `create index`.';
comment on column raw.waiting_indexes.reason is 'The reason why the last run did not build the index.';


-- Returns the indexes of a table that its model lists and the table lacks. An index of the same columns, type and
-- uniqueness counts, whoever made it. An index of a column that the table lacks is left out until the column is there.
create function raw.plan_indexes(run jsonb) returns table (name text, uniqueness text, columns text, definition text)
language sql stable
set search_path = pg_catalog
as $$
    select
        md5(concat_ws(' ', run ->> 'model', wanted.type, wanted.columns, wanted.is_unique)),
        case when wanted.is_unique then 'unique' else '' end,
        listed.columns,
        format(
            'using %I (%s)%s',
            wanted.type,
            listed.quoted,
            -- Without it, new pages are read by every filter until the next vacuum.
            case wanted.type when 'brin' then ' with (autosummarize = on)' else '' end
        )
    from jsonb_to_recordset(run -> 'indexes') as wanted (columns jsonb, type text, is_unique boolean)
    cross join lateral (
        select
            array_agg(attname::text order by entry.number) as names,
            string_agg(attname, ', ' order by entry.number) as columns,
            string_agg(quote_ident(attname), ', ' order by entry.number) as quoted
        from jsonb_array_elements_text(wanted.columns) with ordinality as entry (name, number)
        inner join pg_attribute
            on attrelid = to_regclass(raw.target_name(run)) and attname = entry.name and not attisdropped
    ) as listed
    where
        cardinality(listed.names) = jsonb_array_length(wanted.columns)
        and not exists (
            select from pg_index
            inner join pg_class on pg_class.oid = indexrelid
            inner join pg_am on pg_am.oid = relam
            where
                indrelid = to_regclass(raw.target_name(run))
                and indisvalid and indpred is null and indexprs is null
                and amname = wanted.type and indisunique = wanted.is_unique
                and listed.names = (
                    select array_agg(attname::text order by entry.number)
                    from unnest(indkey::smallint[]) with ordinality as entry (attnum, number)
                    inner join pg_attribute on attrelid = indrelid and pg_attribute.attnum = entry.attnum
                    where entry.number <= indnkeyatts
                )
        )
$$;

comment on function raw.plan_indexes is 'Returns the indexes of a served table that its model lists and the table lacks.';


-- Builds the indexes that a table lacks, and returns the obstacles that are new. Building the index of a large table takes
-- long, and sessions that write wait meanwhile, so `loader index` builds it beside them.
create function raw.make_indexes(run jsonb) returns text[]
language plpgsql
set search_path = pg_catalog
as $$
declare
    target regclass := raw.target_name(run)::regclass;
    is_created boolean := (run ->> 'is_created')::boolean;
    missing text[] := '{}';
    planned record;
    reason text;
    obstacles text[] := '{}';
begin
    for planned in select * from raw.plan_indexes(run) loop
        if not is_created and pg_table_size(target) > (run ->> 'most_bytes')::bigint then
            reason := 'the table''s size';
        else
            reason := raw.change_table(
                run ->> 'model',
                run ->> 'source',
                target,
                format('create %s index %I on %s %s', planned.uniqueness, planned.name, target, planned.definition),
                is_created
            );
            continue when reason = '';
        end if;
        missing := missing || planned.name;
        insert into raw.waiting_indexes (model, source, name, uniqueness, columns, definition, reason)
        values (
            run ->> 'model', run ->> 'source', planned.name, planned.uniqueness, planned.columns, planned.definition, reason
        )
        on conflict on constraint waiting_indexes_pkey do update set reason = excluded.reason
        where waiting_indexes.reason <> excluded.reason;
        if found then
            obstacles := obstacles
                || format('the index on %s is not built. In the way: %s. `loader index` builds it.', planned.columns, reason);
        end if;
    end loop;
    delete from raw.waiting_indexes as built
    where built.model = run ->> 'model' and built.source = run ->> 'source' and built.name <> all(missing);
    return obstacles;
end
$$;

comment on function raw.make_indexes is 'Builds the indexes that a served table lacks; returns the obstacles that are new.';
