update raw.dead_letters
set
    attempts = attempts + 1,
    status = %(status)s,
    reason = %(reason)s,
    answer = %(answer)s,
    last_tried_at = clock_timestamp(),
    next_try_at = clock_timestamp() + make_interval(secs => %(retry_seconds)s)
where id = %(id)s
