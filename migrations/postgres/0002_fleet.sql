-- What a fleet needs: who may use this schema, the replicas, and the fence as functions.
--
-- The functions carry a version in their name: a release that changes one adds the next version beside it, so that two
-- releases can run on one database during a rolling update. Each is VOLATILE, so that every statement inside it takes a
-- snapshot of its own: what is read after the lock was granted is what the one before left behind (docs/adr/0006).

-- The oldest release that may use this schema. An older binary refuses; one that is merely different works.
create table schema_release (
    id bigint primary key check (id = 1),
    oldest text collate "C" not null
);

insert into schema_release (id, oldest) values (1, '0.1.0');

-- Replicas as they last described themselves. Information only: nothing depends on it.
create table replica (
    name text collate "C" primary key,
    version text collate "C" not null,
    phase text collate "C" not null,
    revision bigint not null,
    started_ms bigint not null,
    seen_ms bigint not null
);

-- The live tokens of one client, for the narrow revoke that is the common one.
create index audit_live_caller on audit (caller, expires_at) where outcome = 'SIGNED';

-- The lock of the fence is the one of the table that holds the head, whatever search path leads there: an advisory lock
-- whose key is that table's object id.

-- Refuses a session in which the fence would not hold.
create function p8broker_check_session_v1() returns void
language plpgsql volatile as $$
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'p8broker: the transaction is %, but the fence needs read committed',
            current_setting('transaction_isolation');
    end if;
    if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
        raise exception 'p8broker: synchronous_commit is %, but nothing may leave that is not durable',
            current_setting('synchronous_commit');
    end if;
end
$$;

-- Adds audit rows of one writer, with the end of its chain after them.
create function p8broker_add_rows_v1(
    row_writer text, end_sequence bigint, end_chain bytea, end_revision bigint, end_key_version bigint, end_tag bytea,
    sequences bigint[], ats bigint[], events text[], outcomes text[], reasons text[], decisions text[], callers text[],
    identities text[], details text[], policies text[], key_ids text[], app_groups text[], roles text[], scopes text[],
    token_ids text[], issued bigint[], expires bigint[], revisions bigint[], key_versions bigint[], chains bytea[]
) returns void
language plpgsql volatile as $$
begin
    insert into audit (writer, sequence, at_ms, event, outcome, reason, decision_id, caller, identity, detail, policy,
        key_id, app_group, role, scope, token_id, issued_at, expires_at, revision, key_version, chain)
    select row_writer, new.* from unnest(sequences, ats, events, outcomes, reasons, decisions, callers, identities,
        details, policies, key_ids, app_groups, roles, scopes, token_ids, issued, expires, revisions, key_versions,
        chains) as new;
    insert into audit_writer (writer, sequence, chain, revision, key_version, tag)
    values (row_writer, end_sequence, end_chain, end_revision, end_key_version, end_tag)
    on conflict (writer) do update set sequence = excluded.sequence, chain = excluded.chain,
        revision = excluded.revision, key_version = excluded.key_version, tag = excluded.tag;
end
$$;

-- The fence for audit rows: commits them if the head is the one they were decided at. With null for that, they record what
-- was refused, which no change can make wrong, and take no lock.
create function p8broker_commit_v1(
    decided_revision bigint, decided_chain bytea,
    row_writer text, end_sequence bigint, end_chain bytea, end_revision bigint, end_key_version bigint, end_tag bytea,
    sequences bigint[], ats bigint[], events text[], outcomes text[], reasons text[], decisions text[], callers text[],
    identities text[], details text[], policies text[], key_ids text[], app_groups text[], roles text[], scopes text[],
    token_ids text[], issued bigint[], expires bigint[], revisions bigint[], key_versions bigint[], chains bytea[]
) returns boolean
language plpgsql volatile as $$
begin
    perform p8broker_check_session_v1();
    if decided_revision is not null then
        -- Shared: rows of all replicas commit side by side. The statement after it sees what was committed before it.
        perform pg_advisory_xact_lock_shared('control_head'::regclass::bigint);
        if not exists (
            select 1 from control_head where revision = decided_revision and chain = decided_chain
        ) then
            return false;
        end if;
    end if;
    perform p8broker_add_rows_v1(row_writer, end_sequence, end_chain, end_revision, end_key_version, end_tag, sequences,
        ats, events, outcomes, reasons, decisions, callers, identities, details, policies, key_ids, app_groups, roles,
        scopes, token_ids, issued, expires, revisions, key_versions, chains);
    return true;
end
$$;

-- The fence for changes: appends records if the head is still the one that the first of them was sealed for. Answers
-- 'committed', 'moved' where it is not, or 'initialised' where a vault was to be made and there is one.
create function p8broker_append_v1(
    is_first boolean, expected_revision bigint, expected_chain bytea, new_chain bytea,
    record_revisions bigint[], record_checkpoints bigint[], record_previous bytea[], record_sealed bytea[],
    put_ids text[], put_imported bigint[], put_sealed bytea[], destroyed text[],
    seal_vault text, seal_generation bigint, seal_method text, seal_keyring bytea,
    row_writer text, end_sequence bigint, end_chain bytea, end_revision bigint, end_key_version bigint, end_tag bytea,
    sequences bigint[], ats bigint[], events text[], outcomes text[], reasons text[], decisions text[], callers text[],
    identities text[], details text[], policies text[], key_ids text[], app_groups text[], roles text[], scopes text[],
    token_ids text[], issued bigint[], expires bigint[], revisions bigint[], key_versions bigint[], chains bytea[]
) returns text
language plpgsql volatile as $$
begin
    perform p8broker_check_session_v1();
    -- Exclusive: waits for the commits before it, and holds up those after it for the few statements below.
    perform pg_advisory_xact_lock('control_head'::regclass::bigint);
    if is_first then
        if exists (select 1 from seal) or exists (select 1 from control_head where revision <> 0) then
            return 'initialised';
        end if;
    elsif not exists (
        select 1 from control_head where revision = expected_revision and chain = expected_chain
    ) then
        return 'moved';
    end if;
    insert into control_log (revision, checkpoint, previous, sealed)
    select * from unnest(record_revisions, record_checkpoints, record_previous, record_sealed);
    insert into control_head (id, revision, chain)
    select 1, max(record.revision), new_chain from unnest(record_revisions) as record (revision)
    on conflict (id) do update set revision = excluded.revision, chain = excluded.chain;
    -- Only where there is something to do: whoever writes these tables anew holds up nobody else.
    if cardinality(destroyed) > 0 then
        delete from sealed_keys where key_id = any (destroyed);
    end if;
    if cardinality(put_ids) > 0 then
        insert into sealed_keys (key_id, imported, sealed)
        select * from unnest(put_ids, put_imported, put_sealed)
        on conflict (key_id) do update set imported = excluded.imported, sealed = excluded.sealed;
    end if;
    if seal_vault is not null then
        insert into seal (id, vault, generation, method, keyring)
        values (1, seal_vault, seal_generation, seal_method, seal_keyring)
        on conflict (id) do update set vault = excluded.vault, generation = excluded.generation,
            method = excluded.method, keyring = excluded.keyring;
    end if;
    perform p8broker_add_rows_v1(row_writer, end_sequence, end_chain, end_revision, end_key_version, end_tag, sequences,
        ats, events, outcomes, reasons, decisions, callers, identities, details, policies, key_ids, app_groups, roles,
        scopes, token_ids, issued, expires, revisions, key_versions, chains);
    -- A hint that makes others fast; nothing is correct because of it.
    perform pg_notify('p8broker', current_schema());
    return 'committed';
end
$$;

-- Writes the tables of keys anew, so that what was deleted or replaced is in none of their files any more. Emptying a table
-- gives it a new file whatever older snapshots there are; a vacuum would keep row versions that one of them may still see.
create function p8broker_scrub_v1() returns void
language plpgsql volatile as $$
declare
    kept_keys sealed_keys[];
    kept_seal seal[];
begin
    perform p8broker_check_session_v1();
    lock table sealed_keys, seal in access exclusive mode;
    select array_agg(kept) into kept_keys from sealed_keys as kept;
    select array_agg(kept) into kept_seal from seal as kept;
    truncate sealed_keys, seal;
    insert into sealed_keys select (unnest(kept_keys)).*;
    insert into seal select (unnest(kept_seal)).*;
end
$$;
