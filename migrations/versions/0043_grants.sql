-- Roles that a model's config grants rights on a table also need the right to use the schema of the table.


-- Changes only what is missing, so that runs may call it often.
create function raw.admit_grantees(table_schema text, grantees text[]) returns void
language plpgsql
set search_path = pg_catalog
as $$
declare
    grantee_name text;
begin
    foreach grantee_name in array grantees loop
        if not exists (
            select from pg_namespace
            cross join aclexplode(pg_namespace.nspacl) as entry
            where
                pg_namespace.oid = to_regnamespace(quote_ident(table_schema))
                and entry.grantee = case lower(grantee_name) when 'public' then 0 else to_regrole(grantee_name) end
                and entry.privilege_type = 'USAGE'
        ) then
            -- Two sessions that grant on one schema at once would fail.
            perform pg_advisory_xact_lock(hashtext('create schema'));
            execute format('grant usage on schema %I to %s', table_schema, grantee_name);
        end if;
    end loop;
end
$$;

comment on function raw.admit_grantees is 'Lets roles use the schema of a table that they may read; the names are written as in a grant.';
