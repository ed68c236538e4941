#!/usr/bin/env bash
# Tries gpu_slurm.sbatch on a real SLURM controller and node daemon, started on this one machine for the purpose:
# two tasks on the CPU, queued again in the middle of the training, which then goes on and finishes.
#
#   sudo bash launch/slurm_here.sh [FOLDER FOR THE RUN AND ALL LOGS]
#
# Needs: root, Debian's or Ubuntu's packages `slurm-wlm` and `munge`, and `python` of the right environment in PATH
# ($PYTHON names another). No SLURM may be running here; the configuration in /etc is not touched.
[ -n "${BASH_VERSION:-}" ] || { echo "$0: run it with bash" >&2; exit 2; }
set -euo pipefail

[[ $EUID -eq 0 ]] || { echo "error: needs root, for munge and slurmd" >&2; exit 2; }
for tool in munged slurmctld slurmd sbatch; do
  PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null || { echo "error: no $tool: install slurm-wlm and munge" >&2; exit 2; }
done
export PATH=$PATH:/usr/sbin
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-$(mktemp -d)}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
python=$(command -v "${PYTHON:-python}")
host=$(hostname -s)

# munge insists on safe parents of its socket, so not in $folder.
munge=$(mktemp -d /run/munge-here.XXXXXX)
chown munge: "$munge"
runuser -u munge -- dd if=/dev/urandom of="$munge/key" bs=128 count=1 status=none
chmod 400 "$munge/key"
chmod 755 "$munge"
runuser -u munge -- munged --key-file="$munge/key" --socket="$munge/socket" --pid-file="$munge/pid" \
  --log-file="$munge/log" --seed-file="$munge/seed"

mkdir -p "$folder"/slurm/{state,spool}
export SLURM_CONF=$folder/slurm/slurm.conf
cat >"$SLURM_CONF" <<CONF
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$munge/socket,cred_expire=10
CredType=cred/munge
StateSaveLocation=$folder/slurm/state
SlurmdSpoolDir=$folder/slurm/spool
SlurmctldPidFile=$folder/slurm/slurmctld.pid
SlurmdPidFile=$folder/slurm/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
KillWait=120
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES State=UP
CONF

slurmctld -D >"$folder/slurm/slurmctld.log" 2>&1 &
controller=$!
slurmd -D >"$folder/slurm/slurmd.log" 2>&1 &
node=$!
finish() {
  scancel --state=RUNNING,PENDING 2>/dev/null || true
  kill "$node" "$controller" "$(cat "$munge/pid")" 2>/dev/null || true
  wait "$node" "$controller" 2>/dev/null || true
  rm -rf "$munge"
}
trap finish EXIT

say() { echo "$(date '+%T') $*"; }
# until_true SECONDS WHAT COMMAND...: waits until the command succeeds.
until_true() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS > end)); then
      say "error: gave up waiting until $what"
      exit 1
    fi
    sleep 1
  done
  say "$what"
}
node_idle() { [[ $(sinfo -h -o %T) == idle ]]; }
state_is() { [[ $(scontrol show job "$job" -o) == *"JobState=$1 "* ]]; }
trains() { [[ $(wc -l <"$folder/run/metrics.jsonl") -ge 10 ]]; }
continued() { grep -q "continuing in stage" "$folder/run/log.txt"; }

until_true 60 "the node is idle" node_idle
job=$(PYTHON=$python sbatch --parsable --nodes=1 --ntasks-per-node=2 --cpus-per-task=1 --gpus-per-task=0 \
  --export=ALL,JAX_PLATFORMS=cpu,NPROC=4 --output="$folder/job.out" launch/gpu_slurm.sbatch \
  --config=configs/digits_lt.py:width=4,epochs=20,classifier_epochs=1 --config.train.log_every_steps=1 \
  --config.train.checkpoint_every_steps=20 --config.train.eval_every_epochs=0 --workdir="$folder/run")
say "submitted job $job"
until_true 600 "the run trains" trains
scontrol requeue "$job"
say "cancelled with requeue"
until_true 300 "the job is queued again" state_is PENDING
until_true 600 "the run continues" continued
until_true 900 "the job has completed" state_is COMPLETED
grep -h "ended with status\|^.* job $job" "$folder/job.out"
tail -n 1 "$folder/run/log.txt"
