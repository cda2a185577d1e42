-- Quotas: how many tokens each client was handed out under each policy that bounds it.

-- One row for each policy and client, with the hour and the minute of Unix time that it counts in. Not sealed: it is a
-- limit and no secret, and a count that every commit changes. Whoever can write this database can set it back; the tokens
-- are all in the audit, which is chained, all the same.
create table quota (
    policy text not null,
    client text not null,
    hour integer not null,
    hour_count integer not null,
    minute integer not null,
    minute_count integer not null,
    primary key (policy, client)
) strict, without rowid;

-- Forgetting what is over.
create index quota_hour on quota (hour);
