-- Tables with work to do without new events: tables of a new source, dropped tables, tables to rebuild after
-- `loader rescan`, held tables that are due again, and new tables that had to wait for the next hour.
select
    model,
    source
from raw.cursors
where snapshot is null or rebuild_ordered or to_regclass(format('%%I.%%I', source, model)) is null
union
select
    model,
    source
from raw.held_tables
where next_try_at <= clock_timestamp()
union
select
    'tracks',
    sources.schema_name
from raw.sources
where
    not exists (
        select from raw.cursors
        where cursors.source = sources.schema_name and cursors.model = 'tracks'
    )
union
select
    collection,
    sources.schema_name
from raw.sources
cross join raw.collections_due(sources.schema_name, '{}', %(tables)s, %(new_tables)s) as collection
