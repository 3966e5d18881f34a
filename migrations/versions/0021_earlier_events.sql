-- Events that landed before raw.collections and raw.properties were kept have no record there: their properties would get
-- no columns, and nothing would say so. `loader rescan` records them, and asks for the tables to be made again.
alter table raw.generation add column rescan_wanted boolean not null default false;

comment on column raw.generation.rescan_wanted is 'Whether events had landed without a record when the raw schema was brought up; `loader rescan` records them.';

update raw.generation set rescan_wanted = exists(
    select from raw.events
    where
        events.collection is not null
        and not exists (
            select from raw.collections
            where
                collections.source = events.source
                and collections.collection = events.collection
                and collections.first_seen_at <= events.landed_at
        )
);

-- From now on, a thousand characters of a value are kept.
update raw.mismatches set value = left(value, 1000) || '…'
where length(value) > 1000;
