-- What policies and ceilings in shadow mode would have refused. Information only: nothing depends on it.
create table shadow (
    kind text not null,
    name text not null,
    reason text not null,
    client text not null,
    app_group text not null,
    count integer not null,
    last_ms integer not null,
    primary key (kind, name, reason, client, app_group)
) strict;

create index shadow_last on shadow (last_ms);
