-- How a run fills one served table of one source. dbt writes the select from the columns that `raw.open_table` returns.
-- The functions here do everything else: they lock the cursor, make and change the table, find the columns, count the
-- events, and report. All of them work by hand, too.


-- Locks the cursor of a table, and sets the settings of this transaction that the select of a model reads.
--
-- A second run of the model waits at the lock for the commit of the first, and then finds the cursor moved. A run that
-- started earlier and came later has a snapshot that is not newer than the cursor's. Such a run has nothing to add.
create function raw.lock_cursor(
    run_model text, run_source text, run_transform text, is_rebuild boolean, lock_wait text
) returns jsonb
language plpgsql
set search_path = pg_catalog
as $$
declare
    found_cursor record;
begin
    -- Another session's lock on raw.cursors fails the table. Another run may hold the cursor's row for hours.
    lock table raw.cursors in row exclusive mode;
    perform set_config('lock_timeout', '0', true);
    insert into raw.cursors (model, source) values (run_model, run_source) on conflict do nothing;
    -- The lock has a statement of its own, so that the next statement sees the cursor as the other run has left it.
    perform from raw.cursors where cursors.model = run_model and cursors.source = run_source for update;
    perform
        set_config('lock_timeout', lock_wait, true),
        set_config('timezone', 'UTC', true),
        set_config('datestyle', 'ISO, MDY', true),
        set_config('standard_conforming_strings', 'on', true);

    select
        cursors.snapshot as previous,
        cursors.last_seq,
        cursors.rebuild_ordered,
        cursors.xmin = pg_current_xact_id()::xid as is_first,
        transforms.started_at,
        latest.snapshot
    into found_cursor
    from raw.cursors
    cross join raw.transforms
    -- A rebuild that had to wait for a run with a later snapshot reads up to that snapshot: tables never go back in time.
    cross join lateral (
        select taken.snapshot
        from (values (transforms.snapshot), (cursors.snapshot)) as taken (snapshot)
        where taken.snapshot is not null
        order by pg_snapshot_xmax(taken.snapshot) desc, (select count(*) from pg_snapshot_xip(taken.snapshot))
        limit 1
    ) as latest
    where cursors.model = run_model and cursors.source = run_source and transforms.id = run_transform;
    if not found then
        raise exception 'This invocation is not in raw.transforms: the project''s on-run-start hook did not run.';
    end if;

    perform
        set_config('loader.source', run_source, true),
        set_config('loader.started_at', found_cursor.started_at::text, true),
        set_config('loader.snapshot', found_cursor.snapshot::text, true),
        set_config(
            'loader.previous_snapshot',
            case when is_rebuild then '' else coalesce(found_cursor.previous::text, '') end,
            true
        ),
        -- Memory for grouping the ids of a first run, on each of a few connections.
        set_config('work_mem', greatest(pg_size_bytes(current_setting('work_mem')), 32 * 1024 * 1024) / 1024 || 'kB', true),
        -- An increment is small against the history: never read all of it, however old the statistics are.
        set_config('enable_seqscan', case when is_rebuild or found_cursor.previous is null then 'on' else 'off' end, true);

    return jsonb_build_object(
        'model', run_model,
        'source', run_source,
        'transform', run_transform,
        'is_first', found_cursor.is_first,
        'previous', coalesce(found_cursor.previous::text, ''),
        'snapshot', found_cursor.snapshot::text,
        'last_seq', found_cursor.last_seq,
        'rebuild_ordered', found_cursor.rebuild_ordered,
        'started_at', found_cursor.started_at::text
    );
end
$$;

comment on function raw.lock_cursor is 'Locks the cursor of a table for a run, sets what the select of the model reads, and returns the cursor.';


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
            or (select count(*) > 1 from pg_index where indrelid = pg_class.oid)
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


-- Makes the table of a model. Its key follows the first rows, because building the key at once takes a third of the time.
create function raw.make_table(run_model text, run_source text, declared jsonb, caller_search_path text) returns void
language plpgsql
set search_path = pg_catalog
as $$
declare
    target text := format('%I.%I', run_source, run_model);
begin
    if to_regnamespace(quote_ident(run_source)) is null then
        -- Two sessions creating one schema at once would fail, `if not exists` or not.
        perform pg_advisory_xact_lock(hashtext('create schema'));
        execute format('create schema if not exists %I', run_source);
        perform raw.admit_readers(run_source);
    end if;
    -- The key of a table foo is called foo_pkey. An event may have that name too, and then the key gets another name. No
    -- table ends in an underscore, so the new name is free.
    if (select relkind = 'i' from pg_class where oid = to_regclass(target)) then
        execute format('alter index %s rename to %I', target, left(run_model, 62) || '_');
    end if;
    -- A team may have given a column a type of its own.
    perform set_config('search_path', caller_search_path, true);
    execute (
        select format('create table %s (%s)', target, string_agg(
            format('%I %s', column_name, case column_name when 'id' then 'varchar(1024) not null' else data_type end),
            ', ' order by number
        ))
        from raw.read_declared(declared)
    );
end
$$;

comment on function raw.make_table is 'Makes the table of a model in the schema of a source, without its key.';


create function raw.add_key(target text) returns void
language plpgsql
set search_path = pg_catalog
as $$
begin
    execute format('alter table %s add primary key (id)', target);
end
$$;

comment on function raw.add_key is 'Makes the id the primary key of a served table, as in a Segment warehouse on PostgreSQL.';


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


-- Returns the condition for the events of a table that one snapshot shows and an earlier one does not, as the select of a
-- model has it. An empty text shows nothing.
create function raw.filter_new_events(run_model text, run_source text, previous text, latest text) returns text
language sql immutable
set search_path = pg_catalog
as $$
    select format(
        'collection %s and source = %L and (load_xid >= pg_snapshot_xmax(%3$L::pg_snapshot) '
        'or load_xid = any(array(select pg_snapshot_xip(%3$L::pg_snapshot)))) '
        'and pg_visible_in_snapshot(load_xid, %4$L::pg_snapshot)',
        case run_model when 'tracks' then 'is not null' else format('= %L', run_model) end,
        run_source,
        coalesce(nullif(previous, ''), '1:1:'),
        latest
    )
$$;

comment on function raw.filter_new_events is 'Returns the condition for the events of a table that one snapshot shows and an earlier one does not.';


-- Counts the new events of a table, and returns the part of the landing order that they span, and whether any two have
-- one id.
create function raw.count_new_events(
    run_model text, run_source text, previous text, latest text,
    out rows bigint, out first_seq bigint, out last_seq bigint, out repeated boolean
)
language plpgsql stable
set search_path = pg_catalog
as $$
begin
    execute format(
        $count$
            select
                coalesce(sum(ids.events), 0)::bigint,
                coalesce(min(ids.first_seq), 0),
                coalesce(max(ids.last_seq), 0),
                coalesce(bool_or(ids.events > 1), false)
            from (
                select count(*) as events, min(seq) as first_seq, max(seq) as last_seq
                from raw.events
                where %s
                group by message_id
            ) as ids
        $count$,
        raw.filter_new_events(run_model, run_source, previous, latest)
    )
    into rows, first_seq, last_seq, repeated;
end
$$;

comment on function raw.count_new_events is 'Counts the events of a table that one snapshot shows and an earlier one does not.';


create function raw.has_rows(target text) returns boolean
language plpgsql stable
set search_path = pg_catalog
as $$
declare
    has_any boolean := false;
begin
    if (select relkind in ('r', 'p') from pg_class where pg_class.oid = to_regclass(target)) then
        execute format('select exists (select from only %s)', target) into has_any;
    end if;
    return has_any;
end
$$;

comment on function raw.has_rows is 'Whether a table is there and has rows.';


-- Runs a statement on the rows of a served table. Where an object of another role refuses the rows, `in_the_way` names it.
-- Nearly all tables have no such object.
create function raw.write_table(
    run jsonb, statement text, caller_search_path text, out row_count bigint, out in_the_way text
)
language plpgsql
set search_path = pg_catalog
as $$
begin
    if (run ->> 'may_refuse_rows')::boolean then
        select written.row_count, written.in_the_way into row_count, in_the_way
        from raw.write_rows(
            to_regclass(format('%I.%I', run ->> 'source', run ->> 'model')),
            statement,
            caller_search_path,
            not (run ->> 'is_own_sql')::boolean
        ) as written;
        return;
    end if;
    execute statement;
    get diagnostics row_count = row_count;
    in_the_way := '';
end
$$;

comment on function raw.write_table is 'Runs a statement on the rows of a served table; returns how many, and what is in the way, or the empty string.';


-- Changes a table, and returns the obstacle, or the empty string. Nobody else sees a table that this run has made.
create function raw.apply_statements(run jsonb, statements jsonb, is_forced boolean) returns text
language plpgsql
set search_path = pg_catalog
as $$
declare
    joined text := (select string_agg(statement, '; ') from jsonb_array_elements_text(statements) as statement);
begin
    if joined is null then
        return '';
    elsif (run ->> 'is_created')::boolean then
        execute joined;
        return '';
    end if;
    return raw.change_table(
        run ->> 'model', run ->> 'source', format('%I.%I', run ->> 'source', run ->> 'model')::regclass, joined, is_forced
    );
end
$$;

comment on function raw.apply_statements is 'Changes a table of a run; returns what is in the way, or the empty string.';


-- Gives the columns of `raw.open_table` that are too narrow their wider types. Returns all of them as notes for raw.columns,
-- and the obstacles. A rebuild fills a widened column with all other columns.
create function raw.widen_columns(
    run jsonb, too_narrow jsonb, own_views text[], most_bytes bigint, is_forced boolean
) returns jsonb
language plpgsql
set search_path = pg_catalog
as $$
declare
    note jsonb;
    notes jsonb[] := '{}';
    obstacles text[] := '{}';
    reason text;
begin
    for note in select value from jsonb_array_elements(too_narrow) with ordinality as entry (value, number) order by number loop
        reason := raw.try_widening(
            run ->> 'model',
            run ->> 'source',
            format('%I.%I', run ->> 'source', run ->> 'model')::regclass,
            note ->> 'column_name',
            note ->> 'wanted_type',
            own_views,
            most_bytes,
            is_forced
        );
        if reason <> '' then
            note := note || jsonb_build_object('in_the_way', reason);
            obstacles := obstacles || raw.describe_narrow_column(note);
        else
            note := note || jsonb_build_object(
                'data_type', note -> 'wanted_type',
                'wanted_type', null,
                'fill_from', case when (run ->> 'is_rebuild')::boolean then '1:1:' end
            );
        end if;
        notes := notes || note;
    end loop;
    perform raw.record_columns(run ->> 'model', run ->> 'source', to_jsonb(notes));
    return jsonb_build_object('notes', to_jsonb(notes), 'obstacles', to_jsonb(obstacles));
end
$$;

comment on function raw.widen_columns is 'Gives columns of a table wider types without waiting long for a lock; returns what is in the way of others.';


create function raw.describe_narrow_column(note jsonb) returns text
language sql immutable
set search_path = pg_catalog
as $$
    select format(
        'column %s stays %s instead of %s. In the way: %s.',
        note ->> 'column_name', note ->> 'data_type', note ->> 'wanted_type', note ->> 'in_the_way'
    )
$$;

comment on function raw.describe_narrow_column is 'Says that a column keeps its type, and why.';


-- Records that an object of another role refuses the rows of widened columns. The caller has taken the change back.
-- Scheduled runs try to widen these columns again after five minutes. Returns the obstacles.
create function raw.refuse_widening(run jsonb, too_narrow jsonb, notes jsonb, reason text) returns jsonb
language plpgsql
set search_path = pg_catalog
as $$
declare
    kept jsonb := (
        select jsonb_agg(narrow || jsonb_build_object('in_the_way', coalesce(note ->> 'in_the_way', reason)))
        from jsonb_array_elements(too_narrow) as narrow
        inner join jsonb_array_elements(notes) as note on note ->> 'column_name' = narrow ->> 'column_name'
    );
begin
    perform raw.record_columns(run ->> 'model', run ->> 'source', kept);
    update raw.columns set next_try_at = clock_timestamp() + interval '5 min'
    where
        columns.model = run ->> 'model' and columns.source = run ->> 'source'
        and columns.column_name in (select note ->> 'column_name' from jsonb_array_elements(kept) as note);
    return (select jsonb_agg(raw.describe_narrow_column(note)) from jsonb_array_elements(kept) as note);
end
$$;

comment on function raw.refuse_widening is 'Records that an object of another role refuses the rows of widened columns.';


-- Returns the columns that were missing for a while, by the snapshot from which they lack values. A rebuild fills them.
create function raw.list_late_columns(run_model text, run_source text) returns jsonb
language sql stable
set search_path = pg_catalog
as $$
    select coalesce(jsonb_agg(jsonb_build_object('snapshot', late.snapshot, 'names', late.names)), '[]')
    from (
        select columns.fill_from::text as snapshot, jsonb_agg(columns.column_name) as names
        from raw.columns
        where
            columns.model = run_model and columns.source = run_source
            and columns.fill_from is not null and not columns.is_missing
        group by columns.fill_from::text
    ) as late
$$;

comment on function raw.list_late_columns is 'Returns the columns of a table that lack the values of some rows, by the snapshot from which.';


-- Removes the rows that lose against a latecomer, and returns how many. Of several events with one id the first one landed
-- counts, also when its transaction committed after a run had taken a later event. Only an event with a `seq` below the
-- last one read can be a latecomer. The latecomer is compared, by landing order, with the event that holds the id now. That
-- event came in with the run that `uuid_ts` names, or with any earlier run if that run has refilled columns. The row that
-- loses is removed, so that the following insert takes the latecomer.
create function raw.remove_overtaken(run jsonb, caller_search_path text, out row_count bigint, out in_the_way text)
language plpgsql
set search_path = pg_catalog
as $$
begin
    select written.row_count, written.in_the_way into row_count, in_the_way
    from raw.write_table(
        run,
        format(
            $removal$
                with late as materialized (
                    select message_id, min(seq) as seq
                    from raw.events
                    where %4$s and seq < %5$s
                    group by message_id
                ),

                contested as materialized (
                    select
                        late.message_id,
                        late.seq,
                        case when not syncs.refilled then pg_snapshot_xmin(syncs.previous_snapshot) end as held_since
                    from late
                    inner join %6$s as served on served.id = late.message_id
                    left join (select * from raw.syncs where model = %7$L and source = %2$L) as syncs
                        on syncs.started_at = served.uuid_ts
                    where late.seq < coalesce(syncs.last_seq, %5$s)
                ),

                holders as materialized (
                    select message_id, min(seq) as seq
                    from raw.events
                    where
                        collection %1$s
                        and source = %2$L
                        and message_id in (select message_id from contested)
                        and load_xid >= (
                            select case when bool_and(held_since is not null) then min(held_since) else '1' end from contested
                        )
                        and pg_visible_in_snapshot(load_xid, %3$L::pg_snapshot)
                    group by message_id
                ),

                overtaken as materialized (
                    select contested.message_id
                    from contested
                    inner join holders on holders.message_id = contested.message_id
                    where contested.seq < holders.seq
                ),

                forgotten as (
                    delete from raw.mismatches
                    where model = %7$L and source = %2$L and event_id in (select message_id from overtaken)
                )

                delete from only %6$s where id in (select message_id from overtaken)
            $removal$,
            case run ->> 'model' when 'tracks' then 'is not null' else format('= %L', run ->> 'model') end,
            run ->> 'source',
            run ->> 'previous',
            raw.filter_new_events(run ->> 'model', run ->> 'source', run ->> 'previous', run ->> 'snapshot'),
            run ->> 'last_seq',
            format('%I.%I', run ->> 'source', run ->> 'model'),
            run ->> 'model'
        ),
        caller_search_path
    ) as written;
end
$$;

comment on function raw.remove_overtaken is 'Removes the rows of a served table that an earlier landed event of their id overtakes.';


-- Moves the cursor past events that are not for this table: events of another source, or without a table. Otherwise every
-- run would read a growing range of such events. Where there are none, nothing is written.
create function raw.pass_by(run jsonb) returns void
language plpgsql
set search_path = pg_catalog
as $$
begin
    if run ->> 'snapshot' = run ->> 'previous' then
        return;
    end if;
    execute format(
        $move$
            update raw.cursors set snapshot = %1$L, updated_at = clock_timestamp()
            where
                model = %2$L and source = %3$L
                and exists (
                    select from raw.events
                    where
                        %4$s
                        and load_xid >= pg_snapshot_xmax(coalesce(nullif(%5$L, ''), '1:1:')::pg_snapshot)
                        and pg_visible_in_snapshot(load_xid, %1$L::pg_snapshot)
                )
        $move$,
        run ->> 'snapshot',
        run ->> 'model',
        run ->> 'source',
        case run ->> 'model' when 'tracks' then 'true' else format('collection = %L', run ->> 'model') end,
        run ->> 'previous'
    );
end
$$;

comment on function raw.pass_by is 'Moves the cursor of a table past events that are not for the table.';


-- Prepares a table for the rows of a run that `raw.open_table` calls `ready`: a rebuild removes the old rows, an increment
-- those that a latecomer overtakes. Readers see the old rows until the commit, which `truncate` would hide.
create function raw.start_rows(run jsonb, caller_search_path text) returns jsonb
language plpgsql
set search_path = pg_catalog
as $$
declare
    target text := format('%I.%I', run ->> 'source', run ->> 'model');
    is_rebuild boolean := (run ->> 'is_rebuild')::boolean;
    removed bigint := 0;
    overtaken bigint := 0;
    reason text := '';
begin
    perform raw.release_table(run ->> 'model', run ->> 'source', 'fill');
    if is_rebuild then
        delete from raw.mismatches
        where mismatches.model = run ->> 'model' and mismatches.source = run ->> 'source';
        select row_count, in_the_way into removed, reason
        from raw.write_table(run, format('delete from only %s', target), caller_search_path);
        if reason = '' and (run ->> 'may_refuse_rows')::boolean and raw.has_rows(target) then
            reason := 'a rule, a trigger or a policy: rows that were to be deleted are still there';
        end if;
    elsif
        (run ->> 'rows')::bigint > 0 and run ->> 'previous' <> ''
        and (run ->> 'first_seq')::bigint < (run ->> 'last_seq')::bigint
    then
        select row_count, in_the_way into overtaken, reason from raw.remove_overtaken(run, caller_search_path);
    end if;
    -- The insert of a team's own SQL needs the key to leave out repeated ids.
    if (run ->> 'is_created')::boolean and (run ->> 'is_own_sql')::boolean then
        perform raw.add_key(target);
    end if;
    return jsonb_build_object('removed', removed, 'overtaken', overtaken, 'in_the_way', reason);
end
$$;

comment on function raw.start_rows is 'Prepares a served table for the rows of a run; returns the rows removed, and what is in the way.';


-- Ends the run of a table after its rows: makes the key of a new table, moves the cursor and reports.
--
-- Args:
--     run: The run as `raw.open_table` returns it.
--     inserted: The number of rows that the run inserted.
--     overtaken: The number of rows that `raw.start_rows` removed for a latecomer.
--
-- Returns:
--     `in_the_way` and `warning`. Where something is in the way, the caller takes the rows back and holds the table.
create function raw.close_table(run jsonb, inserted bigint, overtaken bigint, caller_search_path text) returns jsonb
language plpgsql
set search_path = pg_catalog
as $$
declare
    target text := format('%I.%I', run ->> 'source', run ->> 'model');
    is_rebuild boolean := (run ->> 'is_rebuild')::boolean;
    is_own_sql boolean := (run ->> 'is_own_sql')::boolean;
    rows bigint := (run ->> 'rows')::bigint;
    added bigint := inserted - overtaken;
    events_read bigint;
    skipped bigint;
    warning text;
    reason text := '';
begin
    if (run ->> 'is_created')::boolean and not is_own_sql then
        perform raw.add_key(target);
    end if;
    if rows > 0 and is_own_sql then
        -- A team's own SQL need not make a row of every event.
        execute format(
            'delete from raw.mismatches
            where
                model = %L and source = %L and seen_at = now()
                and not exists (select from %s as served where served.id = event_id)',
            run ->> 'model', run ->> 'source', target
        );
    elsif rows > 0 and (run ->> 'may_refuse_rows')::boolean then
        skipped := raw.count_skipped(run);
        if skipped > 0 then
            warning := format(
                '%s.%s: a rule or a trigger on the table left out %s events.', run ->> 'source', run ->> 'model', skipped
            );
        end if;
    end if;
    if (run ->> 'may_refuse_rows')::boolean then
        -- Nothing could catch the error of a deferred constraint at the commit.
        select in_the_way into reason from raw.write_table(run, 'set constraints all immediate', caller_search_path);
        if reason <> '' then
            return jsonb_build_object('in_the_way', reason);
        end if;
    end if;
    if (run ->> 'has_pending')::boolean then
        -- Columns that are still missing after a rebuild lack all values.
        update raw.columns set fill_from = case when columns.is_missing then '1:1:'::pg_snapshot end
        where
            columns.model = run ->> 'model' and columns.source = run ->> 'source'
            and columns.fill_from is not null and (is_rebuild or not columns.is_missing);
    end if;

    if not (rows > 0 or is_rebuild or run -> 'new_columns' <> '[]' or (run ->> 'is_refilled')::boolean) then
        perform raw.pass_by(run);
        return jsonb_build_object('in_the_way', '');
    end if;
    -- A table without a snapshot that is not rebuilt has read all events again. It counts only those that were new to it.
    events_read := case when is_rebuild or run ->> 'previous' <> '' then rows else added end;
    update raw.cursors
    set
        snapshot = (run ->> 'snapshot')::pg_snapshot,
        read_rows = case when is_rebuild then 0 else cursors.read_rows end + events_read,
        table_rows = case when is_rebuild then 0 else cursors.table_rows end + added,
        last_seq = case
            when is_rebuild then (run ->> 'last_seq_read')::bigint
            else greatest(cursors.last_seq, (run ->> 'last_seq_read')::bigint)
        end,
        rebuild_ordered = cursors.rebuild_ordered and not is_rebuild,
        updated_at = clock_timestamp()
    where cursors.model = run ->> 'model' and cursors.source = run ->> 'source';
    insert into raw.syncs (
        transform_id, model, source, full_refresh, read_rows, table_rows, last_seq, new_columns, refilled,
        previous_snapshot, snapshot, started_at, duration, note
    )
    select
        run ->> 'transform', run ->> 'model', run ->> 'source', is_rebuild, events_read, added, cursors.last_seq,
        array(select jsonb_array_elements_text(run -> 'new_columns')),
        (run ->> 'is_refilled')::boolean or (run ->> 'has_pending')::boolean,
        case when not is_rebuild then nullif(run ->> 'previous', '')::pg_snapshot end,
        cursors.snapshot, (run ->> 'started_at')::timestamptz, clock_timestamp() - now(),
        nullif(concat_ws(' ', run ->> 'note', warning), '')
    from raw.cursors
    where cursors.model = run ->> 'model' and cursors.source = run ->> 'source'
    on conflict (transform_id, model, source) do update set
        read_rows = syncs.read_rows + excluded.read_rows,
        table_rows = syncs.table_rows + excluded.table_rows,
        refilled = syncs.refilled or excluded.refilled;
    if is_rebuild then
        perform raw.release_table(run ->> 'model', run ->> 'source', 'rebuild');
    end if;
    return jsonb_build_object('in_the_way', '', 'warning', warning);
end
$$;

comment on function raw.close_table is 'Ends the run of a table: makes its key, moves its cursor and writes the report.';


-- A rule or a trigger of another role may leave rows out without an error.
create function raw.count_skipped(run jsonb) returns bigint
language plpgsql stable
set search_path = pg_catalog
as $$
declare
    skipped bigint;
begin
    execute format(
        'select count(distinct message_id) from raw.events
        where %s and not exists (select from %s as served where served.id = message_id)',
        raw.filter_new_events(
            run ->> 'model',
            run ->> 'source',
            case when not (run ->> 'is_rebuild')::boolean then run ->> 'previous' end,
            run ->> 'snapshot'
        ),
        format('%I.%I', run ->> 'source', run ->> 'model')
    )
    into skipped;
    return skipped;
end
$$;

comment on function raw.count_skipped is 'Counts the new events of a table without a row in the table.';


create function raw.describe_unchanged(reason text) returns jsonb
language sql immutable
set search_path = pg_catalog
as $$
    select case reason
        when '' then '[]'
        else jsonb_build_array(format('columns could not be added or described. In the way: %s.', reason))
    end
$$;

comment on function raw.describe_unchanged is 'Returns the obstacle of a table whose columns could not be added or described, if any.';


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


create function raw.keep_obstacles(run_model text, run_source text, planned jsonb) returns jsonb
language sql stable
set search_path = pg_catalog
as $$
    select planned || jsonb_build_object(
        'notes', jsonb_agg(
            note || case
                when narrow.column_name is null then '{}'
                else jsonb_build_object('wanted_type', columns.wanted_type, 'in_the_way', columns.in_the_way)
            end
            order by number
        )
    )
    from jsonb_array_elements(planned -> 'notes') with ordinality as entry (note, number)
    left join jsonb_to_recordset(planned -> 'too_narrow') as narrow (column_name text)
        on narrow.column_name = note ->> 'column_name'
    left join raw.columns
        on columns.model = run_model and columns.source = run_source and columns.column_name = narrow.column_name
$$;

comment on function raw.keep_obstacles is 'Adds to the notes of columns that stay too narrow what `raw.widen_columns` has recorded of them.';


-- Begins a run of one table: locks the cursor, makes a missing table, and decides whether the run makes all rows again.
-- `state` is in the result only where the run ends here; see `raw.open_table`.
create function raw.begin_table(
    run_model text, run_source text, run_transform text, declared jsonb, options jsonb, caller_search_path text
) returns jsonb
language plpgsql
set search_path = pg_catalog
as $$
declare
    target text := format('%I.%I', run_source, run_model);
    is_full_refresh boolean := (options ->> 'full_refresh')::boolean;
    run jsonb := raw.lock_cursor(run_model, run_source, run_transform, is_full_refresh, options ->> 'lock_wait');
    is_first boolean := (run ->> 'is_first')::boolean;
    is_created boolean;
    is_rebuild boolean;
    note text;
    reason text := raw.find_obstacle(run_source, run_model);
begin
    if reason is null and is_first and not is_full_refresh and raw.has_rows(target) then
        -- The next run must find no cursor either. Otherwise it would count the rows as its own.
        delete from raw.cursors where cursors.model = run_model and cursors.source = run_source;
        reason := format(
            '%s.%s holds rows that did not come from raw.events. Move the table away, or run with --full-refresh to replace '
            'its rows.',
            run_source, run_model
        );
    end if;
    if reason is not null then
        perform raw.hold_table(run_model, run_source, 'fill', reason);
        return jsonb_build_object('state', 'held', 'reason', reason);
    end if;

    is_created := raw.describe_table(target) is null;
    if is_created then
        perform raw.make_table(run_model, run_source, declared, caller_search_path);
    end if;
    is_rebuild := is_full_refresh or is_created or (run ->> 'rebuild_ordered')::boolean or run ->> 'previous' = '';

    if is_rebuild and not is_created and not (options ->> 'empty')::boolean then
        reason := raw.lock_for_rows(
            run_model, run_source, target::regclass, is_full_refresh or (options ->> 'widening')::boolean
        );
        if reason <> '' then
            return raw.describe_lock(reason);
        end if;
    end if;
    if is_first or not is_rebuild or (options ->> 'empty')::boolean then
        -- A first run can lose no row, because none came from an event.
        null;
    elsif is_created then
        -- The table was dropped and has nothing to lose. It starts again from the first event.
        note := 'had been dropped and is made again. ' || raw.describe_loss(run_source, run_model);
    elsif (options ->> 'allow_loss')::boolean then
        note := 'was rebuilt, and rows were lost, as the command allowed. ' || raw.describe_loss(run_source, run_model);
    elsif not raw.order_rebuild(run_source, run_model) then
        if is_full_refresh then
            select held_tables.reason into reason
            from raw.held_tables
            where held_tables.model = run_model and held_tables.source = run_source and held_tables.held = 'rebuild';
            return jsonb_build_object('state', 'refused', 'reason', format('%s.%s: %s', run_source, run_model, reason));
        end if;
        is_rebuild := false;
    end if;
    if is_rebuild and not is_full_refresh and run ->> 'previous' <> '' then
        run := raw.lock_cursor(run_model, run_source, run_transform, true, options ->> 'lock_wait');
    end if;
    return run || jsonb_build_object(
        'is_created', is_created,
        'is_rebuild', is_rebuild,
        'is_own_sql', not (options ->> 'found_columns')::boolean,
        'note', format('%s.%s ', run_source, run_model) || note,
        'new_columns', case
            when is_created then (select jsonb_agg(column_name order by number) from raw.read_declared(declared))
            else '[]'
        end,
        'is_refilled', false
    );
end
$$;

comment on function raw.begin_table is 'Begins a run of one served table: locks its cursor, makes it, and decides whether all rows are made again.';


create function raw.describe_lock(reason text) returns jsonb
language sql immutable
set search_path = pg_catalog
as $$
    select jsonb_build_object(
        'state', 'done',
        'is_held', true,
        'obstacles', jsonb_build_array(format('no rows were added. In the way: %s.', reason))
    )
$$;

comment on function raw.describe_lock is 'Returns the state of a table that the run leaves because of a lock.';


-- Opens a run of one table of one source, as far as it goes without the SQL of the model. `state` of the result says how
-- the run goes on:
-- - `held`: the table stays as it is, because of `reason`.
-- - `refused`: a rebuild that was asked for would lose rows, as `reason` says. The table stays as it is.
-- - `done`: there is nothing to write.
-- - `changed`: columns were added. The caller commits, so that the lock ends before the rows, and calls again.
-- - `widen`: the columns in `too_narrow` want wider types, as `raw.widen_columns` gives them. The caller then calls again.
-- - `ready`: the caller writes the rows between `raw.start_rows` and `raw.close_table`.
--
-- Args:
--     declared: The columns of the model's yml: `name`, `data_type`, `description` and `meta` of each.
--     options: `full_refresh`, `empty`, `allow_loss`, `widening` (of the command), `found_columns`, `description`,
--         `relation_docs` and `column_docs` (of the model), `lock_wait`.
--     so_far: `run` of the call before, `is_changed` after a change, `is_widened` after a widening; null in the first call.
--     caller_search_path: The search path of the caller, by which a team's own types are found.
create function raw.open_table(
    run_model text, run_source text, run_transform text, declared jsonb, options jsonb, so_far jsonb, caller_search_path text
) returns jsonb
language plpgsql
set search_path = pg_catalog
as $$
declare
    target text := format('%I.%I', run_source, run_model);
    is_forced boolean := (options ->> 'full_refresh')::boolean or (options ->> 'widening')::boolean;
    run jsonb;
    described jsonb;
    places jsonb := '{"found": [], "others": {}, "unplaced": [], "fractions": []}';
    planned jsonb;
    previous text;
    events record;
    has_pending boolean := raw.has_pending_columns(run_model, run_source);
    reason text;
    obstacles text[] := '{}';
begin
    if so_far is null then
        run := raw.begin_table(run_model, run_source, run_transform, declared, options, caller_search_path);
        if run ? 'state' then
            return run;
        end if;
    else
        run := (so_far -> 'run') || raw.lock_cursor(
            run_model, run_source, run_transform, (so_far -> 'run' ->> 'is_rebuild')::boolean, options ->> 'lock_wait'
        );
    end if;
    described := raw.describe_table(target);
    run := run || jsonb_build_object('may_refuse_rows', described -> 'may_refuse_rows', 'has_pending', has_pending);
    if (options ->> 'empty')::boolean then
        planned := raw.plan_columns(run_model, run_source, declared, described, places, options);
        reason := raw.apply_statements(run, planned -> 'statements', is_forced);
        if (run ->> 'is_created')::boolean then
            -- The table lacks the events that its cursor has seen, so the cursor starts again from the first event.
            perform raw.add_key(target);
            update raw.cursors set snapshot = null where cursors.model = run_model and cursors.source = run_source;
        end if;
        return jsonb_build_object('state', 'done', 'obstacles', raw.describe_unchanged(reason));
    end if;

    previous := case when (run ->> 'is_rebuild')::boolean then '' else run ->> 'previous' end;
    select * into events from raw.count_new_events(run_model, run_source, previous, run ->> 'snapshot');
    run := run || jsonb_build_object(
        'rows', events.rows, 'first_seq', events.first_seq, 'last_seq_read', events.last_seq
    );
    if
        (options ->> 'found_columns')::boolean
        and (events.rows > 0 or has_pending or (run ->> 'is_created')::boolean or (options ->> 'widening')::boolean)
    then
        places := raw.place_properties(run_model, run_source, declared);
    end if;
    planned := raw.plan_columns(run_model, run_source, declared, described, places, options);

    -- The caller comes back after a change once; a change without effect must not bring it back for ever.
    if planned -> 'statements' <> '[]' and so_far ->> 'is_changed' is null then
        reason := raw.apply_statements(run, planned -> 'statements', is_forced);
        if reason = '' then
            run := run || jsonb_build_object('new_columns', (run -> 'new_columns') || (planned -> 'new_columns'));
            perform raw.record_columns(run_model, run_source, planned -> 'notes')
            where places -> 'found' <> '[]' or run -> 'new_columns' <> '[]';
            if not (run ->> 'is_created')::boolean then
                return jsonb_build_object('state', 'changed', 'run', run);
            end if;
        else
            planned := raw.leave_out_columns(planned, reason, coalesce(nullif(previous, ''), '1:1:'));
            obstacles := array(select jsonb_array_elements_text(raw.describe_unchanged(reason)));
        end if;
    end if;
    if planned -> 'too_narrow' <> '[]' then
        if so_far ->> 'is_widened' is null then
            return jsonb_build_object(
                'state', 'widen', 'run', run, 'too_narrow', planned -> 'too_narrow', 'fractions', places -> 'fractions'
            );
        end if;
        planned := raw.keep_obstacles(run_model, run_source, planned);
    end if;
    if places -> 'found' <> '[]' or places -> 'others' <> '{}' or planned -> 'new_columns' <> '[]' or run -> 'new_columns' <> '[]' then
        perform raw.record_columns(run_model, run_source, planned -> 'notes');
    end if;
    if planned -> 'unplaced' <> '[]' then
        perform raw.record_collisions(run_model, run_source, planned -> 'unplaced');
    end if;

    if not (events.rows > 0 or (run ->> 'is_rebuild')::boolean or has_pending) then
        perform raw.close_table(run, 0, 0, caller_search_path);
        return jsonb_build_object('state', 'done', 'obstacles', to_jsonb(obstacles));
    end if;
    if not (run ->> 'is_created')::boolean then
        reason := raw.lock_for_rows(run_model, run_source, target::regclass, is_forced);
        if reason <> '' then
            return raw.describe_lock(reason);
        end if;
    end if;
    return jsonb_build_object(
        'state', 'ready',
        'run', run,
        'repeated', events.repeated,
        'columns', (
            select coalesce(jsonb_agg(note order by number), '[]')
            from jsonb_array_elements(planned -> 'notes') with ordinality as entry (note, number)
            where note ->> 'is_missing' is null
        ),
        'fractions', places -> 'fractions',
        'late', case
            when has_pending and not (run ->> 'is_rebuild')::boolean then raw.list_late_columns(run_model, run_source)
            else '[]'
        end,
        'obstacles', to_jsonb(obstacles)
    );
end
$$;

comment on function raw.open_table is 'Opens a run of one served table, as far as it goes without the SQL of the model.';
