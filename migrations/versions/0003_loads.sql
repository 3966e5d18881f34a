-- Files on their way in, and what of them was refused. Both are written in the transaction of the rows they speak of.

create table raw.loads (
    id bigint generated always as identity primary key,
    source text not null,
    path text not null,
    head bytea not null,
    byte_offset bigint not null default 0,
    digest bytea not null,
    size bigint,
    content_digest bytea,
    rows bigint not null default 0,
    quarantined bigint not null default 0,
    started_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    finished_at timestamptz
);

create index loads_head on raw.loads (source, head);

comment on table raw.loads is 'One row per file loaded. Offsets count bytes of the decompressed file.';
comment on column raw.loads.head is 'SHA-256 of the file''s first bytes: which loads may be of the same file, whatever its name.';
comment on column raw.loads.byte_offset is 'Everything before it has landed or is in quarantine; a load resumes here.';
comment on column raw.loads.digest is 'SHA-256 of everything before byte_offset: a file is the same only if this still holds.';
comment on column raw.loads.size is 'Bytes of the whole file, a last line without a newline included; null until the load has finished.';
comment on column raw.loads.content_digest is 'SHA-256 of the whole file; null until the load has finished.';

create table raw.quarantine (
    id bigint generated always as identity primary key,
    source text not null,
    entrance text not null,
    reason text not null,
    detail text not null,
    payload bytea not null,
    path text,
    byte_offset bigint,
    received_at timestamptz not null default now(),
    resolved_at timestamptz,
    resolution text check (resolution in ('repaired', 'retried', 'replaced')),
    check ((resolved_at is null) = (resolution is null))
);

create index quarantine_open on raw.quarantine (source, reason) where resolved_at is null;

comment on table raw.quarantine is 'One row per refused message, with its original bytes.';
comment on column raw.quarantine.entrance is 'Where it came in: file.';
comment on column raw.quarantine.resolution is 'repaired: it landed at once, with characters replaced that PostgreSQL cannot hold. retried, replaced: it landed later, as it was or corrected.';
