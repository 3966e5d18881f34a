-- A call that another instance of this product has forwarded has the mark `via`. Its `timestamp` is corrected by the sender's
-- clock already, and its `originalTimestamp` is not.
create or replace function raw.read_call_time(payload jsonb, received_at timestamptz) returns timestamptz
language sql stable
set search_path = pg_catalog
as $$
    select case
        when times.corrected is not null and times.received_at = read_call_time.received_at then times.corrected
        when times.original is null then read_call_time.received_at
        when times.sent_at - times.original between interval '-4000 years' and interval '4000 years'
            then read_call_time.received_at - (times.sent_at - times.original)
        else times.original
    end
    from (
        select
            payload ->> 'timestamp' as given,
            payload ->> 'originalTimestamp' as original,
            payload ->> 'sentAt' as sent_at,
            payload ->> 'receivedAt' as received_at,
            payload -> 'context' ? 'via' as is_forwarded
    ) as texts
    cross join lateral (
        select case
            when texts.original is null or texts.is_forwarded then coalesce(texts.given, texts.original)
            else texts.original
        end as original
    ) as sender
    cross join lateral (
        select
            coalesce(raw.to_time(texts.sent_at), raw.read_time(texts.sent_at)) as sent_at,
            coalesce(raw.to_time(sender.original), raw.read_time(sender.original)) as original,
            case
                when texts.original is not null
                    then coalesce(raw.to_time(texts.given), raw.read_time(texts.given))
            end as corrected,
            case
                when texts.original is not null
                    then coalesce(raw.to_time(texts.received_at), raw.read_time(texts.received_at))
            end as received_at
    ) as times
$$;


-- A time as calls have it. PostgreSQL inlines the function, because it has no setting.
create function raw.write_time(moment timestamptz) returns text
language sql stable
return case
    when moment between '0001-01-01' and '9999-12-31'
        then to_char(moment at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
end;

comment on function raw.write_time is 'A time in ISO 8601, in UTC; null outside the calendar of four-digit years.';
