//! The SQL that both engines understand, once.

/// Columns of `audit`, in the order in which they are bound and read.
pub(super) const AUDIT_COLUMNS: &str = "writer, sequence, at_ms, event, outcome, reason, decision_id, caller, identity, \
     detail, policy, key_id, app_group, role, scope, token_id, issued_at, expires_at, revision, key_version, chain";

/// How many there are.
pub(super) const AUDIT_WIDTH: usize = 21;

pub(super) const OLDEST_RELEASE: &str = "select oldest from schema_release";
pub(super) const SEAL_ROW: &str = "select vault, generation, method, keyring from seal";
pub(super) const HEAD: &str = "select revision, chain from control_head";
pub(super) const CHECKPOINT_BEFORE: &str =
    "select cast(coalesce(max(revision), 0) as bigint) from control_log where checkpoint = 1 and revision <= $1";
pub(super) const RECORDS_FROM: &str =
    "select revision, checkpoint, previous, sealed from control_log where revision >= $1 order by revision limit $2";
pub(super) const SEALED_KEYS: &str = "select key_id, imported, sealed from sealed_keys order by key_id";
pub(super) const WRITER_ENDS: &str = "select w.writer, w.sequence, w.chain, w.revision, w.key_version, w.tag, \
     (select a.chain from audit a where a.writer = w.writer and a.sequence = w.sequence) as row_chain, \
     cast(case when exists (select 1 from audit a where a.writer = w.writer and a.sequence > w.sequence) \
     then 1 else 0 end as bigint) as has_more from audit_writer w order by w.writer";
/// The first row that each writer has; those before it were removed.
pub(super) const FIRST_ROWS: &str = "select w.writer, (select min(a.sequence) from audit a where a.writer = w.writer) \
     from audit_writer w";
/// Whether a database holds anything of a vault.
pub(super) const IS_USED: &str = "select cast(case when exists (select 1 from seal) or exists (select 1 from control_log) \
     or exists (select 1 from control_head where revision <> 0) or exists (select 1 from sealed_keys) \
     or exists (select 1 from audit) or exists (select 1 from audit_writer) then 1 else 0 end as bigint)";
pub(super) const UNKNOWN_WRITERS: &str =
    "select count(*) from audit where writer not in (select writer from audit_writer)";
pub(super) const FIRST_KEPT: &str = "select min(sequence) from audit where writer = $1 \
     and (at_ms >= $2 or (outcome = 'SIGNED' and expires_at > $3))";
pub(super) const LAST_ROW: &str = "select max(sequence) from audit where writer = $1";
pub(super) const CHAIN_AT: &str = "select chain from audit where writer = $1 and sequence = $2";
pub(super) const REMOVE_ROWS: &str = "delete from audit where writer = $1 and sequence <= $2 and sequence < \
     (select min(sequence) + $3 from audit where writer = $1)";
pub(super) const PUT_REPLICA: &str = "insert into replica (name, version, phase, revision, started_ms, seen_ms) \
     values ($1, $2, $3, $4, $5, $6) on conflict (name) do update set version = excluded.version, \
     phase = excluded.phase, revision = excluded.revision, started_ms = excluded.started_ms, seen_ms = excluded.seen_ms";
pub(super) const FORGET_REPLICAS: &str = "delete from replica where seen_ms < $1";
pub(super) const REPLICAS: &str =
    "select name, version, phase, revision, started_ms, seen_ms from replica order by name";

/// Forgets quotas of hours that are over for long, and of hours that are far ahead; `hour` is the hour it is now, as this
/// engine has it.
pub(super) fn forget_quotas(hour: &'static str, locking: &'static str) -> String {
    format!(
        "with old as (select policy, client from quota where hour < {hour} - $1 or hour > {hour} + $1 limit $2 {locking}) \
         delete from quota where (policy, client) in (select policy, client from old)"
    )
}

/// One writer's rows, in order.
pub(super) fn rows_of_writer() -> String {
    format!("select {AUDIT_COLUMNS} from audit where writer = $1 and sequence > $2 order by sequence limit $3")
}

/// Rows that match, oldest first, after a cursor. An absent filter is bound as null.
pub(super) fn list_rows() -> String {
    format!(
        "select {AUDIT_COLUMNS} from audit where at_ms >= $1 and at_ms < $2 and ($3 is null or caller = $3) \
         and ($4 is null or key_id = $4) and ($5 is null or policy = $5) and ($6 is null or outcome = $6) \
         and ($7 is null or decision_id = $7) and (at_ms, writer, sequence) > ($8, $9, $10) \
         order by at_ms, writer, sequence limit $11"
    )
}

/// Every time that one token was handed out, oldest first; between two times, as those have an index.
pub(super) fn handouts() -> String {
    format!(
        "select {AUDIT_COLUMNS} from audit where at_ms >= $1 and at_ms <= $2 and token_id = $3 \
         order by at_ms, writer, sequence limit $4"
    )
}

/// Live tokens that fulfil a condition. `now` and the condition are this program's own; they name `$1` and `$3`. Two rows can be one token:
/// claims have whole seconds, so what one caller was granted twice within a second under one policy is the same token.
pub(super) fn exposure_totals(now: &'static str, condition: &'static str) -> String {
    format!("select count(*), max(expires_at) from ({}) as live", live(now, condition))
}

/// The same, one by one.
pub(super) fn exposure(now: &'static str, condition: &'static str) -> String {
    format!(
        "{} where (expires_at, token_id, caller, policy, certificate) > ($4, $5, $6, $7, $8) \
         order by expires_at, token_id, caller, policy, certificate limit $9",
        live(now, condition)
    )
}

/// The same, counted by who got them, under which policy and with which key.
pub(super) fn exposure_groups(now: &'static str, condition: &'static str) -> String {
    format!(
        "select caller, policy, key_id, count(*), max(expires_at) from ({}) as live group by caller, policy, key_id",
        live(now, condition)
    )
}

/// The same, counted by app group and key.
pub(super) fn live_counts(now: &'static str) -> String {
    format!(
        "select app_group, key_id, count(*), max(expires_at) from ({}) as live group by app_group, key_id",
        live(now, "caller >= $3")
    )
}

/// What the busiest client of each policy got in this hour, which is `hour` as this engine has it.
pub(super) fn quotas_used(hour: &'static str) -> String {
    format!("select policy, max(hour_count) from quota where hour = {hour} group by policy")
}

fn live(now: &'static str, condition: &'static str) -> String {
    format!(
        "select * from (select token_id, caller, policy, key_id, app_group, issued_at, expires_at, \
         coalesce(certificate, '') as certificate, min(revision) as revision from audit where outcome = 'SIGNED' and expires_at > {now} and revision < $2 \
         and {condition} group by token_id, caller, policy, key_id, app_group, issued_at, expires_at, certificate) as token"
    )
}
