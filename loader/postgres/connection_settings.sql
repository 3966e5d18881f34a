-- A setting that the server does not know is left out, and one that has its value already is not set again.
select set_config(name, wanted, %(for_transaction)s)
from unnest(%(names)s::text[], %(values)s::text[]) as settings (name, wanted)
where current_setting(name, true) <> wanted
