-- How fast a source gets tables of its own for events without a model. One write key could take all of them in seconds.

alter table raw.collections add column admitted_at timestamptz;

comment on column raw.collections.admitted_at is 'When a run gave the collection a table of its own; null while its events are in tracks only, and for collections with a model.';

-- The collections of a source that may get a table now, in the order in which they were seen.
create function raw.collections_due(for_source text, modelled text[], most integer, hourly integer) returns setof text
language sql stable
as $$
    with admitted as (
        select
            count(*) as tables,
            count(*) filter (where admitted_at > clock_timestamp() - interval '1 hour') as new_tables
        from raw.collections
        where source = for_source and admitted_at is not null and collection <> all(modelled)
    )

    select collections.collection
    from raw.collections
    where
        collections.source = for_source
        and collections.admitted_at is null
        and collections.collection <> ''
        and collections.collection <> all(modelled)
        and not exists (
            select from raw.cursors where cursors.source = for_source and cursors.model = collections.collection
        )
    order by collections.number
    limit (select greatest(least(most - tables, hourly - new_tables), 0) from admitted)
$$;

comment on function raw.collections_due is 'The collections without a model that may get a table of their own now: so many in all, and so many an hour.';

create function raw.admit_collections(for_source text, modelled text[], most integer, hourly integer) returns void
language plpgsql
as $$
begin
    -- Two runs at once would each admit as many as one may.
    perform from raw.sources where schema_name = for_source for no key update;

    -- Tables that are there already, of versions before this one too.
    update raw.collections
    set admitted_at = first_seen_at
    where
        source = for_source
        and admitted_at is null
        and collection <> all(modelled)
        and exists (select from raw.cursors where cursors.source = for_source and cursors.model = collections.collection);

    update raw.collections
    set admitted_at = clock_timestamp()
    where source = for_source and collection in (select raw.collections_due(for_source, modelled, most, hourly));
end
$$;

comment on function raw.admit_collections is 'Gives the collections that may get a table of their own now the right to it.';
