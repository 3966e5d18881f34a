update raw.loads
set
    byte_offset = %(end)s,
    digest = %(digest)s,
    rows = rows + %(rows)s,
    quarantined = quarantined + %(quarantined)s,
    size = coalesce(%(size)s::bigint, size),
    content_digest = coalesce(%(content_digest)s::bytea, content_digest),
    finished_at = case when %(size)s::bigint is null then finished_at else now() end,
    updated_at = now()
where id = %(load)s and byte_offset = %(offset)s
