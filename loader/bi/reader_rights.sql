-- The rights of a role that a BI tool is to use. There is no row if the role does not exist.
select
    (
        select coalesce(bool_or(has_schema_privilege(roles.oid, schemas.oid, 'usage')), false)
        from pg_namespace as schemas
        where schemas.nspname = 'raw'
    ) as may_use_raw,
    (
        select array_agg(tables.relname)
        from pg_class as tables
        inner join pg_namespace as schemas on schemas.oid = tables.relnamespace
        where
            schemas.nspname = %(marts_schema)s
            and has_schema_privilege(roles.oid, schemas.oid, 'usage')
            and has_table_privilege(roles.oid, tables.oid, 'select')
    ) as readable
from pg_roles as roles
where roles.rolname = %(role)s
