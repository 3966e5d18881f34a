update raw.delivery_cursors
set
    from_snapshot = to_snapshot,
    to_snapshot = null,
    position = 0,
    finished_at = case when to_snapshot::text = end_snapshot::text then clock_timestamp() end,
    updated_at = clock_timestamp()
where
    destination_id = %(destination)s
    and source = %(source)s
    and replay = %(replay)s
    and to_snapshot::text = %(to_snapshot)s
    and position = %(position)s
