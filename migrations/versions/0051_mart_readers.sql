-- Rights on the schema of a source reach the schema of its marts.
create or replace function raw.admit_readers(schema_name text) returns void
language plpgsql
set search_path = pg_catalog
as $$
declare
    place text;
    reader record;
    maker text;
    relation regclass;
    path text;
begin
    foreach place in array array[schema_name, schema_name || '_marts'] loop
        continue when to_regnamespace(quote_ident(place)) is null;
        for reader in
            select distinct pg_roles.oid, pg_roles.rolname as name
            from raw.sources
            inner join raw.readers on readers.source in ('', sources.schema_name)
            inner join pg_roles on pg_roles.rolname = readers.name
            where sources.schema_name = admit_readers.schema_name
        loop
            if not exists (
                select from pg_namespace
                cross join aclexplode(pg_namespace.nspacl) as entry
                where
                    pg_namespace.oid = to_regnamespace(quote_ident(place))
                    and entry.grantee = reader.oid
                    and entry.privilege_type = 'USAGE'
            ) then
                -- The lock of a session that creates a schema: two sessions that grant on one schema at once would fail.
                perform pg_advisory_xact_lock(hashtext('create schema'));
                execute format('grant usage on schema %I to %I', place, reader.name);
                for maker in
                    select pg_roles.rolname
                    from pg_roles
                    where
                        pg_has_role(pg_roles.oid, 'usage')
                        and (
                            pg_roles.oid = (select nspowner from pg_namespace where nspname = 'raw')
                            or (pg_roles.rolname = current_user and not pg_roles.rolsuper)
                        )
                loop
                    execute format(
                        'alter default privileges for role %I in schema %I grant select on tables to %I',
                        maker, place, reader.name
                    );
                end loop;
                select string_agg(quote_ident(visible.name), ', ' order by visible.is_marts, visible.id) into path
                from (
                    select sources.id, sources.schema_name as name, false as is_marts
                    from raw.sources
                    union all
                    select sources.id, sources.schema_name || '_marts', true
                    from raw.sources
                    where to_regnamespace(quote_ident(sources.schema_name || '_marts')) is not null
                ) as visible
                inner join raw.sources on sources.id = visible.id
                where exists (
                    select from raw.readers
                    where readers.name = reader.name and readers.source in ('', sources.schema_name)
                );
                begin
                    execute format(
                        'alter role %I in database %I set search_path = %s', reader.name, current_database(), path
                    );
                exception when insufficient_privilege then
                    raise notice 'The search path of % stays as it is.', reader.name;
                end;
            end if;

            for relation in
                select pg_class.oid
                from pg_class
                where
                    pg_class.relnamespace = to_regnamespace(quote_ident(place))
                    and pg_class.relkind in ('r', 'p', 'v', 'm')
                    and pg_has_role(pg_class.relowner, 'usage')
                    and not has_table_privilege(reader.oid, pg_class.oid, 'select')
            loop
                execute format('grant select on %s to %I', relation, reader.name);
            end loop;
        end loop;
    end loop;
end
$$;
