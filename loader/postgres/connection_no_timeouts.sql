-- Removes the time limits of a role or a database for one transaction, because an upgrade may exceed them.
-- PostgreSQL 16 has no transaction_timeout.
set local statement_timeout = 0;
set local idle_in_transaction_session_timeout = 0;
select set_config('transaction_timeout', '0', true)
where current_setting('transaction_timeout', true) is not null
