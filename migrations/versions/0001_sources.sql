-- Who may send events: a source feeds one schema, and any number of write keys name a source.

create table raw.sources (
    id bigint generated always as identity primary key,
    name text not null unique,
    schema_name text not null unique,
    labels jsonb not null default '{}',
    created_at timestamptz not null default now()
);

comment on table raw.sources is 'One row per source. Each has a schema of its own, which no other source may feed.';
comment on column raw.sources.schema_name is 'The schema of its tables, and how raw.events names the source.';

create table raw.write_keys (
    id bigint generated always as identity primary key,
    source_id bigint not null references raw.sources,
    key_sha256 bytea not null unique,
    label text not null default '',
    created_at timestamptz not null default now(),
    last_used_at timestamptz,
    revoked_at timestamptz
);

comment on table raw.write_keys is 'One row per write key. The key itself is shown once, when it is made, and never stored.';
comment on column raw.write_keys.key_sha256 is 'SHA-256 of the key.';
