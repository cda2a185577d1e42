-- Runs of the canary: when the fleet began the last one and when one last succeeded, and where each replica was last seen to
-- refuse its key. Information only: nothing depends on it.
create table canary (
    id integer primary key check (id = 1),
    started_ms integer not null,
    succeeded_ms integer not null
) strict;

insert into canary (id, started_ms, succeeded_ms) values (1, cast(unixepoch('subsec') * 1000 as integer), 0);

create table canary_refusal (
    replica text primary key,
    revision integer not null
) strict;
