-- The bootstrap role of a cluster is always a superuser, and PostgreSQL cannot reassign all of its objects. So the
-- bootstrap role gets another name. A new role takes the old name, the password, the settings and the memberships. A
-- session cannot rename its own role, so a third role renames it. One statement is one transaction. A second run changes
-- only the secret.
do $$
declare
    item record;
begin
    if (select rolname from pg_roles where oid = 10) = 'loader' then
        create role loader_mover superuser;
        set session authorization loader_mover;
        alter role loader rename to loader_keeper;
        execute format(
            'create role loader login createrole password %L', (select rolpassword from pg_authid where oid = 10)
        );
        update pg_db_role_setting set setrole = 'loader'::regrole where setrole = 10;
        -- Every role is the loader's, as the roles that it creates itself are.
        for item in select rolname from pg_roles where not rolsuper and oid >= 16384 and rolname <> 'loader' loop
            execute format('grant %I to loader with admin true, inherit true, set true', item.rolname);
        end loop;
        for item in
            select roleid::regrole as name from pg_auth_members where member = 10 and roleid < 16384 and roleid <> 10
        loop
            execute format('grant %s to loader', item.name);
        end loop;
        set session authorization loader_keeper;
        drop role loader_mover;
    end if;
    alter role loader set createrole_self_grant = 'set, inherit';
    alter role loader_keeper password '{secret}';
end
$$
