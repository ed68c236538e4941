#!/usr/bin/env bash
# One training run on a Cloud TPU pod slice: create it, run on all workers, create it again when preempted, delete it.
#
#   TPU_NAME=shike TPU_ZONE=us-east5-b TPU_TYPE=v5litepod-16 BUCKET=my-runs \
#     bash launch/tpu_pod.sh [--dry-run] all -- --config=configs/imagenet_lt.py:root=runs/data --workdir=runs/imagenet
#
# Steps, also one at a time instead of `all`: create, setup (code, requirements, bucket), run, delete.
# --dry-run prints the commands and starts nothing.
#
# Needs: gcloud, logged in, with TPU quota; a Cloud Storage bucket $BUCKET, mounted on the workers as runs/ (a preempted
# slice loses its disks), so --workdir must lie in runs/. Every worker reads the images itself: put them into the bucket
# too and name them by their place there, as root=runs/data does. $TPU_PROJECT (default: gcloud's), $TPU_VERSION (the
# image; default v2-alpha-tpuv5-lite, for v5e), $TPU_PYTHON (3.11 or newer; default python3, which an older image has in
# an older version), $TPU_FLAGS (default --spot), $TPU_RESTARTS (default 100) and $TPU_PAUSE (seconds between two starts,
# default 30) may be set.
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
  if [[ $workdir != runs/?* ]]; then
    echo "--workdir=$workdir: expected runs/NAME, in the bucket: another folder is lost with the slice" >&2
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
on_all_workers() { tpu ssh "$TPU_NAME" "${where[@]}" --worker=all --command="$1"; }

# Waits when the zone has no slice to give; any other failure is the user's to see.
create() {
  local flags try errors
  read -ra flags <<<"${TPU_FLAGS---spot}"
  errors=$(mktemp)
  for ((try = 1; try <= ${TPU_RESTARTS:-100}; try++)); do
    tpu create "$TPU_NAME" "${where[@]}" --accelerator-type="$TPU_TYPE" \
      --version="${TPU_VERSION:-v2-alpha-tpuv5-lite}" "${flags[@]}" 2> >(tee "$errors" >&2) && return
    wait # for tee
    grep -qiE 'capacity|stock|resource_exhausted' "$errors" || return 1
    echo "no slice (try $try); trying again in ${TPU_PAUSE:-30} s" >&2
    sleep "${TPU_PAUSE:-30}"
  done
  return 1
}

setup() {
  local archive edits
  archive=$(mktemp -d)/shike_jax.tar.gz
  edits=$(git status --porcelain | cut -c4- | paste -sd' ')
  if [[ -n $edits ]]; then echo "not committed, so not on the workers: $edits" >&2; fi
  go git archive --format=tar.gz --output="$archive" HEAD &&
    tpu scp "$archive" "$TPU_NAME:shike_jax.tar.gz" "${where[@]}" --worker=all &&
    on_all_workers "mkdir -p shike && tar -xzf shike_jax.tar.gz -C shike && cd shike && ${TPU_PYTHON:-python3} -m venv .venv &&
    .venv/bin/pip install -q -r requirements.txt 'jax[tpu]'" &&
    on_all_workers "mkdir -p shike/runs && (mountpoint -q shike/runs || gcsfuse --implicit-dirs $(printf %q "$BUCKET") shike/runs)"
}

train() {
  local flags
  flags=$(printf ' %q' "$@")
  on_all_workers "cd shike && .venv/bin/python -m shike_jax train$flags"
}

delete() { tpu delete "$TPU_NAME" "${where[@]}" --quiet; }

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
      create || break
      replaced=1
    fi
  done
  echo "started $start times: giving up; the slice stays ($0 delete)" >&2
  return 1
}

case $step in
  all)
    create
    setup
    train_with_restarts "$@"
    delete
    ;;
  run) train_with_restarts "$@" ;;
  *) "$step" ;;
esac
