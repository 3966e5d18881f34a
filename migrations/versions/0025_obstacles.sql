-- What keeps a run from making or filling one table. The run asks before it touches the table, since an error would end
-- the run of all the others.
create function raw.find_obstacle(schema_name text, table_name text) returns text
language plpgsql stable
set search_path = pg_catalog
as $$
declare
    namespace oid := (select oid from pg_namespace where nspname = schema_name);
    found record;
    whole text := format('%I.%I', schema_name, table_name);
begin
    if namespace is null then
        if has_database_privilege(current_database(), 'create') then
            return null;
        end if;
        return format(
            'schema %I is not there, and role %I may not create it. Let the owner of the database run: create schema %I authorization %I',
            schema_name, current_user, schema_name, current_user
        );
    end if;

    select pg_class.oid, relkind into found from pg_class where relnamespace = namespace and relname = table_name;
    if found.relkind in ('r', 'p') then
        if
            has_schema_privilege(namespace, 'usage')
            and has_table_privilege(found.oid, 'select')
            and has_table_privilege(found.oid, 'insert')
            and has_table_privilege(found.oid, 'update')
            and has_table_privilege(found.oid, 'delete')
        then
            return null;
        end if;
        return format(
            'role %I may not write to %s. Let the owner run: grant usage on schema %I to %I; grant select, insert, update, delete on %s to %I',
            current_user, whole, schema_name, current_user, whole, current_user
        );
    end if;
    if not (has_schema_privilege(namespace, 'usage') and has_schema_privilege(namespace, 'create')) then
        return format(
            'role %I may not create tables in schema %I. Let the owner run: grant usage, create on schema %I to %I',
            current_user, schema_name, schema_name, current_user
        );
    end if;
    -- An index gives way.
    if found.relkind <> 'i' then
        return format(
            '%s is a %s, and no table. Rename or drop it, and the next run makes the table',
            whole,
            case found.relkind
                when 'v' then 'view'
                when 'm' then 'materialized view'
                when 'S' then 'sequence'
                when 'f' then 'foreign table'
                when 'c' then 'composite type'
                else 'relation of another kind'
            end
        );
    end if;
    -- Array types give way to a table's name, other types do not.
    if exists (
        select from pg_type
        where typnamespace = namespace and typname = table_name and typrelid = 0 and typcategory <> 'A'
    ) then
        return format('%s is a type, and no table. Rename or drop it, and the next run makes the table', whole);
    end if;
    return null;
end
$$;

comment on function raw.find_obstacle is 'What keeps the current role from making or filling a served table, and what to do; null when nothing does.';
