#!/usr/bin/env bash
# Runs main as several processes on this machine's CPU: the rehearsal of a pod.
#
#   bash launch/local_multiprocess.sh PROCESSES DEVICES_EACH -- FLAGS OF main
#   bash launch/local_multiprocess.sh 2 4 -- --config=configs/digits_lt.py --workdir=runs/digits
#
# Relative paths among the flags start in this clone, wherever the script is called. Needs `python` of the right
# environment first in PATH ($PYTHON names another). SIGTERM and SIGINT go on to every
# process. Exit status: 0 when all finished, else that of the first process (by number) that did not.
[ -n "${BASH_VERSION:-}" ] || { echo "$0: run it with bash" >&2; exit 2; }
set -euo pipefail

usage() { echo "usage: $0 PROCESSES DEVICES_EACH -- FLAGS OF main" >&2; exit 2; }
[[ $# -ge 3 && $1 =~ ^[1-9][0-9]*$ && $2 =~ ^[1-9][0-9]*$ && $3 == -- ]] || usage
processes=$1 devices=$2
shift 3

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/processes.sh
python=${PYTHON:-python}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
# Threads to spare: a collective holds one in each process while it waits for the others.
export NPROC=${NPROC:-$((2 * devices > 4 ? 2 * devices : 4))}

pids=()
for ((i = 0; i < processes; i++)); do
  "$python" -m shike_jax train --coordinator="127.0.0.1:$port" --processes="$processes" --process="$i" "$@" &
  pids+=($!)
done
wait_for_all "${pids[@]}"
