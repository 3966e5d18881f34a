insert into raw.dead_letters (
    destination_id, source, replay, seq, load_xid, message_id, status, reason, answer, next_try_at
)
values (
    %(destination)s,
    %(source)s,
    %(replay)s,
    %(seq)s,
    %(load_xid)s::xid8,
    %(message_id)s,
    %(status)s,
    %(reason)s,
    %(answer)s,
    clock_timestamp() + make_interval(secs => %(retry_seconds)s)
)
on conflict (destination_id, source, seq) do update set
    attempts = dead_letters.attempts + 1,
    status = excluded.status,
    reason = excluded.reason,
    answer = excluded.answer,
    last_tried_at = clock_timestamp(),
    next_try_at = excluded.next_try_at
