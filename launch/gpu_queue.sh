#!/usr/bin/env bash
# What to measure when a GPU is available, in pieces of at most ten minutes; see docs/gpu.md.
#
#   bash launch/gpu_queue.sh quarter        the most valuable of it, when a GPU is lent for a quarter of an hour
#   bash launch/gpu_queue.sh ITEM [PIECE]   one item of:
#
#   1 smoke   devices, versions, the tests that concern a GPU, the golden values in float32
#   2 step    CIFAR step, ours and PyTorch (batch 128, 512, 2048), three seeds at once, augmentation's share, profile
#   3 full    CIFAR100-LT, preset official, all epochs;         PIECE: if100_seed0 (default) ... if100_seed4, if50_seed0
#   4 switches  preset paper and one switch at a time;          PIECE: paper (default) frozen_bn decay_frozen float32
#   5 tables  table 4 and H2T;                                  PIECE: table4 (default) h2t_if100 h2t_if50 h2t_if200
#   6 large   ResNet-50 and ResNeXt-50 at 224 px, synthetic;    PIECE: resnet50 (default) resnext50_32x4d
#   7 ideas   beyond the paper;                                 PIECE: experts5 (default) experts6 mixup ema plus
#
# `quarter` has a clock of its own (SECONDS_IN_ALL, default 540): it writes each result when it is there, skips what no
# longer fits, and the same command again continues with what is missing (status 75 while something is). With PACKED=FILE
# everything that was written, but for the compiled programs, is also kept in that archive, after every item.
#
# Variables: OUT (results, logs and runs; default runs/gpu), DATA (folder of cifar100_if100.npz, cifar100_if50.npz,
# h2t_if100.npz ...; default data), PYTHON (default python3), LIMIT (seconds per benchmark or training, default 540),
# PEAK (matrix peak in TFLOP/s, default 790), TINY=1 (seconds on a CPU instead: only to try the commands).
# The same command again continues an unfinished training; exit status 75 says that it has to.
[ -n "${BASH_VERSION:-}" ] || { echo "$0: run it with bash" >&2; exit 2; }
set -euo pipefail
cd "$(dirname "$0")/.."

began=$SECONDS
item=${1:-} piece=${2:-}
OUT=${OUT:-runs/gpu} DATA=${DATA:-data} PYTHON=${PYTHON:-python3} LIMIT=${LIMIT:-540} PEAK=${PEAK:-790}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$OUT/compiled}
[[ $item =~ ^([1-7]|quarter)$ ]] && mkdir -p "$OUT"

tiny() { [ -n "${TINY:-}" ]; }

# logged NAME COMMAND...: the command's output goes to the terminal and to OUT/NAME.log; what follows runs in any case.
failed=0
logged() {
  local name=$1
  shift
  echo "== $name: $*"
  "$@" 2>&1 | tee "$OUT/$name.log" || failed=$?
}

# step NAME OPTION...: one step benchmark into OUT/NAME.json.
step() {
  local name=$1
  shift
  tiny && set -- "$@" --batch=4 --width=4 --blocks="${blocks:-1,1,1}" --image_size=32 --repeats=1 --steps_per_call=1
  logged "$name" timeout "$LIMIT" "$PYTHON" -m shike_jax benchmark step "$@" --peak_tflops="$PEAK" --json="$OUT/$name.json"
}

# full NAME CONFIG OPTION...: a timed run in OUT/NAME/, which continues where the piece before it stopped.
full() {
  local name=$1 config=$2
  shift 2
  if [ -e "$OUT/$name/results.json" ]; then
    echo "$OUT/$name is finished"
    return
  fi
  if tiny; then
    set -- "$@" --config.model.width=4 --config.model.blocks='(1,1,1)' --config.train.eval_every_epochs=0
    local stage stages="representation classifier"
    [[ $config == *h2t* ]] && stages="mixup h2t"
    for stage in $stages; do set -- "$@" "--config.stages.$stage.max_steps=3"; done
  fi
  logged "$name" "$PYTHON" -m shike_jax benchmark run --config="$config" "$@" --workdir="$OUT/$name" \
    --limit="$LIMIT" --json="$OUT/$name.json"
}

# cifar PRESET IF: the configuration of a CIFAR run from one exported file.
cifar() {
  local epochs=""
  tiny && epochs=,epochs=1,classifier_epochs=1
  echo "configs/cifar_lt.py:$1,imbalance_factor=$2,file=$DATA/cifar100_if$2.npz$epochs"
}

# h2t IF: the configuration of an H2T run from one exported file.
h2t() {
  local epochs=""
  tiny && epochs=,epochs=1,classifier_epochs=1
  echo "configs/h2t_cifar.py:imbalance_factor=$1,file=$DATA/h2t_if$1.npz$epochs"
}

half=--config.dtype=bfloat16

# smoke: devices, versions and the float32 golden step of the training program, as OUT/smoke.json.
# shellcheck disable=SC2317  # called through `piece`
smoke() {
  local tests="tests/methods/test_losses.py tests/models/test_golden_shike.py"
  tiny && tests=tests/methods/test_losses.py
  # Float32 convolutions would otherwise run in TF32, which is further from the golden values than their bounds.
  # shellcheck disable=SC2086  # several files
  logged smoke timeout "$LIMIT" env JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}" JAX_DEFAULT_MATMUL_PRECISION=highest \
    "$PYTHON" -m pytest -p no:cacheprovider -k 'not float64' $tests
  "$PYTHON" - "$OUT" "$failed" <<'END' || failed=$?
import importlib.metadata, json, sys
import jax
from shike_jax.common.provenance import commit
folder, status = sys.argv[1:]
versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")}
devices = [device.device_kind for device in jax.devices()]
result = {"devices": devices, "versions": versions, "commit": commit(), "tests_status": int(status)}
result["tests"] = open(f"{folder}/smoke.log").read().splitlines()[-1]
with open(f"{folder}/smoke.json", "w") as file:
    json.dump(result, file, indent=1)
END
}

left() { echo $((${SECONDS_IN_ALL:-540} - SECONDS + began)); }

# piece RESULT NEEDS MOST COMMAND...: runs the command unless OUT/RESULT exists or fewer than NEEDS seconds are left.
# The command finds the seconds that it may take, at most MOST, as LIMIT.
missing=0
piece() {
  local result=$1 needs=$2 most=$3 limit
  shift 3
  [ -e "$OUT/$result" ] && return
  limit=$(($(left) - 15)) # what a training needs to be saved
  if ((limit < needs)); then
    echo "== $result: needs $needs s, $limit are left: skipped"
    missing=75
    return
  fi
  LIMIT=$((limit < most ? limit : most)) "$@"
  [ -e "$OUT/$result" ] || missing=75
  if [ -n "${PACKED:-}" ]; then
    tar -czf "$PACKED.part" --exclude=compiled --exclude=checkpoints -C "$OUT" . && mv "$PACKED.part" "$PACKED"
  fi
}

# run_piece NAME FILE CONFIG OPTION...: a training of `quarter`, where its data are.
run_piece() {
  local name=$1 file=$2
  shift 2
  if [ -e "$DATA/$file" ]; then piece "$name/results.json" 45 300 full "$name" "$@"; else echo "== $name: no $DATA/$file"; fi
}

quarter() {
  local seed factor
  piece smoke.json 20 60 smoke
  piece step_128.json 60 150 step step_128 --batch=128 --dtype=bfloat16 --against=torch,torch_compiled
  for seed in 0 1 2; do
    run_piece official_if100_seed$seed cifar100_if100.npz "$(cifar official 100)" $half --config.seed=$seed
  done
  run_piece official_if50_seed0 cifar100_if50.npz "$(cifar official 50)" $half
  run_piece plus cifar100_if100.npz "$(cifar plus 100)" $half
  for factor in 200 50; do
    run_piece h2t_if$factor h2t_if$factor.npz "$(h2t $factor)" $half
  done
  blocks=1,1,1,1 piece resnet50_128.json 60 180 step resnet50_128 --model=shike_resnet50 --batch=128 \
    --classes=1000 --dtype=bfloat16 --steps_per_call=5 --repeats=5 --against=torch_compiled
  piece step_512.json 45 120 step step_512 --batch=512 --dtype=bfloat16 --against=torch,torch_compiled
  piece step_2048.json 45 120 step step_2048 --batch=2048 --dtype=bfloat16 --steps_per_call=10 \
    --against=torch,torch_compiled
  echo "== quarter: $((SECONDS - began)) s"
}

case $item in
quarter)
  quarter
  ((failed == 0)) || echo "== some command ended with status $failed: see the logs in $OUT" >&2
  exit "$missing"
  ;;
1)
  logged doctor "$PYTHON" -m shike_jax doctor
  tests="tests/methods/test_losses.py tests/methods/test_optim.py tests/models/test_golden_shike.py tests/benchmark/test_benchmark.py"
  tests="$tests tests/training/test_steps_per_call.py tests/augment/test_pipeline.py"
  tiny && tests=tests/methods/test_losses.py
  # Float32 convolutions would otherwise run in TF32, which is further from the golden values than their bounds.
  # shellcheck disable=SC2086  # several files
  logged tests env JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}" JAX_DEFAULT_MATMUL_PRECISION=highest \
    "$PYTHON" -m pytest -p no:cacheprovider -m 'slow or not slow' $tests
  ;;
2)
  step step_128 --batch=128 --dtype=bfloat16 --against=plain,torch,torch_compiled
  # Kernels of the small network are short: PyTorch gains by CUDA graphs.
  step step_128_graphs --batch=128 --dtype=bfloat16 --against=torch_compiled --compile_mode=reduce-overhead
  step step_512 --batch=512 --dtype=bfloat16 --against=torch,torch_compiled
  step step_2048 --batch=2048 --dtype=bfloat16 --against=torch,torch_compiled --steps_per_call=10
  step step_128_seeds --batch=128 --dtype=bfloat16 --seeds=3
  step step_128_augmented --batch=128 --dtype=bfloat16 --augment=autoaugment_cifar --profile="$OUT/profile"
  ;;
3)
  piece=${piece:-if100_seed0}
  factor=${piece#if} factor=${factor%%_*}
  full "official_$piece" "$(cifar official "$factor")" $half --config.seed="${piece##*seed}"
  ;;
4)
  bn=(--config.stages.classifier.bn_trunk=running --config.stages.classifier.bn_experts=running)
  case ${piece:=paper} in
  paper) full paper "$(cifar paper 100)" $half ;;
  frozen_bn) full frozen_bn "$(cifar official 100)" $half "${bn[@]}" ;;
  decay_frozen) full decay_frozen "$(cifar official 100)" $half --config.stages.classifier.decay_frozen=True ;;
  float32) full float32 "$(cifar official 100)" ;;
  *) echo "item 4 has no piece $piece" >&2 && exit 2 ;;
  esac
  ;;
5)
  piece=${piece:-table4}
  if [ "$piece" = table4 ]; then
    more=()
    tiny && more=(--config.model.width=4 --config.model.blocks='(1,1,1)' --config.train.eval_every_epochs=0 --rows='plain*'
      --config.stages.representation.max_steps=3 --config.stages.classifier.max_steps=3)
    # The sweep passes SIGTERM on to its run, which saves; the next call continues.
    logged table4 timeout --preserve-status "$LIMIT" "$PYTHON" -m shike_jax sweep table4 \
      --config="$(cifar official 100)" $half --workdir="$OUT/table4" "${more[@]}"
  else
    full "$piece" "$(h2t "${piece#h2t_if}")" $half
  fi
  ;;
6)
  piece=${piece:-resnet50}
  blocks=1,1,1,1 # with TINY
  for batch in 128 256; do
    step "${piece}_$batch" --model="shike_$piece" --batch=$batch --classes=1000 --dtype=bfloat16 --steps_per_call=5 \
      --repeats=5 --against=torch_compiled
  done
  ;;
7)
  case ${piece:=experts5} in
  experts5) full experts5 "$(cifar official 100)" $half --config.model.depths='(1,2,1,2,1)' ;;
  experts6) full experts6 "$(cifar official 100)" $half --config.model.depths='(1,2,1,2,1,2)' ;;
  mixup) full mixup "$(cifar official 100)" $half --config.stages.representation.mixup=1.0 ;;
  ema) full ema "$(cifar official 100)" $half --config.stages.representation.average=ema \
    --config.stages.classifier.average=ema --config.train.eval_every_epochs=10 ;;
  plus) full plus "$(cifar plus 100)" $half ;;
  *) echo "item 7 has no piece $piece" >&2 && exit 2 ;;
  esac
  ;;
*)
  sed -n '2,/^\[ /p' launch/gpu_queue.sh | sed -n 's/^# \{0,1\}//p' >&2
  exit 2
  ;;
esac
exit "$failed"
