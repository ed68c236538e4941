#!/usr/bin/env bash
# From nothing to a trained long-tailed classifier on real handwritten digits, and its table. Safe to run twice.
# Arguments go to the program: `bash launch/quickstart.sh --config.seed=1`. WORKDIR names another directory for the run,
# SHIKE_VENV another virtual environment; both are relative to where you stand.
[ -n "${BASH_VERSION:-}" ] || { echo "$0: run it with bash" >&2; exit 2; }
set -euo pipefail
[[ ${SHIKE_VENV:-/} == /* ]] || SHIKE_VENV=$PWD/$SHIKE_VENV
[[ ${WORKDIR:-/} == /* || ${WORKDIR:-} == *://* ]] || WORKDIR=$PWD/$WORKDIR
cd "$(dirname "$0")/.."
source launch/environment.sh
workdir=${WORKDIR:-runs/quickstart}
"$PY" -m shike_jax train --config=configs/digits_lt.py --workdir="$workdir" "$@"
"$PY" -m shike_jax summary "$workdir"
