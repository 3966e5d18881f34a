-- A declared column whose type is not the one that its yml declares, because a person changed the one or the other.


-- Compares the types of a table's declared columns with the yml. A full refresh makes all rows again, so it gives the columns
-- the types of the yml. Any other run leaves the types as they are.
--
-- Returns:
--     `warnings` for columns that hold the values of the declared type, and `error` where the run cannot go on, or null.
create function raw.change_types(
    run jsonb, declared jsonb, is_full_refresh boolean, caller_search_path text
) returns jsonb
language plpgsql
set search_path = pg_catalog
as $$
declare
    changed record;
    statements text[] := '{}';
    warnings text[] := '{}';
    errors text[] := '{}';
    sentence text;
    reason text;
begin
    -- A team may have given a column a type of its own.
    perform set_config('search_path', caller_search_path, true);
    for changed in
        select
            columns.column_name,
            format_type(pg_attribute.atttypid, pg_attribute.atttypmod) as present,
            case pg_type.typnamespace
                when 'pg_catalog'::regnamespace then columns.data_type
                else format('%I.%I', pg_type.typnamespace::regnamespace, pg_type.typname)
            end as wanted,
            held.typcategory = 'S' or (held.typname = 'numeric' and pg_type.typname in ('int2', 'int4', 'int8')) as holds_all
        from raw.read_declared(declared) as columns
        inner join pg_attribute
            on pg_attribute.attrelid = to_regclass(raw.target_name(run)) and pg_attribute.attname = columns.column_name
        inner join pg_type as held on held.oid = pg_attribute.atttypid
        inner join pg_type on pg_type.oid = to_regtype(columns.data_type)
        where columns.column_name <> 'id' and pg_type.oid <> pg_attribute.atttypid
        order by columns.number
    loop
        sentence := format(
            'Column %s has type %s, and the yml declares %s.', changed.column_name, changed.present, changed.wanted
        );
        statements := statements || format(
            'alter table %s alter column %I type %s using null', raw.target_name(run), changed.column_name, changed.wanted
        );
        if changed.holds_all then
            warnings := warnings || sentence;
        else
            errors := errors || sentence;
        end if;
    end loop;
    perform set_config('search_path', 'pg_catalog', true);
    if statements = '{}' then
        return '{"warnings": []}';
    end if;
    if is_full_refresh then
        reason := raw.change_table(
            run ->> 'model', run ->> 'source', raw.target_name(run)::regclass, array_to_string(statements, '; '), true
        );
        if reason = '' then
            return '{"warnings": []}';
        end if;
        return jsonb_build_object(
            'warnings', '[]'::jsonb,
            'error', format(
                '%s.%s: %s The columns could not be changed. In the way: %s.',
                run ->> 'source', run ->> 'model', array_to_string(warnings || errors, ' '), reason
            )
        );
    end if;
    return jsonb_build_object(
        'warnings', to_jsonb(warnings),
        'error', case
            when errors <> '{}' then format(
                '%s.%s: %s Set data_type back, or change the column by --full-refresh --select %s.',
                run ->> 'source', run ->> 'model', array_to_string(errors, ' '), run ->> 'model'
            )
        end
    );
end
$$;

comment on function raw.change_types is 'Compares the types of the declared columns of a table with the yml; a full refresh changes the columns.';
