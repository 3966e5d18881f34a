-- What the events are made of: which collections there are, and which properties their events have. Kept by the loader
-- in the transaction of the rows, so that a run adds tables and columns without ever scanning for them. Can be made
-- again from raw.events (`loader rescan`).

create table raw.collections (
    source text not null,
    collection text not null,
    event text not null,
    number bigint generated always as identity,
    first_event_id text not null,
    first_seen_at timestamptz not null default now(),
    untracked boolean not null default false,
    primary key (source, collection)
);

comment on table raw.collections is 'One row per collection seen, with or without a model; the empty collection holds the events that have no table.';
comment on column raw.collections.event is 'The name of the first such event, as it came.';
comment on column raw.collections.number is 'The order in which they were seen.';
comment on column raw.collections.untracked is 'Its events have had more properties than the loader keeps track of; the rest is in raw.events only.';

create table raw.properties (
    source text not null,
    collection text not null,
    path text[] not null,
    digest bytea not null,
    column_name text not null,
    types text[] not null,
    number bigint generated always as identity,
    first_event_id text not null,
    first_seen_at timestamptz not null default now(),
    primary key (source, collection, digest)
);

comment on table raw.properties is 'One row per property or context value that has ever been anything but null or an object.';
comment on column raw.properties.path is 'The keys that lead to it, the first being properties or context.';
comment on column raw.properties.digest is 'SHA-256 of the path: keys may be longer than an index entry.';
comment on column raw.properties.column_name is 'Its column by the rules of the layout; empty when its name gives none.';
comment on column raw.properties.types is 'The types its values have had, each the narrowest that holds the value.';
comment on column raw.properties.number is 'The order in which they were seen.';

-- Events without a model share a partition; their tables, one per collection, must not each read all of it. Partial, or
-- tracks, which reads all collections, would be tempted to go through the whole index.
create index events_other_collection on raw.events_other (collection, load_xid) where collection <> '';
