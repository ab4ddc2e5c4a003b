# The job itself: what to train. Every template in this directory sources this file; edit it, or name another in JOB.

CHECKOUT=${CHECKOUT:?set CHECKOUT to your Megatron checkout}
RUN=${RUN:?set RUN to the directory of the run, on a filesystem that all nodes share}

# Your blend, as before: weights and prefixes. ADO starts from these weights.
DATA=(--data-path 0.5 "$RUN/data/web_text_document" 0.3 "$RUN/data/code_text_document" 0.2 "$RUN/data/books_text_document")

MODEL=(--num-layers 24 --hidden-size 2048 --num-attention-heads 16 --seq-length 2048 --max-position-embeddings 2048
    --micro-batch-size 4 --global-batch-size 512 --train-iters 60000 --lr 3e-4 --min-lr 3e-5 --lr-decay-style cosine
    --lr-warmup-iters 500 --weight-decay 0.1 --clip-grad 1.0 --bf16 --split 990,8,2 --num-workers 2
    --tokenizer-type GPTSentencePieceTokenizer --tokenizer-model "$RUN/data/tokenizer.model"
    --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2
    --log-interval 10 --eval-interval 1000 --eval-iters 10 --save "$RUN" --save-interval 1000
    --exit-signal-handler) # SIGTERM to a rank: all save after the step, and end (slurm.sbatch, before the time is up)

# Resume: the same command. --load is ignored while $RUN holds no checkpoint; with one, the mixture goes on from the
# sidecar beside it ($RUN/ado/state_N.ado), and the data with it, to the sample.
RESUME=(--load "$RUN")

# Ours. By default the weights stay and laws are fitted beside them; --ado-policy ado lets the mixture move, --ado-off
# takes ADO out of the job again.
ADO=(--ado-refit-interval 1000)

# Megatron-DeepSpeed alone:
DEEPSPEED=(--deepspeed --deepspeed_config "${DS_CONFIG:-$(dirname "${BASH_SOURCE[0]}")/ds_config.json}" --zero-stage 1 --data-impl mmap)
