-- The certificate beside a bearer token, as the end of `identity` names it: revoking it covers what came through it.
alter table audit add column certificate text collate "C" generated always as (
    nullif(nullif(split_part(split_part(identity, '; certificate ', 2), '; claims ', 1), ''), 'none')
) stored;

create index audit_live_certificate on audit (certificate, expires_at) where outcome = 'SIGNED' and certificate is not null;
