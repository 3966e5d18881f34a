-- Landing queues behind a session that waits for this function's lock on raw.events. After a second the command fails, and
-- the next one tries again.
alter function raw.adopt_cluster() set lock_timeout = '1s';
