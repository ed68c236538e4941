#!/usr/bin/env bash
# One training run on a Cloud TPU pod slice: ask for it, run on all workers, ask again when preempted, delete it.
#
#   TPU_NAME=shike TPU_ZONE=us-east5-b TPU_TYPE=v5litepod-16 BUCKET=my-bucket bash launch/tpu_pod.sh [--dry-run] all -- \
#     --config=configs/imagenet_lt.py:root=data/imagenet --workdir=gs://my-bucket/runs/imagenet
#
# Steps, also one at a time instead of `all`: create, setup (code, requirements, bucket), run, delete.
# --dry-run prints the commands and starts nothing.
#
# Needs: gcloud, logged in, with TPU quota; a Cloud Storage bucket $BUCKET. A preempted slice loses its disks, so
# --workdir lies in a bucket. Every worker reads the images itself: put them into $BUCKET, which the workers see as data/.
# The slice is a queued resource: the request waits until there is room.
#
# May be set: $TPU_PROJECT (default: gcloud's), $TPU_VERSION (the image; default v2-alpha-tpuv5-lite, for v5e), $TPU_PYTHON
# (3.11 or newer; default python3, which an older image has in an older version), $TPU_FLAGS (default --spot),
# $TPU_RESTARTS (default 100), $TPU_PAUSE (seconds between two starts or looks, default 30). XLA_FLAGS, LIBTPU_INIT_ARGS,
# JAX_COMPILATION_CACHE_DIR (default gs://$BUCKET/compiled) and the variables that $TPU_ENV names are passed on.
#
# What ends early is started again, unless its exit status is 2 (a mistake in the settings). A slice that is no longer
# ready is replaced. When the script gives up, the slice stays, and costs money until it is deleted.
[ -n "${BASH_VERSION:-}" ] || { echo "$0: run it with bash" >&2; exit 2; }
set -euo pipefail

usage() {
  echo "usage: TPU_NAME=.. TPU_ZONE=.. TPU_TYPE=.. BUCKET=.. $0 [--dry-run] all|create|setup|run|delete [-- FLAGS OF train]" >&2
  exit 2
}
dry='' step=''
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --dry-run) dry=1 ;;
    all | create | setup | run | delete) [[ -z $step ]] || usage; step=$1 ;;
    *) usage ;;
  esac
  shift
done
[[ -n $step ]] || usage
if [[ ${1:-} == -- ]]; then shift; fi
[[ -n ${TPU_NAME:-} && -n ${TPU_ZONE:-} && -n ${TPU_TYPE:-} && -n ${BUCKET:-} ]] || usage
if [[ $step =~ ^(all|run)$ ]]; then
  [[ $# -gt 0 ]] || usage
  workdir='' previous=''
  for flag; do
    if [[ $flag == --workdir=* ]]; then workdir=${flag#--workdir=}; fi
    if [[ $previous == --workdir ]]; then workdir=$flag; fi
    previous=$flag
  done
  if [[ $workdir != gs://?*/?* ]]; then
    echo "--workdir=$workdir: expected gs://BUCKET/NAME: a folder is lost with the slice" >&2
    exit 2
  fi
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

where=(--zone="$TPU_ZONE")
if [[ -n ${TPU_PROJECT:-} ]]; then where+=(--project="$TPU_PROJECT"); fi

# Prints a command; runs it, too, unless --dry-run.
go() {
  printf '+' >&2
  printf ' %q' "$@" >&2
  printf '\n' >&2
  if [[ -z $dry ]]; then "$@"; fi
}
tpu() { go gcloud compute tpus tpu-vm "$@"; }
queued() { go gcloud compute tpus queued-resources "$@"; }
on_all_workers() { tpu ssh "$TPU_NAME" "${where[@]}" --worker=all --command="$1"; }

# Asks for a slice and waits until it is there. Status 3: the request has failed or was taken back; it may be made again.
create() {
  local flags look state
  read -ra flags <<<"${TPU_FLAGS---spot}"
  queued create "$TPU_NAME" "${where[@]}" --node-id="$TPU_NAME" --accelerator-type="$TPU_TYPE" \
    --runtime-version="${TPU_VERSION:-v2-alpha-tpuv5-lite}" "${flags[@]}" || return 1
  if [[ -n $dry ]]; then return; fi
  for ((look = 0; ; look++)); do
    state=$(gcloud compute tpus queued-resources describe "$TPU_NAME" "${where[@]}" --format='value(state.state)' || true)
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPEND*)
        echo "the request for $TPU_NAME is $state; asking again" >&2
        delete || true
        return 3
        ;;
    esac
    if ((look % 20 == 0)); then echo "waiting for a slice: ${state:-no answer}" >&2; fi
    sleep "${TPU_PAUSE:-30}"
  done
}

# Asks until there is a slice.
create_patiently() {
  local try status
  for ((try = 1; try <= ${TPU_RESTARTS:-100}; try++)); do
    create && return || status=$?
    ((status == 3)) || return "$status"
    sleep "${TPU_PAUSE:-30}"
  done
  return 1
}

setup() {
  local archive edits python=${TPU_PYTHON:-python3}
  archive=$(mktemp -d)/shike_jax.tar.gz
  edits=$(git status --porcelain | cut -c4- | paste -sd' ')
  if [[ -n $edits ]]; then echo "not committed, so not on the workers: $edits" >&2; fi
  go git archive --format=tar.gz --output="$archive" HEAD &&
    tpu scp "$archive" "$TPU_NAME:shike_jax.tar.gz" "${where[@]}" --worker=all &&
    on_all_workers "$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { $python --version; echo 'expected Python 3.11 or newer: TPU_PYTHON names another, TPU_VERSION a newer image'; exit 2; }" &&
    on_all_workers "mkdir -p shike && tar -xzf shike_jax.tar.gz -C shike && cd shike && $python -m venv .venv &&
    .venv/bin/pip install -q -r requirements.txt gcsfs 'jax[tpu]'" &&
    on_all_workers "mkdir -p shike/data && (mountpoint -q shike/data || gcsfuse --implicit-dirs $(printf %q "$BUCKET") shike/data)"
}

train() {
  local flags name passed=''
  flags=$(printf ' %q' "$@")
  export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-gs://$BUCKET/compiled}
  for name in XLA_FLAGS LIBTPU_INIT_ARGS JAX_COMPILATION_CACHE_DIR ${TPU_ENV:-}; do
    if [[ -n ${!name:-} ]]; then passed+="$name=$(printf %q "${!name}") "; fi
  done
  on_all_workers "cd shike && $passed.venv/bin/python -m shike_jax train$flags"
}

delete() { queued delete "$TPU_NAME" "${where[@]}" --force --quiet; }

# Runs until finished; a slice that is no longer there is replaced.
train_with_restarts() {
  local start state status replaced=''
  for ((start = 0; start <= ${TPU_RESTARTS:-100}; start++)); do
    if [[ -z $replaced ]] || setup; then
      replaced=''
      train "$@" && return 0 || status=$?
      if ((status == 2)); then
        echo "exit status 2, a mistake in the settings: not started again; the slice stays ($0 delete)" >&2
        return 2
      fi
    fi
    sleep "${TPU_PAUSE:-30}"
    state=$(gcloud compute tpus tpu-vm describe "$TPU_NAME" "${where[@]}" --format='value(state)' || echo GONE)
    echo "start $start ended early; the slice is $state" >&2
    if [[ $state != READY ]]; then
      delete || true
      create_patiently || break
      replaced=1
    fi
  done
  echo "started $start times: giving up; the slice stays ($0 delete)" >&2
  return 1
}

case $step in
  all)
    create_patiently
    setup
    train_with_restarts "$@"
    delete
    ;;
  run) train_with_restarts "$@" ;;
  *) "$step" ;;
esac
