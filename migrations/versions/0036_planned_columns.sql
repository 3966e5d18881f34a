-- Which columns a served table has. dbt writes the select from the columns that these functions plan.


create function raw.target_name(run jsonb) returns text
language sql immutable
set search_path = pg_catalog
as $$ select format('%I.%I', run ->> 'source', run ->> 'model') $$;

comment on function raw.target_name is 'Returns the quoted name of the table that a run fills.';


-- Returns the columns of a model's yml, in their order. `paths` are the places of a column's value in an event: the keys
-- as a dotted text, or as a list where a key has a dot of its own. A column of the layout has none.
create function raw.read_declared(declared jsonb)
returns table (number bigint, column_name text, data_type text, description text, paths jsonb)
language sql immutable
set search_path = pg_catalog
as $$
    select
        entry.number,
        entry.value ->> 'name',
        entry.value ->> 'data_type',
        coalesce(entry.value ->> 'description', ''),
        coalesce(
            (
                select jsonb_agg(jsonb_build_array(roots.section) || origin.keys order by roots.section)
                from (values ('context', 'context'), ('property', 'properties')) as roots (key, section)
                cross join lateral (select entry.value -> 'meta' -> roots.key as value) as found
                cross join lateral (
                    select case jsonb_typeof(found.value)
                        when 'string' then to_jsonb(string_to_array(nullif(found.value #>> '{}', ''), '.'))
                        when 'array' then nullif(found.value, '[]')
                    end as keys
                ) as origin
                where origin.keys is not null
            ),
            '[]'
        )
    from jsonb_array_elements(declared) with ordinality as entry (value, number)
$$;

comment on function raw.read_declared is 'Returns the columns that a model''s yml declares, and the places of their values in an event.';


-- Tells whether an index can refuse no row: it is not unique, calls no function of a person, and has room for any value. A
-- btree has no room for a text of 2,700 bytes, while a hash has.
create function raw.takes_every_row(index oid) returns boolean
language sql stable
set search_path = pg_catalog
as $$
    select exists (
        select
        from pg_index
        inner join pg_class on pg_class.oid = indexrelid
        inner join pg_am on pg_am.oid = relam
        inner join pg_opclass on pg_opclass.oid = any(indclass::oid[])
        inner join pg_attribute on attrelid = indrelid and attnum = any(indkey::smallint[])
        where
            indexrelid = index
            and not indisunique and not indisexclusion and indpred is null and indexprs is null
        group by indexrelid, amname
        having
            bool_and(opcnamespace = 'pg_catalog'::regnamespace)
            and (amname = 'hash' or (amname in ('brin', 'btree') and bool_and(attlen > 0)))
    )
$$;

comment on function raw.takes_every_row is 'Whether an index can refuse no row of its table.';


-- Describes a table as the catalog has it; null when there is no such table. `may_refuse_rows` tells whether an object
-- that a run did not make may refuse rows.
create function raw.describe_table(target text) returns jsonb
language sql stable
set search_path = pg_catalog
as $$
    select jsonb_build_object(
        'comment', coalesce(obj_description(pg_class.oid, 'pg_class'), ''),
        'attributes', max(attnum),
        'may_refuse_rows',
            bool_or(relhasrules or relhastriggers or relrowsecurity)
            or exists (
                select from pg_index
                where indrelid = pg_class.oid and not indisprimary and not raw.takes_every_row(indexrelid)
            )
            or exists (select from pg_constraint where conrelid = pg_class.oid and contype not in ('p', 'n'))
            or bool_or(
                attgenerated <> '' or attidentity <> '' or (attnotnull and attname <> 'id')
                or (select typtype = 'd' from pg_type where pg_type.oid = atttypid)
            ) filter (where not attisdropped),
        'types',
            coalesce(jsonb_object_agg(attname, format_type(atttypid, atttypmod)) filter (where not attisdropped), '{}'),
        'comments',
            coalesce(
                jsonb_object_agg(attname, col_description(attrelid, attnum))
                    filter (where not attisdropped and col_description(attrelid, attnum) is not null),
                '{}'
            )
    )
    from pg_class
    inner join pg_attribute on pg_attribute.attrelid = pg_class.oid
    where pg_class.oid = to_regclass(target) and relkind <> 'i' and attnum > 0
    group by pg_class.oid
$$;

comment on function raw.describe_table is 'Describes a table as the catalog has it; null when there is no such table.';


create function raw.is_inferred_type(data_type text) returns boolean
language sql immutable
set search_path = pg_catalog
as $$ select data_type in ('boolean', 'bigint', 'numeric', 'timestamp with time zone', 'text') $$;

comment on function raw.is_inferred_type is 'Whether a run may have chosen a type; a person has chosen any other.';


create function raw.least_type(types text[]) returns text
language sql immutable
set search_path = pg_catalog
as $$
    select case
        when count(distinct type) = 1 then min(type)
        when bool_and(type in ('bigint', 'numeric')) then 'numeric'
        else 'text'
    end
    from unnest(types) as type
$$;

comment on function raw.least_type is 'Returns the least type of a column that holds the values of some types.';


-- Places the properties of a table's events by the rules of the layout:
-- - A declared property is never flattened, and its column keeps the declared type.
-- - Of several properties with one column, the declared one counts first, then the one seen first, where it is not null.
-- - The layout's own columns are never overwritten. A name without letters or digits gives no column.
-- - Properties that are no object give no column, and neither does a context that is no object.
-- Returns `found` (by column: the paths of its values, their types, the first event), `others` (further paths of declared
-- columns), `unplaced` (properties without a column of their own, with reasons) and `fractions` (the paths of numbers that
-- no bigint holds).
create function raw.place_properties(run_model text, run_source text, declared jsonb) returns jsonb
language sql stable
set search_path = pg_catalog
as $$
    with columns as materialized (
        select column_name, paths from raw.read_declared(declared)
    ),

    declared_paths as materialized (
        select array(select jsonb_array_elements_text(path)) as path
        from columns
        cross join lateral jsonb_array_elements(paths) as path
    ),

    -- `tracks` has the columns of every event's context.
    seen as materialized (
        select
            path,
            column_name,
            array_agg(distinct type) as types,
            min(number) as number,
            (array_agg(first_event_id order by number))[1] as first_event_id
        from raw.properties
        cross join unnest(types) as type
        where source = run_source and case run_model when 'tracks' then path[1] = 'context' else collection = run_model end
        group by path, column_name
    ),

    placed as materialized (
        select
            seen.*,
            to_jsonb(seen.path) as place,
            case
                when cardinality(seen.path) = 1 then 'no_object'
                when seen.column_name = '' then 'nameless'
                when columns.paths = '[]' then 'layout'
                when columns.paths is not null then 'declared'
                when row_number() over (
                    partition by seen.column_name, cardinality(seen.path) = 1 order by seen.number
                ) = 1 then 'found'
                else 'shared'
            end as kind
        from seen
        left join columns on columns.column_name = seen.column_name
        where not exists (
            select from declared_paths
            where seen.path[1:cardinality(declared_paths.path)] = declared_paths.path
        )
    ),

    found as (
        select
            placed.column_name,
            min(placed.number) as number,
            jsonb_agg(placed.place order by placed.number) as paths,
            (array_agg(placed.first_event_id order by placed.number))[1] as first_event_id,
            (
                select array_agg(distinct type)
                from placed as alike
                cross join unnest(alike.types) as type
                where alike.column_name = placed.column_name and alike.kind in ('found', 'shared')
            ) as types
        from placed
        where placed.kind in ('found', 'shared')
        group by placed.column_name
    ),

    others as (
        select column_name, jsonb_agg(place order by number) as paths from placed where kind = 'declared' group by column_name
    )

    select jsonb_build_object(
        'found', coalesce(
            (
                select jsonb_agg(
                    jsonb_build_object(
                        'column_name', column_name,
                        'paths', paths,
                        'wanted', raw.least_type(types),
                        'first_event_id', first_event_id
                    )
                    order by number
                )
                from found
            ),
            '[]'
        ),
        'others', coalesce((select jsonb_object_agg(column_name, paths) from others), '{}'),
        'unplaced', coalesce(
            (
                select jsonb_agg(
                    jsonb_build_object(
                        'path', place,
                        'column_name', column_name,
                        'reason', case kind when 'declared' then 'shared' else kind end
                    )
                    order by number
                )
                from placed
                where kind <> 'found'
            ),
            '[]'
        ),
        'fractions', coalesce((select jsonb_agg(to_jsonb(path)) from seen where 'numeric' = any(types)), '[]')
    )
$$;

comment on function raw.place_properties is 'Places the properties of a table''s events in columns, by the rules of the layout.';


-- Compares a table with the columns that its events and its yml ask for. `described` is what `raw.describe_table` returns.
-- Returns `notes` (the columns of the table for raw.columns, those of `statements` included), the `statements` that add
-- columns and correct comments, the names of `new_columns`, the notes of columns that are `too_narrow`, and the properties
-- that are `unplaced`.
create function raw.plan_columns(
    run_model text, run_source text, declared jsonb, described jsonb, places jsonb, options jsonb
) returns jsonb
language plpgsql stable
set search_path = pg_catalog
as $$
declare
    target text := format('%I.%I', run_source, run_model);
    types jsonb := described -> 'types';
    comments jsonb := described -> 'comments';
    room integer := 1600 - (described ->> 'attributes')::integer;
    notes jsonb[];
    statements text[] := '{}';
    new_columns text[] := '{}';
    too_narrow jsonb[] := '{}';
    unplaced jsonb[] := array(select jsonb_array_elements(places -> 'unplaced'));
    found record;
    note jsonb;
    widest text;
begin
    for found in select * from raw.read_declared(declared) order by number loop
        notes := notes || jsonb_build_object(
            'column_name', found.column_name,
            'data_type', found.data_type,
            'declared', true,
            'paths', coalesce(places -> 'others' -> found.column_name, '[]')
        );
        if not types ? found.column_name then
            statements := statements || format('alter table %s add column %I %s', target, found.column_name, found.data_type);
            new_columns := new_columns || found.column_name;
            room := room - 1;
        end if;
        if (options ->> 'column_docs')::boolean and found.description <> coalesce(comments ->> found.column_name, '') then
            statements := statements
                || format('comment on column %s.%I is %L', target, found.column_name, found.description);
        end if;
    end loop;
    if (options ->> 'relation_docs')::boolean and options ->> 'description' <> described ->> 'comment' then
        statements := statements || format('comment on table %s is %L', target, options ->> 'description');
    end if;

    for found in
        select entry.value, entry.value ->> 'column_name' as column_name, entry.value ->> 'wanted' as wanted
        from jsonb_array_elements(places -> 'found') with ordinality as entry (value, number)
        order by entry.number
    loop
        note := found.value - 'wanted' || jsonb_build_object('declared', false, 'data_type', found.wanted);
        if types ? found.column_name then
            note := note || jsonb_build_object('data_type', types ->> found.column_name);
            widest := raw.least_type(array[types ->> found.column_name, found.wanted]);
            if raw.is_inferred_type(types ->> found.column_name) and widest <> types ->> found.column_name then
                too_narrow := too_narrow || (note || jsonb_build_object('wanted_type', widest));
            end if;
        elsif room > 0 then
            room := room - 1;
            new_columns := new_columns || found.column_name;
            statements := statements
                || format('alter table %s add column %I %s', target, found.column_name, found.wanted)
                || format(
                    'comment on column %s.%I is %L',
                    target,
                    found.column_name,
                    'Found in the events: ' || array_to_string(
                        array(select jsonb_array_elements_text(found.value -> 'paths' -> 0)), '.'
                    )
                );
        else
            unplaced := unplaced || jsonb_build_object(
                'path', found.value -> 'paths' -> 0, 'column_name', found.column_name, 'reason', 'full'
            );
            continue;
        end if;
        notes := notes || note;
    end loop;
    return jsonb_build_object(
        'notes', to_jsonb(notes),
        'statements', to_jsonb(statements),
        'new_columns', to_jsonb(new_columns),
        'too_narrow', to_jsonb(too_narrow),
        'unplaced', to_jsonb(unplaced)
    );
end
$$;

comment on function raw.plan_columns is 'Compares a table with the columns that its events and its yml ask for.';


-- Writes nothing where raw.columns has a column already as it is noted.
create function raw.record_columns(run_model text, run_source text, notes jsonb) returns void
language sql
set search_path = pg_catalog
as $$
    insert into raw.columns (
        model, source, column_name, data_type, declared, paths, first_event_id, wanted_type, in_the_way, is_missing, fill_from
    )
    select
        run_model, run_source, noted.column_name, noted.data_type, noted.declared, noted.paths, noted.first_event_id,
        noted.wanted_type, noted.in_the_way, coalesce(noted.is_missing, false), noted.fill_from
    from jsonb_to_recordset(notes) as noted (
        column_name text, data_type text, declared boolean, paths jsonb, first_event_id text, wanted_type text,
        in_the_way text, is_missing boolean, fill_from pg_snapshot
    )
    left join raw.columns as old
        on old.model = run_model and old.source = run_source and old.column_name = noted.column_name
    where
        old.model is null
        or (old.data_type, old.declared, old.paths, old.wanted_type, old.in_the_way, old.is_missing)
        is distinct from (
            noted.data_type, noted.declared, noted.paths, noted.wanted_type, noted.in_the_way,
            coalesce(noted.is_missing, false)
        )
        or (old.fill_from is null and noted.fill_from is not null)
    on conflict (model, source, column_name) do update set
        data_type = excluded.data_type,
        declared = excluded.declared,
        paths = excluded.paths,
        wanted_type = excluded.wanted_type,
        in_the_way = excluded.in_the_way,
        is_missing = excluded.is_missing,
        added_at = case when columns.is_missing then excluded.added_at else columns.added_at end,
        fill_from = coalesce(columns.fill_from, excluded.fill_from)
$$;

comment on function raw.record_columns is 'Records the columns of a served table, with times and first events.';


create function raw.record_collisions(run_model text, run_source text, unplaced jsonb) returns void
language sql
set search_path = pg_catalog
as $$
    insert into raw.collisions (model, source, digest, path, column_name, reason)
    select
        run_model, run_source, sha256(convert_to(noted.path::text, 'UTF8')),
        array(select jsonb_array_elements_text(noted.path)), noted.column_name, noted.reason
    from jsonb_to_recordset(unplaced) as noted (path jsonb, column_name text, reason text)
    on conflict (model, source, digest) do update set reason = excluded.reason where collisions.reason <> excluded.reason
$$;

comment on function raw.record_collisions is 'Records the properties that have no column of their own.';


-- The run goes on without the columns that could not be added. Their values are filled later: from the first event where
-- the yml declares the column, and otherwise from the events that are new to this run.
create function raw.leave_out_columns(planned jsonb, reason text, previous text) returns jsonb
language sql immutable
set search_path = pg_catalog
as $$
    select planned || jsonb_build_object(
        'new_columns', '[]'::jsonb,
        'notes', jsonb_agg(
            note || case
                when planned -> 'new_columns' ? (note ->> 'column_name') then jsonb_build_object(
                    'is_missing', true,
                    'wanted_type', note -> 'data_type',
                    'in_the_way', reason,
                    'fill_from', case when (note ->> 'declared')::boolean then '1:1:' else previous end
                )
                else '{}'
            end
            order by number
        )
    )
    from jsonb_array_elements(planned -> 'notes') with ordinality as entry (note, number)
$$;

comment on function raw.leave_out_columns is 'Notes that columns of a plan could not be added, and from where their values are to be filled.';
