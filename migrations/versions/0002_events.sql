-- Every accepted event, untouched and for good. One partition per documented collection, so that a model reads its own
-- events and no others, and a rebuild reads each event twice (its collection, tracks) instead of once per model.
--
-- No unique key: it would cost a fifth of the landing speed, and the tables' own primary keys do the work.

create table raw.events (
    load_xid xid8 not null default pg_current_xact_id(),
    seq bigint generated always as identity (cache 1),
    landed_at timestamptz not null default now(),
    received_at timestamptz not null default now(),
    source text not null,
    collection text,
    message_id varchar(100) not null,
    payload jsonb not null check (jsonb_typeof(payload) = 'object')
) partition by list (collection);

create index events_load_xid on raw.events (load_xid);

comment on table raw.events is 'One row per accepted event, as it came. Append-only: every table can be rebuilt from it.';
comment on column raw.events.load_xid is 'The transaction that landed it; what a run has seen is a snapshot of transactions.';
comment on column raw.events.seq is 'Landing order: of several events with one id, the lowest is the one that counts.';
comment on column raw.events.landed_at is 'When it was written here.';
comment on column raw.events.received_at is 'When a server first received it: for Segment''s raw logs, their own receivedAt.';
comment on column raw.events.source is 'The schema name of its source.';
comment on column raw.events.collection is 'The table it belongs to; empty when its name gives none, null when it is not a track call.';
comment on column raw.events.message_id is 'Its id in every table; Segment''s own limit of characters keeps it within an index entry.';
comment on column raw.events.payload is 'The call, whole.';

create table raw.events_email_bounced partition of raw.events for values in ('email_bounced');
create table raw.events_email_delivered partition of raw.events for values in ('email_delivered');
create table raw.events_email_link_clicked partition of raw.events for values in ('email_link_clicked');
create table raw.events_email_marked_as_spam partition of raw.events for values in ('email_marked_as_spam');
create table raw.events_email_opened partition of raw.events for values in ('email_opened');
create table raw.events_email_send_skip partition of raw.events for values in ('email_send_skip');
create table raw.events_hosted_unsubscribe_click partition of raw.events for values in ('hosted_unsubscribe_click');
create table raw.events_in_app_clicked partition of raw.events for values in ('in_app_clicked');
create table raw.events_in_app_delivered partition of raw.events for values in ('in_app_delivered');
create table raw.events_in_app_opened partition of raw.events for values in ('in_app_opened');
create table raw.events_in_app_send_skip partition of raw.events for values in ('in_app_send_skip');
create table raw.events_in_app_sent partition of raw.events for values in ('in_app_sent');
create table raw.events_mobile_app_uninstalled partition of raw.events for values in ('mobile_app_uninstalled');
create table raw.events_push_bounced partition of raw.events for values in ('push_bounced');
create table raw.events_push_delivered partition of raw.events for values in ('push_delivered');
create table raw.events_push_opened partition of raw.events for values in ('push_opened');
create table raw.events_push_send_skip partition of raw.events for values in ('push_send_skip');
create table raw.events_sms_bounced partition of raw.events for values in ('sms_bounced');
create table raw.events_sms_clicked partition of raw.events for values in ('sms_clicked');
create table raw.events_sms_delivered partition of raw.events for values in ('sms_delivered');
create table raw.events_sms_received partition of raw.events for values in ('sms_received');
create table raw.events_sms_send_skip partition of raw.events for values in ('sms_send_skip');
create table raw.events_subscribed partition of raw.events for values in ('subscribed');
create table raw.events_unsubscribed partition of raw.events for values in ('unsubscribed');
create table raw.events_web_push_clicked partition of raw.events for values in ('web_push_clicked');
create table raw.events_web_push_delivered partition of raw.events for values in ('web_push_delivered');
create table raw.events_web_push_send_skip partition of raw.events for values in ('web_push_send_skip');
create table raw.events_other partition of raw.events default;
