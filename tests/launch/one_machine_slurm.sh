#!/bin/bash
# Start a SLURM of one node on this machine, or stop it: for the slow tests of launcher=slurm. Needs root, and
#   apt-get install slurm-wlm munge
#
#   export SLURM_CONF=$(bash tests/launch/one_machine_slurm.sh start FOLDER)
#   sinfo
#   bash tests/launch/one_machine_slurm.sh stop FOLDER
set -euo pipefail
action=$1 folder=$(realpath -m "$2")
munged="setpriv --reuid=munge --regid=munge --clear-groups munged"

if [ "$action" = stop ]; then
    for name in slurmd slurmctld; do
        [ -f "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
    done
    $munged --stop --socket "$folder/munge/socket" >/dev/null 2>&1 || true
    exit
fi

mkdir -p "$folder/state" "$folder/spool" "$folder/munge"
chmod 755 "$folder"
[ -f "$folder/munge/key" ] || dd if=/dev/urandom of="$folder/munge/key" bs=1 count=1024 status=none
chmod 400 "$folder/munge/key"
chmod 755 "$folder/munge"
chown -R munge:munge "$folder/munge"
$munged --key-file "$folder/munge/key" --socket "$folder/munge/socket" --pid-file "$folder/munge/pid" \
    --log-file "$folder/munge/log" --seed-file "$folder/munge/seed"

cat >"$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=${SLURMCTLD_PORT:-26817}
SlurmdPort=${SLURMD_PORT:-26818}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldTimeout=60
SlurmdTimeout=60
KillWait=30
JobRequeue=1
MpiDefault=none
ReturnToService=2
NodeName=localhost NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
CONF
export SLURM_CONF=$folder/slurm.conf
slurmctld -c
slurmd -c -N localhost
for _ in $(seq 30); do
    sinfo --noheader --format=%T 2>/dev/null | grep -q idle && break
    sleep 1
done
sinfo --noheader --format=%T | grep -q idle || { tail "$folder"/*.log >&2; exit 1; }
echo "$SLURM_CONF"
