-- The sealed vault. Without the root key nothing here can be read or forged; docs/adr/ says why each table is as it is.

-- How the vault is unsealed, and the sealed keyring: one row once initialised.
create table seal (
    id integer primary key check (id = 1),
    vault text not null,
    generation integer not null,
    method text not null,
    keyring blob not null
) strict;

-- The newest revision and its chain value: one row. Every commit of audit rows compares with it: the fence.
create table control_head (
    id integer primary key check (id = 1),
    revision integer not null,
    chain blob not null
) strict;

-- The control plane as an append-only log of sealed records.
create table control_log (
    revision integer primary key,
    checkpoint integer not null,
    previous blob not null,
    sealed blob not null
) strict;

create index control_log_checkpoint on control_log (revision) where checkpoint = 1;

-- Apple's keys, each sealed under a data key of its own.
create table sealed_keys (
    key_id text primary key,
    imported integer not null,
    sealed blob not null
) strict;

-- The end of each writer's chain of audit rows.
create table audit_writer (
    writer text primary key,
    sequence integer not null,
    chain blob not null,
    revision integer not null,
    key_version integer not null,
    tag blob not null
) strict;

-- What happened. Times: `at_ms` in Unix milliseconds, `issued_at` and `expires_at` in Unix seconds.
create table audit (
    writer text not null,
    sequence integer not null check (sequence > 0),
    at_ms integer not null,
    event text not null,
    outcome text not null,
    reason text not null,
    decision_id text not null,
    caller text not null,
    identity text not null,
    detail text not null,
    policy text,
    key_id text,
    app_group text,
    role text,
    scope text,
    token_id text,
    issued_at integer,
    expires_at integer,
    revision integer not null,
    key_version integer not null,
    chain blob not null,
    primary key (writer, sequence)
) strict, without rowid;

-- Live tokens, for exposure: a token is one signed row, however often it was handed out.
create index audit_live on audit (expires_at) where outcome = 'SIGNED';

-- Listing and pruning by time.
create index audit_at on audit (at_ms);
