#!/bin/bash
# Starts SLURM on this machine: munged, slurmctld, one slurmd; with --accounting also MariaDB and
# slurmdbd (then sacct works, and a wrong account is refused). Root only; listens on 127.0.0.1.
#
#   apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge [slurmdbd mariadb-server]
#   eval "$(bash start.sh [--accounting] [--cpus N] [--gpus N] [--grace SECONDS] [--killwait SECONDS]
#                          [--cred-expire SECONDS] [--under FOLDER])"
#   srun hostname
#   bash stop.sh "$SLURM_HERE"
# Exit code 3: the machine's name does not lead to a loopback address, so the daemons would listen elsewhere.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
accounting=no cpus=8 gpus=2 grace=10 killwait=5 cred_expire=10 temp=${TMPDIR:-/tmp}
while [ $# -gt 0 ]; do
    case $1 in
        --accounting) accounting=yes ;;
        --cpus) cpus=$2; shift ;;
        --gpus) gpus=$2; shift ;;
        --grace) grace=$2; shift ;;
        --killwait) killwait=$2; shift ;;
        --cred-expire) cred_expire=$2; shift ;;
        --under) temp=$2; shift ;;
        *) echo "unknown option $1" >&2; exit 2 ;;
    esac
    shift
done
dir=$(mktemp -d "$temp/slurm-here.XXXXXX")
chmod 755 "$dir"
host=$(hostname -s)
# The daemons listen where the machine's own name leads to.
case "$(getent ahostsv4 "$host" | awk 'NR == 1 {print $1}')" in
    127.*) ;;
    *) echo "start.sh: $host is not a loopback address here: echo '127.0.0.1 $host' >>/etc/hosts" >&2; rmdir "$dir"; exit 3 ;;
esac
mkdir -p "$dir"/{munge,state,spool,pid,log,db}
fail() { echo "start.sh: $1; see $dir/log" >&2; bash "$here/stop.sh" "$dir" --keep >&2 || true; exit 1; }

free_ports() {
    python3 - "$1" <<'PY'
import socket, sys
taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(each.getsockname()[1] for each in taken))
PY
}
read -r port_ctld port_d port_dbd port_db < <(free_ports 4)

accounting_lines="AccountingStorageType=accounting_storage/none"
if [ "$accounting" = yes ]; then
    accounting_lines="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$port_dbd
AccountingStoragePass=$dir/munge/socket
AccountingStorageEnforce=associations"
fi
gres="gpu:$gpus"; [ "$gpus" = 0 ] && gres="(null)"
fill() {
    local text; text=$(<"$1")
    text=${text//@DIR@/$dir} text=${text//@HOST@/$host} text=${text//@CPUS@/$cpus}
    text=${text//@GRACE@/$grace} text=${text//@KILLWAIT@/$killwait} text=${text//@GRES@/$gres}
    text=${text//@PORT_CTLD@/$port_ctld} text=${text//@PORT_D@/$port_d}
    text=${text//@PORT_DBD@/$port_dbd} text=${text//@PORT_DB@/$port_db}
    text=${text//@CRED@/$cred_expire} text=${text//@ACCOUNTING@/$accounting_lines}
    printf '%s\n' "$text"
}
fill "$here/slurm.conf.in" >"$dir/slurm.conf"
[ "$gpus" = 0 ] && sed -i -e 's/ Gres=(null)//' -e '/^GresTypes/d' "$dir/slurm.conf"
# Each GPU needs a file; an empty one is taken.
for ((gpu = 0; gpu < gpus; gpu++)); do
    : >"$dir/gpu$gpu"; echo "NodeName=$host Name=gpu File=$dir/gpu$gpu"
done >"$dir/gres.conf"
export SLURM_CONF=$dir/slurm.conf

head -c 1024 /dev/urandom >"$dir/munge/key"; chmod 400 "$dir/munge/key"
munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/pid/munged" \
    --log-file="$dir/log/munged" --seed-file="$dir/munge/seed" >&2 || fail "munged did not start"

wait_for() {  # seconds, command...
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.2
    done
}

if [ "$accounting" = yes ]; then
    fill "$here/slurmdbd.conf.in" >"$dir/slurmdbd.conf"; chmod 600 "$dir/slurmdbd.conf"
    mariadb-install-db --no-defaults --user=root --auth-root-authentication-method=socket \
        --datadir="$dir/db" --skip-test-db >"$dir/log/db-install" 2>&1 || fail "no database"
    mariadbd --no-defaults --user=root --datadir="$dir/db" --socket="$dir/db.socket" --port="$port_db" \
        --bind-address=127.0.0.1 --pid-file="$dir/pid/mariadbd" --innodb-buffer-pool-size=64M \
        --innodb-lock-wait-timeout=900 >"$dir/log/mariadbd" 2>&1 </dev/null &
    disown
    sql() { mariadb --no-defaults --socket="$dir/db.socket" --user=root -e "$1"; }
    wait_for 60 sql "select 1" || fail "mariadbd did not start"
    sql "create database slurm_acct_db; create user slurm@'127.0.0.1' identified by 'slurm';
         create user slurm@localhost identified by 'slurm';
         grant all on slurm_acct_db.* to slurm@'127.0.0.1'; grant all on slurm_acct_db.* to slurm@localhost" >&2
    slurmdbd >&2 || fail "slurmdbd did not start"
    wait_for 30 timeout 5 sacctmgr -n show cluster || fail "slurmdbd does not answer"
    sacctmgr -i add cluster here >&2 || true
    sacctmgr -i add account lab Description=lab Organization=lab >&2 || true
    sacctmgr -i add user "$(id -un)" Account=lab AdminLevel=Admin >&2 || true
fi
slurmctld -c >&2 || fail "slurmctld did not start"
wait_for 30 timeout 5 scontrol ping || fail "slurmctld does not answer"
slurmd >&2 || fail "slurmd did not start"
idle() { [ "$(sinfo -h -p gpu -o %T)" = idle ]; }
wait_for 20 idle || fail "the node does not become idle"
echo "export SLURM_CONF='$SLURM_CONF' SLURM_HERE='$dir'"
