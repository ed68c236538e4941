#!/usr/bin/env bash
# From nothing to a trained long-tailed classifier on real handwritten digits, and its table. Safe to run twice.
# Arguments go to the program: `bash launch/quickstart.sh --config.seed=1`; WORKDIR names another directory.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
workdir=${WORKDIR:-runs/quickstart}
"$PY" -m shike_jax.main --config=configs/digits_lt.py --workdir="$workdir" "$@"
"$PY" -m shike_jax.report.summary "$workdir"
