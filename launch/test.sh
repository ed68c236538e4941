#!/usr/bin/env bash
# Runs the tests; makes the environment first if need be. Arguments go to pytest: `bash launch/test.sh -m slow`.
[ -n "${BASH_VERSION:-}" ] || { echo "$0: run it with bash" >&2; exit 2; }
set -euo pipefail
[[ ${SHIKE_VENV:-/} == /* ]] || SHIKE_VENV=$PWD/$SHIKE_VENV
cd "$(dirname "$0")/.."
source launch/environment.sh
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} TF_CPP_MIN_LOG_LEVEL=3
# A worker that the system killed would leave tests that nobody runs, and a run that never ends: it is not replaced.
exec "$PY" -m pytest -n "${TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder --max-worker-restart=0 "$@"
