select
    write_keys.id,
    encode(write_keys.key_sha256, 'hex'),
    sources.schema_name
from raw.write_keys
inner join raw.sources on sources.id = write_keys.source_id
where write_keys.revoked_at is null
