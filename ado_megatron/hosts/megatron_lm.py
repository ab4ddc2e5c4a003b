"""Megatron-LM (core_v0.16.1 and main d98e8a6): where its training loop is hooked. No file of the checkout changes.

| what                | hook                                                                                        |
|---------------------|---------------------------------------------------------------------------------------------|
| train dataset       | BlendedMegatronDatasetBuilder.build: the train split becomes ours, validation and test stock |
| mixer, resume       | training.build_train_valid_test_data_loaders, called by all ranks after the checkpoint load |
| a batch drawn       | RerunDataIterator.__next__, also on a replay                                                |
| attempt of a step   | RerunStateMachine.should_run_forward_backward                                               |
| loss                | loss_func in the globals of the script's forward_step                                        |
| step end            | training.train_step, training.dummy_train_step (iterations to skip)                          |
| checkpoint          | training.save_checkpoint; checkpointing.check_checkpoint_args                                |
| evaluation          | training.evaluate_and_print_results; its batches and losses as those of a step               |
| log line            | training.training_log                                                                        |
| end of the run      | training.pretrain                                                                            |
"""

from __future__ import annotations

import functools

import torch

from ado_megatron.errors import UserError
from ado_megatron.hosts.hooks import HookPoint, Host, Wrapper, common
from ado_megatron.hosts.session import RunFacts, Session
from ado_megatron.hosts.takeover import StockBlend, layout_facts, weights_at

NAME = "megatron_lm"
TRAINING, CHECKPOINTING = "megatron.training.training", "megatron.training.checkpointing"
BUILDER = "megatron.core.datasets.blended_megatron_dataset_builder"
RERUN = "megatron.core.rerun_state_machine"
INDICES = ("document_index", "sample_index", "shuffle_index")  # of a GPTDataset: what its samples are
HOOK_POINTS = (
    HookPoint(TRAINING, "pretrain", ()),
    HookPoint(TRAINING, "train", ("forward_step_func", "model", "optimizer", "opt_param_scheduler")),
    HookPoint(TRAINING, "train_step", ("forward_step_func", "data_iterator", "model", "optimizer")),
    HookPoint(TRAINING, "dummy_train_step", ("data_iterator",)),
    HookPoint(TRAINING, "training_log", ("loss_dict", "total_loss_dict", "learning_rate", "iteration")),
    HookPoint(TRAINING, "save_checkpoint", ("iteration", "model")),
    HookPoint(TRAINING, "evaluate_and_print_results", ("prefix", "forward_step_func", "data_iterator", "model",
                                                       "iteration")),
    HookPoint(CHECKPOINTING, "check_checkpoint_args", ("checkpoint_args",)),
    HookPoint(TRAINING, "build_train_valid_test_data_loaders", ("build_train_valid_test_datasets_provider",)),
    HookPoint(BUILDER, "BlendedMegatronDatasetBuilder.build", ("self",)),
    HookPoint(
        BUILDER, "BlendedMegatronDatasetBuilder._build_megatron_datasets_parallel",
        ("self", "prefixes", "split", "sizes_per_dataset"),
    ),
    HookPoint(RERUN, "RerunDataIterator.__next__", ("self",)),
    HookPoint(RERUN, "RerunStateMachine.should_run_forward_backward", ("self", "data_iterator")),
    HookPoint("megatron.core.parallel_state", "is_pipeline_last_stage", ("ignore_virtual",)),
)  # fmt: skip


def wrappers(session: Session) -> dict[str, Wrapper]:
    """What each function of the host becomes: "module:name" → (the host's function → the hooked one)."""
    builder, rerun = f"{BUILDER}:BlendedMegatronDatasetBuilder", f"{RERUN}:Rerun"
    return {
        f"{builder}.build": functools.partial(_build, session),
        f"{rerun}DataIterator.__next__": functools.partial(_next, session),
        f"{rerun}StateMachine.should_run_forward_backward": functools.partial(_should_run, session),
        f"{TRAINING}:train_step": functools.partial(_train_step, session),
        f"{TRAINING}:dummy_train_step": functools.partial(_dummy_train_step, session),
    } | common(session, Host(TRAINING, CHECKPOINTING, get_args, exclusions, _facts, _loss_func, write))


def get_args():
    """The host's arguments."""
    from megatron.training.global_vars import get_args

    return get_args()


# ---------------------------------------------------------------- data


def exclusions(args) -> list[tuple[bool, str]]:
    """(it is so, the sentence) for everything of the host that an adaptive blend cannot serve."""

    def on(name):
        return bool(getattr(args, name, False))

    return [
        (on("mock_data"), "--mock-data has no domains to mix; give --data-path with weights and prefixes"),
        (on("phase_transition_iterations"), "--phase-transition-iterations restarts the data in every phase; leave it "
         "out: the mixture changes while the run goes on"),
        (args.dataloader_type != "single", f"--dataloader-type {args.dataloader_type} does not draw sample indices in "
         "order; use --dataloader-type single"),
        (on("hybrid_context_parallel"), "--hybrid-context-parallel reorders the samples of a batch; leave it out"),
        (on("sft"), "--sft packs samples of several domains into one sequence; leave it out"),
        (on("perform_rl_step"), "--perform-rl-step generates its own batches; leave it out"),
        (on("retro_add_retriever"), "retro datasets are not served; train without --retro-add-retriever"),
        (on("decrease_batch_size_if_needed"), "--decrease-batch-size-if-needed drops samples of a batch; leave it out"),
    ]  # fmt: skip


def _train_blend(config):
    """(prefixes, weights or None, train part of the split) of the train split, or None if the host has none."""
    if config.blend is not None:
        return (*config.blend, config.split_matrix[0]) if config.split_matrix[0] is not None else None
    blend = config.blend_per_split[0] if config.blend_per_split is not None else None
    return None if blend is None else (*blend, (0.0, 1.0))


def _eval_prefixes(config, split: int):
    """The prefixes of the validation (1) or test (2) blend; none if the host has no such split."""
    if config.blend is not None:
        return config.blend[0]
    blend = config.blend_per_split[split] if config.blend_per_split is not None else None
    return [] if blend is None else blend[0]


def _build(session: Session, stock):
    def build(self):
        splits = build_train(self)
        for split, kind in ((1, "validation"), (2, "test")):
            splits[split] = session.evaluated_set(kind, splits[split], _eval_prefixes(self.config, split))
        return splits

    def build_train(self):
        if session.silent or self.config.mock:
            return stock(self)
        if self.cls.__name__ not in ("GPTDataset", "GPTFIMDataset"):
            session.refuse(f"datasets of type {self.cls.__name__} are not served; GPTDataset and GPTFIMDataset are")
            return stock(self)
        blend = _train_blend(self.config)
        if blend is None:
            return stock(self)
        if len(blend[0]) == 1:
            session.refuse("the train data is a single prefix, so there is nothing to mix; give two or more prefixes")
            return stock(self)
        if session.adaptive:
            return _build_adaptive(session, self, stock, *blend)
        return _build_shadow(session, self, stock, blend[0])

    return build


def _build_shadow(session, builder, stock_build, prefixes):
    splits = stock_build(builder)
    if splits[0] is not None:
        splits[0] = session.shadow_set(splits[0], prefixes, INDICES[0])
    return splits


def _build_adaptive(session, builder, stock_build, prefixes, weights, split):
    """One-epoch train datasets by the host's own machinery, collective as that is; the other splits as in stock."""
    config = builder.config
    one_epoch = [[None] * 3 for _ in prefixes]
    datasets = builder._build_megatron_datasets_parallel(prefixes, [split, None, None], one_epoch)[0]
    stock = _stock_train(session, builder, stock_build, prefixes, weights) if session.needs_stock else None
    with _splits(config, lambda split: split != 0):
        splits = stock_build(builder)
    if datasets[0] is not None:  # this rank reads
        empty = [prefix for prefix, dataset in zip(prefixes, datasets, strict=True) if len(dataset) == 0]
        if empty:
            raise UserError(f"{', '.join(empty)}: the train split holds less than one sample; leave the prefix out")
        weights = [len(dataset) for dataset in datasets] if weights is None else weights
        if stock is not None:
            stock = StockBlend.of(stock[0], datasets, INDICES, prefixes, *stock[1:])
        splits[0] = session.train_set(datasets, weights, prefixes, builder.sizes[0], "dataset_id", stock)
    return splits


def _stock_train(session, builder, stock_build, prefixes, weights):
    """(the host's own train blend, its weights, its size), as the run that drew from it had it."""
    config, sizes, blend = builder.config, builder.sizes, builder.config.blend
    size = sizes[0]
    with _splits(config, lambda split: split == 0):
        if session.origin is not None:
            size, weights = session.origin["size"], weights_at(session.origin, prefixes)
            builder.sizes = [size, *sizes[1:]]
            if blend is not None:
                config.blend = (prefixes, weights)
            else:
                config.blend_per_split[0] = (prefixes, weights)
        try:
            train = stock_build(builder)[0]
        finally:
            builder.sizes, config.blend = sizes, blend
    return train, [1.0] * len(prefixes) if weights is None else weights, size


class _splits:
    """The config with only some of its splits; of the others the stock builder lays out no index."""

    def __init__(self, config, keep):
        self._config, self._keep = config, keep
        self._name = "split_matrix" if config.blend is not None else "blend_per_split"

    def __enter__(self):
        self._all = getattr(self._config, self._name)
        setattr(self._config, self._name, [part if self._keep(n) else None for n, part in enumerate(self._all)])

    def __exit__(self, *exc):
        setattr(self._config, self._name, self._all)


def _facts() -> RunFacts:
    from megatron.core import parallel_state as mpu

    args = get_args()
    contributes = mpu.is_pipeline_last_stage(ignore_virtual=True) and mpu.get_tensor_model_parallel_rank() == 0
    return RunFacts(
        total_samples=args.train_samples or args.train_iters * args.global_batch_size,
        block_size=_final_batch(args), micro_batch=args.micro_batch_size, dp=mpu.get_data_parallel_world_size(),
        num_workers=args.num_workers, iteration=args.iteration, consumed_samples=args.consumed_train_samples,
        save=args.save, load=args.load, tensorboard=args.tensorboard_dir, log_interval=args.log_interval,
        contributes=contributes, device=torch.cuda.current_device(),
        layout=layout_facts(args),
    )  # fmt: skip


def _final_batch(args) -> int:
    """The global batch, under main's --step-batch-size-schedule the last one."""
    from megatron.core import num_microbatches_calculator as module

    if getattr(args, "step_batch_size_schedule", None) is None:
        return args.global_batch_size
    return module._GLOBAL_NUM_MICROBATCHES_CALCULATOR.global_batch_size


# ---------------------------------------------------------------- batches, losses, steps


def _next(session: Session, stock):
    def __next__(self):
        batch = session.drawn(stock(self))
        if isinstance(batch, dict) and "dataset_id" in batch:
            # no stock code reads it, and under context parallelism main trips over it
            batch = {name: value for name, value in batch.items() if name != "dataset_id"}
        return batch

    return __next__


def _should_run(session: Session, stock):
    def should_run_forward_backward(self, data_iterator):
        run = stock(self, data_iterator)
        if run:
            session.begin()
        return run

    return should_run_forward_backward


def _loss_func(session: Session, stock):
    @functools.wraps(stock)
    def loss_func(loss_mask, output_tensor, *args, **kwargs):
        session.measure(output_tensor, loss_mask)
        return stock(loss_mask, output_tensor, *args, **kwargs)

    loss_func.ado_measures = True
    return loss_func


def _batch_samples() -> int:
    from megatron.core import num_microbatches_calculator, parallel_state

    args, micro_batches = get_args(), num_microbatches_calculator.get_num_microbatches()
    return parallel_state.get_data_parallel_world_size() * args.micro_batch_size * micro_batches


def _train_step(session: Session, stock):
    def train_step(*args, **kwargs):
        result = stock(*args, **kwargs)
        skipped, leave = bool(result[1]), bool(result[3])
        if not leave:  # else the step was broken off, to be run again by a resumed run
            session.end(get_args().consumed_train_samples + _batch_samples(), skipped)
        return result

    return train_step


def _dummy_train_step(session: Session, stock):
    def dummy_train_step(data_iterator):
        stock(data_iterator)
        session.end(get_args().consumed_train_samples + _batch_samples(), True)

    return dummy_train_step


def write(scalars: dict[str, float], iteration: int) -> None:
    """Scalars into the host's TensorBoard and W&B, on the rank that has them (the last)."""
    from megatron.training.global_vars import get_tensorboard_writer, get_wandb_writer

    writer, wandb = get_tensorboard_writer(), get_wandb_writer()
    if writer is not None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, iteration)
    if wandb:
        wandb.log(scalars, iteration)
