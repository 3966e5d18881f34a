-- Lifts the time limits that a role or a database sets, for one transaction: an upgrade takes its
-- time. PostgreSQL 16 has no transaction_timeout.
set local statement_timeout = 0;
set local idle_in_transaction_session_timeout = 0;
select set_config('transaction_timeout', '0', true)
where current_setting('transaction_timeout', true) is not null
