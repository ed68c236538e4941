#!/usr/bin/env bash
# The rows of docs/methods_cifar.md on CIFAR100-LT, imbalance factor 100: one small ResNet, 20 + 8 epochs, one after the other.
#
#   bash launch/methods_runs.sh WORKDIR [SEED] [ROW...]
#
# WORKDIR/ROW/seedN holds each run; finished ones are skipped, and unfinished ones continue. Without ROW all rows run.
# Variables: FILE (an exported cifar100_if100.npz; without it TensorFlow reads CIFAR-100), PYTHON (default python3),
# DRY_RUN=1 (print the commands only). Afterwards: python docs/methods_table.py WORKDIR
[ -n "${BASH_VERSION:-}" ] || { echo "$0: run it with bash" >&2; exit 2; }
set -euo pipefail
workdir=${1:?usage: bash launch/methods_runs.sh WORKDIR [SEED] [ROW...]} seed=${2:-0}
[[ $workdir == /* || $workdir == *://* ]] || workdir=$PWD/$workdir
[[ ${FILE:-/} == /* ]] || FILE=$PWD/$FILE
shift $(($# < 2 ? $# : 2))
cd "$(dirname "$0")/.."

arguments=imbalance_factor=100,epochs=20,classifier_epochs=8${FILE:+,file=$FILE}
declare -A config flags width
for method in ce focal class_balanced ldam_drw logit_adjusted balanced_softmax crt lws balpoe; do
  config[$method]=configs/baselines_cifar.py:$method,$arguments
done
config[shike]=configs/cifar_lt.py:official,$arguments
config[plus]=configs/cifar_lt.py:plus,$arguments
# SHIKE with one thing more.
for row in shike_four_experts shike_mixup shike_ema; do config[$row]=${config[shike]}; done
flags[shike_four_experts]="--config.model.depths=(1,2,1,2)"
flags[shike_mixup]="--config.stages.representation.mixup=0.2"
for name in representation classifier; do
  flags[shike_ema]+=" --config.stages.$name.average=ema --config.stages.$name.average_decay=0.99"
done
# Single networks with about the work of the experts: of BalPoE's three, and of SHIKE's three with fusion.
config[balanced_softmax_wide10]=${config[balanced_softmax]}
config[balanced_softmax_wide12]=${config[balanced_softmax]}
width[balanced_softmax_wide10]=10
width[balanced_softmax_wide12]=12

[[ $# -gt 0 ]] || set -- ce balanced_softmax shike crt balpoe ldam_drw balanced_softmax_wide12 class_balanced focal lws \
  logit_adjusted balanced_softmax_wide10 plus shike_four_experts shike_mixup shike_ema
for row; do
  [[ -n ${config[$row]:-} ]] || { echo "row '$row': expected one of ${!config[*]}" >&2 && exit 2; }
done
for row; do
  [[ -e $workdir/$row/seed$seed/results.json ]] && continue
  read -ra more <<<"${flags[$row]:-}"
  ${DRY_RUN:+echo} "${PYTHON:-python3}" -m shike_jax train --config="${config[$row]}" --config.model.blocks='(1,1,1)' \
    --config.model.width="${width[$row]:-8}" "${more[@]}" --config.train.eval_every_epochs=0 --config.seed="$seed" \
    --workdir="$workdir/$row/seed$seed"
done
