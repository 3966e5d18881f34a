-- What is noted of values that a table does not hold whole: times with more digits than PostgreSQL keeps, and properties
-- or a context that is no object.

alter table raw.collisions drop constraint collisions_reason_check;
alter table raw.collisions add constraint collisions_reason_check
check (reason in ('shared', 'layout', 'nameless', 'full', 'no_object'));

comment on column raw.collisions.reason is 'shared: another property has the column, and this one fills it where that one is null. layout: the column is one of the layout''s own. nameless: its name has no ASCII letter or digit. full: the table has as many columns as PostgreSQL allows. no_object: the context or the properties of an event are no object, and so have no columns.';
comment on table raw.mismatches is 'One row per value its column cannot hold (NULL in the table), or not with all its digits (rounded in the table): whole in raw.events.';
comment on column raw.events.payload is 'The call as jsonb: every value, but not its bytes. Keys are in an order of PostgreSQL''s own, and of two equal keys the last is kept.';
