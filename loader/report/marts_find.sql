-- The schemas with marts that the role may read. A mart of messages alone is not enough, because a schema with this
-- ending may be a person's own.
select left(nspname, -6) as source_schema
from pg_namespace
where
    nspname like '%\_marts'
    and has_schema_privilege(oid, 'usage')
    and (
        select count(*)
        from pg_class
        where
            pg_class.relnamespace = pg_namespace.oid
            and pg_class.relname in ('messages', 'channel_daily', 'campaign_performance', 'attributions')
            and has_table_privilege(pg_class.oid, 'select')
    ) = 4
order by nspname
