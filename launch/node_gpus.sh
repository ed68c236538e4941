#!/usr/bin/env bash
# Runs main as one process per GPU of this node: what the pods of launch/gpu_jobset.yaml do. Each process decodes its own
# images, so that Python's lock is shared by the threads of one GPU only.
#
#   bash launch/node_gpus.sh FLAGS OF main                                       (one node, all of its GPUs)
#   NODES=2 NODE=0 JAX_COORDINATOR_ADDRESS=HOST:PORT bash launch/node_gpus.sh FLAGS OF main       (on each node)
#
# GPUS: how many there are here and on every other node (default: those in CUDA_VISIBLE_DEVICES, else of nvidia-smi).
# NODES, NODE: how many nodes, and which this one is, from 0. `python` of the right environment in PATH ($PYTHON names
# another). Relative paths among the flags start in this clone. SIGTERM and SIGINT go on to every process. Exit status: 0
# when all finished, else that of the first process (by number) that did not.
[ -n "${BASH_VERSION:-}" ] || { echo "$0: run it with bash" >&2; exit 2; }
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/processes.sh
visible=()
[ -z "${CUDA_VISIBLE_DEVICES:-}" ] || IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
gpus=${GPUS:-${#visible[@]}}
((gpus > 0)) || [ -n "${GPUS:-}" ] || gpus=$(nvidia-smi --list-gpus | wc -l)
((gpus > 0)) || { echo "$0: GPUS=$gpus: expected at least one GPU" >&2; exit 2; }
if ((${#visible[@]} > 0 && gpus > ${#visible[@]})); then
  echo "$0: GPUS=$gpus: expected at most the ${#visible[@]} of CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES" >&2
  exit 2
elif ((${NODES:-1} > 1)) && [ -z "${NODE:-}" ]; then
  echo "$0: NODES=$NODES: expected NODE too, the number of this node from 0" >&2
  exit 2
fi
export JAX_NUM_PROCESSES=$((${NODES:-1} * gpus))
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-127.0.0.1:8476}
threads=$(($(nproc) / gpus > 0 ? $(nproc) / gpus : 1)) # the cores of the node, shared out

pids=()
for ((i = 0; i < gpus; i++)); do
  CUDA_VISIBLE_DEVICES=${visible[i]:-$i} JAX_PROCESS_ID=$((${NODE:-0} * gpus + i)) \
    "${PYTHON:-python}" -m shike_jax train --config.data.threads="$threads" "$@" &
  pids+=($!)
done
wait_for_all "${pids[@]}"
