-- The sealed vault. Without the root key nothing here can be read or forged; docs/adr/ says why each table is as it is.
-- Texts are compared byte by byte, as SQLite does: pages of a listing go on where the one before ended on either engine.

-- How the vault is unsealed, and the sealed keyring: one row once initialised.
create table seal (
    id bigint primary key check (id = 1),
    vault text collate "C" not null,
    generation bigint not null,
    method text collate "C" not null,
    keyring bytea not null
);

-- The newest revision and its chain value: one row. Every commit of audit rows compares with it: the fence.
create table control_head (
    id bigint primary key check (id = 1),
    revision bigint not null,
    chain bytea not null
);

-- The control plane as an append-only log of sealed records.
create table control_log (
    revision bigint primary key,
    checkpoint bigint not null,
    previous bytea not null,
    sealed bytea not null
);

create index control_log_checkpoint on control_log (revision) where checkpoint = 1;

-- Apple's keys, each sealed under a data key of its own.
create table sealed_keys (
    key_id text collate "C" primary key,
    imported bigint not null,
    sealed bytea not null
);

-- The end of each writer's chain of audit rows. Updated with every commit, so that half of each page stays free for that.
create table audit_writer (
    writer text collate "C" primary key,
    sequence bigint not null,
    chain bytea not null,
    revision bigint not null,
    key_version bigint not null,
    tag bytea not null
) with (fillfactor = 50);

-- What happened. Times: `at_ms` in Unix milliseconds, `issued_at` and `expires_at` in Unix seconds.
create table audit (
    writer text collate "C" not null,
    sequence bigint not null check (sequence > 0),
    at_ms bigint not null,
    event text collate "C" not null,
    outcome text collate "C" not null,
    reason text collate "C" not null,
    decision_id text collate "C" not null,
    caller text collate "C" not null,
    identity text collate "C" not null,
    detail text collate "C" not null,
    policy text collate "C",
    key_id text collate "C",
    app_group text collate "C",
    role text collate "C",
    scope text collate "C",
    token_id text collate "C",
    issued_at bigint,
    expires_at bigint,
    revision bigint not null,
    key_version bigint not null,
    chain bytea not null,
    primary key (writer, sequence)
);

-- Live tokens, for exposure: a token is one signed row, however often it was handed out.
create index audit_live on audit (expires_at) where outcome = 'SIGNED';

-- Listing and pruning by time.
create index audit_at on audit (at_ms);
