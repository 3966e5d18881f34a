update raw.delivery_cursors
set
    position = %(new_position)s,
    delivered = delivered + %(delivered)s,
    filtered = filtered + %(filtered)s,
    repeated = repeated + %(repeated)s,
    dead = dead + %(dead)s,
    updated_at = clock_timestamp()
where
    destination_id = %(destination)s
    and source = %(source)s
    and replay = %(replay)s
    and to_snapshot::text = %(to_snapshot)s
    and position = %(position)s
