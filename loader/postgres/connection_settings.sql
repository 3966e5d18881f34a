-- Settings that the server does not know are left out, and so are settings that have the value already.
select set_config(name, wanted, %(for_transaction)s)
from unnest(%(names)s::text[], %(values)s::text[]) as settings (name, wanted)
where current_setting(name, true) <> wanted
