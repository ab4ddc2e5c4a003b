"""A training script as a user of Megatron-Bridge writes it. It takes the options of host_runs.py as Megatron-LM names
them, and passes over those that Bridge has no counterpart for."""

import argparse

import torch
from megatron.bridge.models.gpt_provider import GPTModelProvider, local_layer_spec
from megatron.bridge.recipes.gpt.vanilla_gpt import vanilla_gpt_pretrain_config
from megatron.bridge.training import config as bridge
from megatron.bridge.training.gpt_step import forward_step
from megatron.bridge.training.pretrain import pretrain
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig


def arguments():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("num-layers", "hidden-size", "num-attention-heads", "seq-length", "vocab-size", "micro-batch-size",
                 "global-batch-size", "train-iters", "log-interval", "save-interval", "eval-iters", "eval-interval"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("tensor-model", "pipeline-model", "context"):
        parser.add_argument(f"--{name}-parallel-size", type=int, default=1)
    parser.add_argument("--num-virtual-stages-per-pipeline-rank", type=int)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--exit-interval", type=int)
    parser.add_argument("--iterations-to-skip", type=int, nargs="*", default=[])
    parser.add_argument("--rampup-batch-size", type=int, nargs=3)
    parser.add_argument("--lr", type=float, required=True)
    for name in ("exit-signal-handler", "use-distributed-optimizer", "recipe"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--dataloader-type", default="single")
    # the data in each of Bridge's three forms
    parser.add_argument("--data-path", nargs="+")
    parser.add_argument("--blend", nargs="+")
    parser.add_argument("--train-data-path", nargs="+")
    parser.add_argument("--valid-data-path", nargs="+")
    for name in ("split", "data-cache-path", "save", "load", "tensorboard-dir", "mlflow-experiment"):
        parser.add_argument(f"--{name}")
    return parser.parse_known_args()[0]


def in_two(words):
    """Weights and prefixes in turn → (prefixes, weights), as Bridge's blends have it."""
    return words and (words[1::2], [float(weight) for weight in words[::2]])


def configuration(args):
    model = GPTModelProvider(
        num_layers=args.num_layers, hidden_size=args.hidden_size, num_attention_heads=args.num_attention_heads,
        seq_length=args.seq_length, ffn_hidden_size=4 * args.hidden_size, transformer_layer_spec=local_layer_spec,
        position_embedding_type="rope", add_bias_linear=False, attention_dropout=0.0, hidden_dropout=0.0,
        share_embeddings_and_output_weights=False, pipeline_dtype=torch.float32, use_cpu_initialization=True,
        tensor_model_parallel_size=args.tensor_model_parallel_size,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=args.num_virtual_stages_per_pipeline_rank,
        context_parallel_size=args.context_parallel_size,
        # what needs a GPU's kernels
        gradient_accumulation_fusion=False, masked_softmax_fusion=False, bias_activation_fusion=False,
        bias_dropout_fusion=False, persist_layer_norm=False, apply_rope_fusion=False, cross_entropy_loss_fusion=False,
    )  # fmt: skip
    optimizer = OptimizerConfig(
        optimizer="adam", lr=args.lr, min_lr=args.lr, use_distributed_optimizer=args.use_distributed_optimizer
    )
    valid = in_two(args.valid_data_path)
    dataset = bridge.GPTDatasetConfig(
        random_seed=1234, seq_length=args.seq_length, data_path=args.data_path, blend=in_two(args.blend),
        blend_per_split=args.train_data_path and [in_two(args.train_data_path), valid, valid],
        split=args.split, path_to_cache=args.data_cache_path, dataloader_type=args.dataloader_type,
        num_workers=args.num_workers, reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
    )  # fmt: skip
    return bridge.ConfigContainer(
        model=model, optimizer=optimizer, dataset=dataset,
        train=bridge.TrainingConfig(
            train_iters=args.train_iters, global_batch_size=args.global_batch_size,
            micro_batch_size=args.micro_batch_size, exit_interval=args.exit_interval,
            iterations_to_skip=args.iterations_to_skip, rampup_batch_size=args.rampup_batch_size,
            exit_signal_handler=args.exit_signal_handler,
        ),
        validation=bridge.ValidationConfig(eval_interval=args.eval_interval, eval_iters=args.eval_iters),
        scheduler=bridge.SchedulerConfig(
            lr_decay_style="constant", lr_warmup_iters=0, lr_decay_iters=args.train_iters,
            start_weight_decay=0.01, end_weight_decay=0.01,
        ),
        ddp=DistributedDataParallelConfig(use_distributed_optimizer=args.use_distributed_optimizer),
        logger=bridge.LoggerConfig(
            log_interval=args.log_interval, tensorboard_dir=args.tensorboard_dir,
            mlflow_experiment=args.mlflow_experiment, mlflow_run_name=args.mlflow_experiment and "one",
        ),
        tokenizer=bridge.TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=args.vocab_size),
        checkpoint=bridge.CheckpointConfig(save=args.save, load=args.load, save_interval=args.save_interval),
        rng=bridge.RNGConfig(seed=1234), dist=bridge.DistributedInitConfig(distributed_backend="gloo"),
    )  # fmt: skip


def recipe(args):
    """A recipe of Bridge, changed as a user changes it, and its model as far as a CPU asks for that."""
    changed, own = vanilla_gpt_pretrain_config(), configuration(args)
    for part in ("model", "optimizer", "scheduler", "tokenizer", "dist"):
        setattr(changed, part, getattr(own, part))
    changed.mixed_precision = None
    for part, names in {
        "dataset": ("data_path", "split", "path_to_cache", "seq_length", "num_workers"),
        "train": ("train_iters", "global_batch_size", "micro_batch_size", "iterations_to_skip"),
        "validation": ("eval_interval", "eval_iters"), "checkpoint": ("save", "load", "save_interval"),
        "logger": ("log_interval", "tensorboard_dir"),
    }.items():  # fmt: skip
        for name in names:
            setattr(getattr(changed, part), name, getattr(getattr(own, part), name))
    return changed


if __name__ == "__main__":
    options = arguments()
    pretrain(recipe(options) if options.recipe else configuration(options), forward_step)
