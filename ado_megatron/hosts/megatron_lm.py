"""Megatron-LM (core_v0.16.1 and main d98e8a6): where its training loop is hooked. No file of the checkout changes.

| what                | hook                                                                                        |
|---------------------|---------------------------------------------------------------------------------------------|
| train dataset       | BlendedMegatronDatasetBuilder.build: the train split becomes ours, validation and test stock |
| mixer, resume       | training.build_train_valid_test_data_loaders, called by all ranks after the checkpoint load |
| a batch drawn       | RerunDataIterator.__next__, also on a replay                                                |
| attempt of a step   | RerunStateMachine.should_run_forward_backward                                               |
| loss                | loss_func in the globals of the script's forward_step                                        |
| step end            | training.train_step, training.dummy_train_step (iterations to skip)                          |
| checkpoint          | training.save_checkpoint                                                                     |
| log line            | training.training_log                                                                        |
| end of the run      | training.pretrain                                                                            |
"""

from __future__ import annotations

import functools
import importlib

import torch

from ado_megatron.errors import UserError
from ado_megatron.hosts.hooks import HookPoint, script_globals
from ado_megatron.hosts.session import RunFacts, Session

NAME = "megatron_lm"
TRAINING = "megatron.training.training"
BUILDER = "megatron.core.datasets.blended_megatron_dataset_builder"
RERUN = "megatron.core.rerun_state_machine"
HOOK_POINTS = (
    HookPoint(TRAINING, "pretrain", ()),
    HookPoint(TRAINING, "train", ("forward_step_func", "model", "optimizer", "opt_param_scheduler")),
    HookPoint(TRAINING, "train_step", ("forward_step_func", "data_iterator", "model", "optimizer")),
    HookPoint(TRAINING, "dummy_train_step", ("data_iterator",)),
    HookPoint(TRAINING, "training_log", ("loss_dict", "total_loss_dict", "learning_rate", "iteration")),
    HookPoint(TRAINING, "save_checkpoint", ("iteration", "model")),
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


def install(session: Session) -> None:
    """Wire the session to the imported host. HOOK_POINTS must have been checked."""
    training, builder = importlib.import_module(TRAINING), importlib.import_module(BUILDER)
    _hook_data(session, training, builder.BlendedMegatronDatasetBuilder)
    _hook_batches(session, importlib.import_module(RERUN))
    _hook_steps(session, training)
    _hook_run(session, training)


# ---------------------------------------------------------------- data


def _exclusions(args) -> list[tuple[bool, str]]:
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


def _hook_data(session: Session, training, builder) -> None:
    stock_loaders, stock_build = training.build_train_valid_test_data_loaders, builder.build

    def build_train_valid_test_data_loaders(provider):
        for excluded, sentence in _exclusions(training.get_args()):
            if excluded:
                session.refuse(sentence)
        loaders = stock_loaders(provider)
        session.open(_facts(training))
        return loaders

    def build(self):
        if session.silent or self.config.mock:
            return stock_build(self)
        if self.cls.__name__ not in ("GPTDataset", "GPTFIMDataset"):
            session.refuse(f"datasets of type {self.cls.__name__} are not served; GPTDataset and GPTFIMDataset are")
            return stock_build(self)
        blend = _train_blend(self.config)
        if blend is None:
            return stock_build(self)
        if len(blend[0]) == 1:
            session.refuse("the train data is a single prefix, so there is nothing to mix; give two or more prefixes")
            return stock_build(self)
        return _build_adaptive(session, self, stock_build, *blend) if session.adaptive else _build_shadow(
            session, self, stock_build, blend[0]
        )

    training.build_train_valid_test_data_loaders, builder.build = build_train_valid_test_data_loaders, build


def _build_shadow(session, builder, stock_build, prefixes):
    splits = stock_build(builder)
    if splits[0] is not None:
        splits[0] = session.shadow_set(splits[0], prefixes)
    return splits


def _build_adaptive(session, builder, stock_build, prefixes, weights, split):
    """One-epoch train datasets by the host's own machinery, collective as that is; the other splits as in stock."""
    config = builder.config
    one_epoch = [[None] * 3 for _ in prefixes]
    datasets = builder._build_megatron_datasets_parallel(prefixes, [split, None, None], one_epoch)[0]
    with _without_train(config):
        splits = stock_build(builder)
    if datasets[0] is not None:  # this rank reads
        empty = [prefix for prefix, dataset in zip(prefixes, datasets, strict=True) if len(dataset) == 0]
        if empty:
            raise UserError(f"{', '.join(empty)}: the train split holds less than one sample; leave the prefix out")
        weights = [len(dataset) for dataset in datasets] if weights is None else weights
        splits[0] = session.train_set(datasets, weights, prefixes, builder.sizes[0], "dataset_id")
    return splits


class _without_train:
    """The config with its train split hidden, so that the stock builder lays out no static train index."""

    def __init__(self, config):
        self._config = config
        self._name = "split_matrix" if config.blend is not None else "blend_per_split"

    def __enter__(self):
        self._kept = getattr(self._config, self._name)
        setattr(self._config, self._name, [None, *self._kept[1:]])

    def __exit__(self, *exc):
        setattr(self._config, self._name, self._kept)


def _facts(training) -> RunFacts:
    from megatron.core import parallel_state as mpu

    args = training.get_args()
    contributes = mpu.is_pipeline_last_stage(ignore_virtual=True) and mpu.get_tensor_model_parallel_rank() == 0
    return RunFacts(
        total_samples=args.train_samples or args.train_iters * args.global_batch_size,
        block_size=args.global_batch_size, micro_batch=args.micro_batch_size, dp=mpu.get_data_parallel_world_size(),
        num_workers=args.num_workers, iteration=args.iteration, consumed_samples=args.consumed_train_samples,
        save=args.save, load=args.load, tensorboard=args.tensorboard_dir, log_interval=args.log_interval,
        contributes=contributes, device=torch.cuda.current_device(),
    )  # fmt: skip


# ---------------------------------------------------------------- batches, losses, steps


def _hook_batches(session: Session, rerun) -> None:
    iterator, machine = rerun.RerunDataIterator, rerun.RerunStateMachine
    stock_next, stock_should_run = iterator.__next__, machine.should_run_forward_backward

    def __next__(self):
        batch = session.drawn(stock_next(self))
        if isinstance(batch, dict) and "dataset_id" in batch:
            # no stock code reads it, and under context parallelism main trips over it
            batch = {name: value for name, value in batch.items() if name != "dataset_id"}
        return batch

    def should_run_forward_backward(self, data_iterator):
        run = stock_should_run(self, data_iterator)
        if run:
            session.begin()
        return run

    iterator.__next__, machine.should_run_forward_backward = __next__, should_run_forward_backward


def _hook_loss(session: Session, forward_step) -> None:
    names = script_globals(forward_step)
    stock = names.get("loss_func")
    if stock is None:
        raise UserError("the script has no function loss_func beside its forward_step, where the losses are measured")
    if getattr(stock, "ado_measures", False):
        return

    @functools.wraps(stock)
    def loss_func(loss_mask, output_tensor, *args, **kwargs):
        session.measure(output_tensor, loss_mask)
        return stock(loss_mask, output_tensor, *args, **kwargs)

    loss_func.ado_measures = True
    names["loss_func"] = loss_func


def _batch_samples(training) -> int:
    args = training.get_args()
    return training.mpu.get_data_parallel_world_size() * args.micro_batch_size * training.get_num_microbatches()


def _hook_steps(session: Session, training) -> None:
    stock_train, stock_step, stock_dummy = training.train, training.train_step, training.dummy_train_step

    def train(forward_step_func, *args, **kwargs):
        if session.mixer is not None:
            _hook_loss(session, forward_step_func)
        return stock_train(forward_step_func, *args, **kwargs)

    def train_step(*args, **kwargs):
        result = stock_step(*args, **kwargs)
        skipped, leave = bool(result[1]), bool(result[3])
        if not leave:  # else the step was broken off, to be run again by a resumed run
            session.end(training.get_args().consumed_train_samples + _batch_samples(training), skipped)
        return result

    def dummy_train_step(data_iterator):
        stock_dummy(data_iterator)
        session.end(training.get_args().consumed_train_samples + _batch_samples(training), True)

    training.train, training.train_step, training.dummy_train_step = train, train_step, dummy_train_step


def _hook_run(session: Session, training) -> None:
    stock_save, stock_log, stock_pretrain = training.save_checkpoint, training.training_log, training.pretrain

    def save_checkpoint(iteration, *args, **kwargs):
        settings = training.get_args()
        session.save(settings.save, iteration, settings.consumed_train_samples)
        return stock_save(iteration, *args, **kwargs)

    def training_log(loss_dict, total_loss_dict, learning_rate, iteration, *args, **kwargs):
        result = stock_log(loss_dict, total_loss_dict, learning_rate, iteration, *args, **kwargs)
        settings = training.get_args()
        if session.mixer is not None and iteration % settings.log_interval == 0:
            session.log_line(settings.consumed_train_samples)
            _write_weights(session, training, iteration)
        return result

    def pretrain(*args, **kwargs):
        try:
            result = stock_pretrain(*args, **kwargs)
        except SystemExit as leaving:  # how the training loop ends early, on all ranks alike
            if not leaving.code:
                session.close()
            raise
        session.close()
        return result

    training.save_checkpoint, training.training_log, training.pretrain = save_checkpoint, training_log, pretrain
    importlib.import_module("megatron.training").pretrain = pretrain


def _write_weights(session: Session, training, iteration: int) -> None:
    """The weights in the host's TensorBoard and W&B, on the rank that has them (the last)."""
    writer, wandb = training.get_tensorboard_writer(), training.get_wandb_writer()
    if writer is None and not wandb:
        return
    scalars = {f"ado/weight/{n}": w for n, w in session.weights(training.get_args().consumed_train_samples).items()}
    for name, value in scalars.items():
        if writer is not None:
            writer.add_scalar(name, value, iteration)
    if wandb:
        wandb.log(scalars, iteration)
