-- What policies and ceilings in shadow mode would have refused. Information only: nothing depends on it.
create table shadow (
    kind text collate "C" not null,
    name text collate "C" not null,
    reason text collate "C" not null,
    client text collate "C" not null,
    app_group text collate "C" not null,
    count bigint not null,
    last_ms bigint not null,
    primary key (kind, name, reason, client, app_group)
);

create index shadow_last on shadow (last_ms);
