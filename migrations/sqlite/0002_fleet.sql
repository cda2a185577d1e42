-- What a fleet needs. SQLite has one broker; the tables are there so that both engines are asked the same.

-- The oldest release that may use this schema. An older binary refuses; one that is merely different works.
create table schema_release (
    id integer primary key check (id = 1),
    oldest text not null
) strict;

insert into schema_release (id, oldest) values (1, '0.1.0');

-- Replicas as they last described themselves. Information only: nothing depends on it.
create table replica (
    name text primary key,
    version text not null,
    phase text not null,
    revision integer not null,
    started_ms integer not null,
    seen_ms integer not null
) strict;

-- The live tokens of one client, for the narrow revoke that is the common one.
create index audit_live_caller on audit (caller, expires_at) where outcome = 'SIGNED';
