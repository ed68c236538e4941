# Sourced by the scripts that start several processes on one machine: `wait_for_all PIDS` passes SIGTERM and SIGINT on to
# all of them, waits for their ends, and returns 0 when all finished, else the status of the first that did not.
wait_for_all() {
  local pids=("$@") status=0 pid code interrupted
  # shellcheck disable=SC2064  # the ids are known now
  trap "interrupted=1; kill -TERM ${pids[*]} 2>/dev/null || true" TERM INT
  for pid in "${pids[@]}"; do
    while true; do # a trapped signal ends `wait` before the process does
      interrupted=
      code=0
      wait "$pid" || code=$?
      [[ -n $interrupted ]] || break
    done
    [[ $status -ne 0 ]] || status=$code
  done
  return "$status"
}
