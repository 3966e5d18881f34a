-- A run that widens columns reads their values again for the rows that are there, and sets uuid_ts on the rows it changes.

alter table raw.syncs add column refilled boolean not null default false;

comment on column raw.syncs.refilled is 'It has read widened columns again: rows with its started_at as their uuid_ts may have come with any run before.';
comment on column raw.syncs.started_at is 'The invocation''s, and the uuid_ts of the rows added or changed.';
comment on column raw.transforms.started_at is 'Also the uuid_ts of every row the invocation adds or changes.';
