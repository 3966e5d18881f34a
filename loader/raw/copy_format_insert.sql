insert into raw.events (source, collection, received_at, message_id, payload)
select
    unnest($1::text[]),
    unnest($2::text[]),
    unnest($3::timestamptz[]),
    unnest($4::text[]),
    unnest($5::jsonb[])
