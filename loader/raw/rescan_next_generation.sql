-- Other sources may still have events without a record.
update raw.generation
set
    number = number + 1,
    rescan_wanted = rescan_wanted and exists (
        select from raw.sources
        where schema_name <> all(%(sources)s)
    )
