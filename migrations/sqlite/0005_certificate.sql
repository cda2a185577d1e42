-- The certificate beside a bearer token, as the end of `identity` names it: revoking it covers what came through it.
alter table audit add column certificate text generated always as (
    case when instr(identity, '; certificate ') > 0 then
        nullif(
            substr(
                substr(identity, instr(identity, '; certificate ') + 14), 1,
                instr(substr(identity, instr(identity, '; certificate ') + 14), '; claims ') - 1
            ),
            'none'
        )
    end
) virtual;

create index audit_live_certificate on audit (certificate, expires_at) where outcome = 'SIGNED' and certificate is not null;
