-- Quotas: how many tokens each client was handed out under each policy that bounds it, and the fence with them.

-- One row for each policy and client, with the hour and the minute of Unix time that it counts in. Not sealed: it is a
-- limit and no secret, and a count that every commit changes. Whoever can write this database can set it back; the tokens
-- are all in the audit, which is chained, all the same. Updated with every commit, so that half of each page
-- stays free for that.
create table quota (
    policy text collate "C" not null,
    client text collate "C" not null,
    hour bigint not null,
    hour_count bigint not null,
    minute bigint not null,
    minute_count bigint not null,
    primary key (policy, client)
) with (fillfactor = 50);

-- Forgetting what is over.
create index quota_hour on quota (hour);

-- Counts what is asked for. Answers null, or, where that would be more than a bound, what the counts would have been, as a
-- JSON array for each such key; then nothing was counted.
create function p8broker_count_v1(
    ask_policies text[], ask_clients text[], ask_tokens bigint[], ask_fresh bigint[], ask_per_hour bigint[],
    ask_per_minute bigint[]
) returns text
language plpgsql volatile as $$
declare
    now_ms bigint := floor(extract(epoch from clock_timestamp()) * 1000);
    exceeded text;
begin
    -- In order, so that whoever else counts the same keys waits for this one or this one for them, and never both. A row
    -- that was waited for is read as it then is: with a later hour or minute where the other one came later.
    with ask as (
        select * from unnest(ask_policies, ask_clients, ask_tokens, ask_fresh, ask_per_hour, ask_per_minute)
            as ask (policy, client, tokens, fresh, per_hour, per_minute)
    ), counted as (
        insert into quota as kept (policy, client, hour, hour_count, minute, minute_count)
        select policy, client, now_ms / 3600000, tokens, now_ms / 60000, fresh from ask
        order by policy collate "C", client collate "C"
        on conflict (policy, client) do update set
            hour = greatest(kept.hour, excluded.hour),
            hour_count = excluded.hour_count + case when kept.hour >= excluded.hour then kept.hour_count else 0 end,
            minute = greatest(kept.minute, excluded.minute),
            minute_count = excluded.minute_count
                + case when kept.minute >= excluded.minute then kept.minute_count else 0 end
        returning policy, client, hour, hour_count, minute, minute_count
    )
    select jsonb_agg(jsonb_build_array(policy, client, hour, hour_count, minute, minute_count, now_ms)) into exceeded
    from counted join ask using (policy, client)
    where hour_count > per_hour or (fresh > 0 and minute_count > per_minute);
    if exceeded is not null then
        raise exception using errcode = 'P8001', message = 'p8broker: over quota';
    end if;
    return null;
exception when sqlstate 'P8001' then
    -- All that this function counted is undone.
    return exceeded;
end
$$;

-- The fence for audit rows, as before, with quotas: also commits nothing where a quota would be exceeded. Answers
-- 'committed', 'moved', or what `p8broker_count_v1` says.
create function p8broker_commit_v2(
    decided_revision bigint, decided_chain bytea,
    ask_policies text[], ask_clients text[], ask_tokens bigint[], ask_fresh bigint[], ask_per_hour bigint[],
    ask_per_minute bigint[],
    row_writer text, end_sequence bigint, end_chain bytea, end_revision bigint, end_key_version bigint, end_tag bytea,
    sequences bigint[], ats bigint[], events text[], outcomes text[], reasons text[], decisions text[], callers text[],
    identities text[], details text[], policies text[], key_ids text[], app_groups text[], roles text[], scopes text[],
    token_ids text[], issued bigint[], expires bigint[], revisions bigint[], key_versions bigint[], chains bytea[]
) returns text
language plpgsql volatile as $$
declare
    exceeded text;
begin
    perform p8broker_check_session_v1();
    if decided_revision is not null then
        -- Shared: rows of all replicas commit side by side. The statement after it sees what was committed before it.
        perform pg_advisory_xact_lock_shared('control_head'::regclass::bigint);
        if not exists (
            select 1 from control_head where revision = decided_revision and chain = decided_chain
        ) then
            return 'moved';
        end if;
    end if;
    -- After the lock of the fence, by everybody: whoever waits for a key's row is waited for by no holder of that row.
    if cardinality(ask_policies) > 0 then
        exceeded := p8broker_count_v1(ask_policies, ask_clients, ask_tokens, ask_fresh, ask_per_hour, ask_per_minute);
        if exceeded is not null then
            return exceeded;
        end if;
    end if;
    perform p8broker_add_rows_v1(row_writer, end_sequence, end_chain, end_revision, end_key_version, end_tag, sequences,
        ats, events, outcomes, reasons, decisions, callers, identities, details, policies, key_ids, app_groups, roles,
        scopes, token_ids, issued, expires, revisions, key_versions, chains);
    return 'committed';
end
$$;
