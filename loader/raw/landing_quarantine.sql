insert into raw.quarantine (
    source,
    entrance,
    reason,
    detail,
    payload,
    path,
    byte_offset,
    received_at,
    resolved_at,
    resolution
)
values (
    %(source)s,
    %(entrance)s,
    %(reason)s,
    %(detail)s,
    %(payload)s,
    %(path)s,
    %(offset)s,
    coalesce(%(received_at)s, now()),
    case when %(repaired)s then now() end,
    case when %(repaired)s then 'repaired' end
)
