#!/usr/bin/env bash
# A cheap rehearsal before a cluster job: your host, your blend files and your tokenizer, a shrunken model, a few steps, no GPU.
#
#   launch/cpu_smoke.sh CHECKOUT <the arguments of your pretrain_gpt.py> [--ado-…]
#
# Environment: RANKS (1), STEPS (20), OUT (a new temporary directory), PYTHON (python3), and the parallel sizes TP, PP (1).
# What it changes in your arguments: the model's size, batch, iterations, precision, fused kernels and directories (the lists
# below). What it keeps: data, blend, split, tokenizer, seed, workers, and everything of ADO. It is no measure of speed.
# The host itself is made to run on a CPU by ado_megatron/hosts/cpu/, which ADO_CPU=1 switches on.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
checkout=$1
shift
[ -f "$checkout/pretrain_gpt.py" ] || { echo "cpu_smoke: $checkout holds no pretrain_gpt.py; name a checkout of a host" >&2; exit 2; }
python=${PYTHON:-python3} ranks=${RANKS:-1} steps=${STEPS:-20} tp=${TP:-1} pp=${PP:-1}
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"

kept=()
while [ $# -gt 0 ]; do
    case $1 in
    # switches that need a GPU, or that a small model cannot take
    --bf16 | --fp16 | --fp8* | --use-flash-attn* | --sequence-parallel | --use-te* | --tp-comm-overlap* | --overlap-* | \
        --swiglu-fusion | --cross-entropy-loss-fusion | --recompute-activations | --group-query-attention | --deepspeed | \
        --use-cpu-initialization | --no-pipeline-parallel | --deepspeed-activation-checkpointing | --checkpoint-activations)
        shift
        ;;
    # options with a value that this script sets, or that belong to the size of the model
    --num-layers | --hidden-size | --ffn-hidden-size | --num-attention-heads | --num-query-groups | --num-key-value-heads | \
        --kv-channels | --seq-length | --max-position-embeddings | --micro-batch-size | --global-batch-size | --train-iters | \
        --train-samples | --train-tokens | --lr-decay-iters | --lr-decay-samples | --lr-decay-tokens | --lr-warmup-iters | \
        --lr-warmup-samples | --lr-warmup-fraction | --rampup-batch-size | --save | --load | --save-interval | --exit-interval | \
        --eval-interval | --eval-iters | --log-interval | --tensorboard-dir | --transformer-impl | --attention-backend | \
        --tensor-model-parallel-size | --pipeline-model-parallel-size | --num-layers-per-virtual-pipeline-stage | \
        --context-parallel-size | --expert-model-parallel-size | --distributed-backend | --deepspeed_config | --zero-stage | \
        --data-cache-path | --recompute-granularity | --recompute-method | --recompute-num-layers | --wandb-project | \
        --wandb-exp-name | --ds-sequence-parallel-size)
        shift
        while [ $# -gt 0 ] && [[ $1 != --* ]]; do shift; done
        ;;
    *)
        kept+=("$1")
        shift
        ;;
    esac
done

batch=$((4 * ranks))
size=(--num-layers $((2 * pp)) --hidden-size 64 --num-attention-heads 4 --seq-length 64 --max-position-embeddings 64
    --micro-batch-size 1 --global-batch-size "$batch" --train-iters "$steps" --eval-iters 1 --eval-interval "$steps"
    --log-interval 1 --save "$out" --save-interval "$steps" --data-cache-path "$out/cache"
    --tensor-model-parallel-size "$tp" --pipeline-model-parallel-size "$pp"
    --distributed-backend gloo --no-gradient-accumulation-fusion)
here=$(cd "$(dirname "$0")/.." && pwd)
export ADO_CPU=1 OMP_NUM_THREADS=1
# in a clone; what pip installed is found without it, and its directory would hide other modules
[ ! -d "$here/ado_megatron" ] || export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
# a host builds its C++ index with `python3`: it must be the interpreter that runs it
PATH="$(dirname "$(command -v "$python")"):$PATH"

if [ -f "$checkout/megatron/training.py" ]; then # Megatron-DeepSpeed
    export DS_ACCELERATOR=cpu
    printf '{"train_micro_batch_size_per_gpu": 1, "train_batch_size": %d, "steps_per_print": 1000000}\n' "$batch" >"$out/ds.json"
    host=(--deepspeed --deepspeed_config "$out/ds.json" --data-impl mmap)
    [ "$pp" -gt 1 ] || host+=(--no-pipeline-parallel)
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    launcher=(-m deepspeed.launcher.runner --num_gpus "$ranks" --master_port "$port" --module)
else # Megatron-LM
    host=(--transformer-impl local --no-persist-layer-norm --no-bias-swiglu-fusion --no-bias-gelu-fusion
        --no-bias-dropout-fusion --no-masked-softmax-fusion --no-rope-fusion --use-cpu-initialization)
    launcher=(-m torch.distributed.run --standalone --nproc_per_node "$ranks" -m)
fi
echo "cpu_smoke: $ranks ranks, $steps steps, results in $out"
exec "$python" "${launcher[@]}" ado_megatron.run "$checkout/pretrain_gpt.py" "${kept[@]}" "${size[@]}" "${host[@]}"
