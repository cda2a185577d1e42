-- Runs of the canary: when the fleet began the last one and when one last succeeded, and where each replica was last seen to
-- refuse its key. Information only: nothing depends on it.
create table canary (
    id bigint primary key check (id = 1),
    started_ms bigint not null,
    succeeded_ms bigint not null
);

insert into canary (id, started_ms, succeeded_ms) values (1, floor(extract(epoch from now()) * 1000)::bigint, 0);

create table canary_refusal (
    replica text collate "C" primary key,
    revision bigint not null
);
