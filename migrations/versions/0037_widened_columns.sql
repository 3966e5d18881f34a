-- How columns of a served table get wider types, or values that they lack.


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
            raw.target_name(run)::regclass,
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

comment on function raw.widen_columns is 'Gives columns of a table wider types without waiting long for a lock; returns the obstacles of others.';


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
