#!/usr/bin/env bash
# The only place that knows how to run PostgreSQL for tests: clusters of our own, on loopback, in folders of our own.
# fsync stays on, because durability is what the tests are about.
#
# usage: postgres.sh bin                                       the folder with PostgreSQL's programs, installed if need be
#        postgres.sh init DIR                                  a new cluster in DIR/data; its log is DIR/log
#        postgres.sh tls DIR CERT KEY CA METHOD                from the next start on, TCP takes TLS alone; METHOD as in pg_hba
#        postgres.sh query DIR SQL                             runs SQL over the socket of DIR
#        postgres.sh start DIR PORT                            starts it, waits until it answers, prints its process id
#        postgres.sh stop DIR fast|immediate                   stops it; fine when it does not run
#        postgres.sh standby PRIMARY_DIR PORT NEW_DIR NAME     a streaming standby called NAME, ready for `start`
#        postgres.sh sync DIR NAME|''                          commits on DIR wait for standby NAME from now on, or for none
#        postgres.sh promote DIR                               makes a standby the primary, waits until it can be written
#        postgres.sh with COMMAND...                           runs COMMAND beside a fresh cluster, then removes that
set -euo pipefail

oldest=15 account=p8broker patience_s=60
self=$(realpath "$0")

fail() { echo "postgres.sh: $*" >&2; exit 1; }

# Newest first: Debian's folders, then whatever is in PATH.
find_bin() {
    local dir version
    while read -r dir; do
        version=$("$dir/postgres" --version 2>/dev/null | sed -n 's/^[^0-9]*\([0-9]*\).*/\1/p')
        if [ "${version:-0}" -ge "$oldest" ] && [ -x "$dir/initdb" ] && [ -x "$dir/pg_basebackup" ]; then
            echo "$dir"
            return
        fi
    done < <(
        find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -rV
        for dir in $(type -ap postgres || true); do dirname "$(realpath "$dir")"; done
    )
    return 1
}

install_postgresql() {
    local sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo -n)
    command -v apt-get >/dev/null || return 1
    "${sudo[@]}" apt-get update --quiet >&2 || true
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install --quiet --yes --no-install-recommends -o DPkg::Lock::Timeout=120 postgresql >&2
}

bin() {
    find_bin || { install_postgresql && find_bin; } ||
        fail "PostgreSQL $oldest or newer is not here, and apt-get could not install it: install postgresql"
}

# PostgreSQL refuses to run as root; then all of it runs as this user, to whom the folders belong.
unprivileged=
if [ "$(id -u)" -eq 0 ]; then
    unprivileged=nobody
    ! id postgres >/dev/null 2>&1 || unprivileged=postgres
fi

# Runs a command as the user of the database, from / because that user may not enter the caller's folder, and without
# the environment, where PGPORT and its like would speak to another server.
as_user() {
    local drop=()
    [ -z "$unprivileged" ] || drop=(setpriv "--reuid=$unprivileged" "--regid=$(id -g "$unprivileged")" --clear-groups)
    (cd / && exec "${drop[@]}" env -i PATH="$PATH" LC_ALL=C TZ=UTC "$@")
}

# A program of PostgreSQL, by name.
pg() { as_user "$programs/$1" "${@:2}"; }

# Replaces a file of the cluster with standard input; it must belong to the database's user, whatever our umask.
write() { as_user tee "$1" >/dev/null; }

# Makes an empty folder that the database's user owns and can reach. A folder of the caller's own in the temporary
# folder is opened for passing through; nothing else is ever touched.
own_folder() {
    local dir=$1 parent=$1 tmp
    mkdir -p "$dir"
    [ -z "$(ls -A "$dir")" ] || fail "$dir is not empty"
    chmod 0700 "$dir"
    [ -n "$unprivileged" ] || return 0
    tmp=$(realpath "${TMPDIR:-/tmp}")
    while parent=$(dirname "$parent") && [[ "$parent" == "$tmp" || "$parent" == "$tmp"/* ]]; do
        [ ! -O "$parent" ] || chmod o+x "$parent"
    done
    chown "$unprivileged" "$dir"
    as_user test -w "$dir" || fail "user $unprivileged can't reach $dir: choose a folder in $tmp"
}

port_of() { sed -n 4p "$1/data/postmaster.pid" 2>/dev/null || fail "no PostgreSQL runs in $1"; }

sql() { pg psql -X -q -A -t -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$(port_of "$1")" -U "$account" -d postgres -c "$2"; }

# Waits until a query on the cluster in DIR answers TEXT.
await() {
    local dir=$1 text=$2 query=$3 deadline=$((SECONDS + patience_s)) got=
    while [ "$SECONDS" -lt "$deadline" ]; do
        got=$(sql "$dir" "$query" 2>/dev/null) && [ "$got" = "$text" ] && return
        sleep 0.05
    done
    fail "waited ${patience_s} s for '$text' from '$query', last answer '$got'"
}

init() {
    local dir=$1
    own_folder "$dir"
    pg initdb --pgdata="$dir/data" --username="$account" --auth=trust --encoding=UTF8 --locale=C --no-sync \
        --no-instructions >"$dir/initdb.log" 2>&1 || { cat "$dir/initdb.log" >&2; fail "initdb failed in $dir"; }
    printf "include 'test.conf'\ninclude 'sync.conf'\n" | write "$dir/data/postgresql.conf"
    write "$dir/data/sync.conf" </dev/null
}

# Takes effect with the next start. Connections over TCP are let in over TLS alone, by METHOD: trust, cert, scram-sha-256.
tls() {
    local dir=$1 certificate=$2 key=$3 ca=$4 method=$5
    write "$dir/data/server.crt" <"$certificate"
    write "$dir/data/server.key" <"$key"
    write "$dir/data/ca.crt" <"$ca"
    as_user chmod 0600 "$dir/data/server.key"
    printf "include 'test.conf'\ninclude 'sync.conf'\nssl = on\nssl_ca_file = 'ca.crt'\n" | write "$dir/data/postgresql.conf"
    printf 'local all all trust\nhostssl all all 127.0.0.1/32 %s\n' "$method" | write "$dir/data/pg_hba.conf"
}

# Runs one statement over the socket of DIR.
query() { pg psql -X -q -A -t -v ON_ERROR_STOP=1 -h "$1" -p "$(port_of "$1")" -U "$account" -d postgres -c "$2"; }

start() {
    local dir=$1 port=$2
    write "$dir/data/test.conf" <<CONF
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = '$dir'
max_connections = 200
wal_level = replica
max_wal_senders = 5
hot_standby = on
# So that a standby that was stopped for a while can still catch up.
wal_keep_size = '256MB'
CONF
    pg pg_ctl start --silent --wait --timeout="$patience_s" --pgdata="$dir/data" --log="$dir/log" >/dev/null </dev/null ||
        { tail -n 20 "$dir/log" >&2; fail "PostgreSQL did not start in $dir on port $port"; }
    head -n 1 "$dir/data/postmaster.pid"
}

stop() {
    local dir=$1 mode=$2
    pg pg_ctl status --pgdata="$dir/data" >/dev/null 2>&1 || return 0
    pg pg_ctl stop --silent --wait --timeout="$patience_s" --mode="$mode" --pgdata="$dir/data"
}

standby() {
    local primary=$1 port=$2 dir=$3 name=$4
    port_of "$primary" >/dev/null
    own_folder "$dir"
    pg pg_basebackup --pgdata="$dir/data" --write-recovery-conf --checkpoint=fast --wal-method=stream \
        --dbname="host=127.0.0.1 port=$port user=$account application_name=$name"
    # Once promoted it has no standby of its own, and must not wait for one.
    write "$dir/data/sync.conf" </dev/null
}

sync() {
    local dir=$1 name=$2
    echo "synchronous_standby_names = '$name'" | write "$dir/data/sync.conf"
    pg pg_ctl reload --silent --pgdata="$dir/data"
    await "$dir" "$name" 'show synchronous_standby_names'
    [ -z "$name" ] || await "$dir" sync "select sync_state from pg_stat_replication where application_name = '$name'"
    # Commits wait from the moment the checkpointer has read the setting, and it reads it before it does this.
    sql "$dir" checkpoint
}

promote() {
    pg pg_ctl promote --silent --wait --timeout="$patience_s" --pgdata="$1/data"
    await "$1" f/off "select case when pg_is_in_recovery() then 't' else 'f' end || '/' || current_setting('transaction_read_only')"
}

# Below the range the kernel gives out by itself, so that no test's connection takes it meanwhile.
free_port() {
    local port
    for _ in {1..100}; do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
    fail 'found no free port'
}

with() {
    local port code=0
    folder=$(mktemp -d)
    trap 'code=$?; stop "$folder/cluster" immediate || true; rm -rf "$folder"; exit "$code"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    init "$folder/cluster"
    port=$(free_port)
    start "$folder/cluster" "$port" >/dev/null
    export P8BROKER_TEST_POSTGRES="postgres://$account@127.0.0.1:$port/postgres?sslmode=disable"
    export P8BROKER_TEST_POSTGRES_SCRIPT="$self"
    "$@"
}

need() { [ "$1" -eq "$2" ] || { sed -n 's/^# *usage: /usage: /p; s/^#  \{7,\}/       /p' "$0" >&2; exit 2; }; }

command=${1:-}
[ $# -eq 0 ] || shift
if [ "$command" = with ] && [ -n "${P8BROKER_TEST_POSTGRES:-}" ]; then exec "$@"; fi
programs=$(bin)
case $command in
    bin) need $# 0; echo "$programs" ;;
    init) need $# 1; init "$(realpath -m "$1")" ;;
    start) need $# 2; start "$(realpath "$1")" "$2" ;;
    stop) need $# 2; stop "$(realpath "$1")" "$2" ;;
    standby) need $# 4; standby "$(realpath "$1")" "$2" "$(realpath -m "$3")" "$4" ;;
    tls) need $# 5; tls "$(realpath "$1")" "$2" "$3" "$4" "$5" ;;
    query) need $# 2; query "$(realpath "$1")" "$2" ;;
    sync) need $# 2; sync "$(realpath "$1")" "$2" ;;
    promote) need $# 1; promote "$(realpath "$1")" ;;
    with) [ $# -gt 0 ] || need 0 1; with "$@" ;;
    *) need 0 1 ;;
esac
