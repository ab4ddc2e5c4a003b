"""Megatron-DeepSpeed (4efb479): where its training loop is hooked (HOOK_POINTS below).

The blend of the datasets named "train" becomes ours, over datasets asked for one epoch each. A batch loses our keys in
the iterator that the loop is given. The loss is overheard in the script's loss_func (--no-pipeline-parallel) or in
gpt_model.CrossEntropy (pipeline engine). No file of the checkout changes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from ado_megatron.errors import UserError
from ado_megatron.hosts import exclusions, hooks
from ado_megatron.hosts.hooks import Framework, HookPoint, Wrapper
from ado_megatron.hosts.run_facts import RunFacts
from ado_megatron.hosts.session import Session
from ado_megatron.hosts.takeover import StockBlend, layout_facts, weights_at
from ado_megatron.measure.boards import Write

TRAINING, DATA, MODEL = "megatron.training", "megatron.data.gpt_dataset", "megatron.model.gpt_model"
CHECKPOINTING = "megatron.checkpointing"
INDICES = ("doc_idx", "sample_idx", "shuffle_idx")  # of a GPTDataset: what its samples are


def get_args() -> Any:
    """The framework's arguments."""
    from megatron.global_vars import get_args

    return get_args()


# ---------------------------------------------------------------- data


@dataclasses.dataclass
class _Build:
    """While the framework's provider runs. size: train samples that it asks for. stock: where our blend comes from the
    framework's, that, its weights and its size; asked for first, while size is None."""

    size: int | None = None
    stock: tuple | None = None


def _datasets(session: Session, framework: Framework, stock: Any) -> Any:
    build: _Build = framework.build

    def build_train_valid_test_datasets(provider):
        if session.silent:
            return stock(provider)

        def one_epoch(sizes):
            # one sample asked of a domain makes the framework lay out one epoch; how many are drawn is ours to decide
            build.size = None
            build.stock = _stock_train(session, provider, sizes) if session.needs_stock else None
            build.size = sizes[0]
            return provider([1, *sizes[1:]] if session.adaptive else sizes)

        train, *rest = stock(one_epoch)
        if train is not None and not hasattr(train, "bind"):
            session.refuse("the train data is a single prefix, so there is nothing to mix; give two or more prefixes")
        args = get_args()
        paths = (args.valid_data_path, args.test_data_path)
        return train, *(
            session.evaluated_set(kind, one, _prefixes(args.data_path or path))
            for kind, one, path in zip(("validation", "test"), rest, paths, strict=True)
        )

    return build_train_valid_test_datasets


def _stock_train(session: Session, provider, sizes):
    """(the framework's own train blend, its weights, its size), as the run that drew from it had it, or None."""
    args = get_args()
    name = "data_path" if args.data_path else "train_data_path"
    words = getattr(args, name)
    if len(words) < 2:
        return None
    weights, size = [float(weight) for weight in words[::2]], sizes[0]
    if session.origin is not None:
        size, weights = session.origin["size"], weights_at(session.origin, words[1::2])
        setattr(args, name, [word for pair in zip(map(repr, weights), words[1::2], strict=True) for word in pair])
    try:
        return provider([size, *sizes[1:]])[0], weights, size
    finally:
        setattr(args, name, words)


def _blend(session: Session, framework: Framework, stock: Any) -> Any:
    build: _Build = framework.build

    def blend(datasets, weights, size, **options):
        if session.silent or build.size is None or datasets[0].name != "train":
            return stock(datasets, weights, size, **options)
        prefixes = _prefixes(get_args().data_path or get_args().train_data_path)
        if not session.adaptive:
            whole = stock(datasets, weights, size, **options)
            whole.weights = list(weights)
            return session.shadow_set(whole, prefixes, INDICES[0])
        _check_one_epoch(datasets, prefixes, get_args().seq_length)
        stock_blend = None
        if build.stock is not None:
            stock_blend = StockBlend.of(build.stock[0], datasets, INDICES, prefixes, *build.stock[1:])
        return session.train_set(datasets, weights, prefixes, build.size, "dataset_idx", stock_blend)

    return blend


def _iterators(session: Session, framework: Framework, stock: Any) -> Any:
    def build_train_valid_test_data_iterators(provider):
        ours = [None if batches is None else _Batches(batches, session) for batches in stock(provider)]
        for batches in filter(None, ours):
            session.at_end.callback(batches.let_go)
        return tuple(ours)

    return build_train_valid_test_data_iterators


class _Batches:
    """An iterator of the framework; our keys do not leave it."""

    def __init__(self, batches, session: Session):
        self._batches, self._session = batches, session

    def __iter__(self):
        return self

    def __next__(self):
        return self._session.drawn(next(self._batches))

    def let_go(self) -> None:
        """Nothing comes any more. The pipeline engine keeps its iterator until the interpreter ends, which kills the
        loader's workers, and they leave their temporary directories; without it they end by themselves."""
        self._batches = iter(())


def _prefixes(path: list[str] | None) -> list[str]:
    """Of a path option: a single prefix, or weights and prefixes in turn."""
    path = path or []
    return [prefix.strip() for prefix in (path if len(path) == 1 else path[1::2])]


def _check_one_epoch(datasets, prefixes, seq_length: int) -> None:
    """Every prefix has a train split, and the framework laid out one epoch of it and no more."""
    if len(datasets) != len(prefixes):
        raise UserError(
            f"{len(prefixes) - len(datasets)} of the prefixes {', '.join(prefixes)} have no document in the train "
            "split; change --split or leave them out"
        )
    for prefix, dataset in zip(prefixes, datasets, strict=True):
        # with too few tokens for one sample the framework repeats the documents until there is one
        documents = dataset.doc_idx
        if len(set(documents.tolist())) != len(documents):
            raise UserError(
                f"{prefix}: the train split holds less than one sample of {seq_length} tokens; leave the prefix out"
            )


def _facts() -> RunFacts:
    from deepspeed.accelerator import get_accelerator
    from megatron.core import mpu

    args = get_args()
    contributes = (
        mpu.get_pipeline_model_parallel_rank() == mpu.get_pipeline_model_parallel_world_size() - 1
        and mpu.get_tensor_model_parallel_rank() == 0
        and (mpu.get_sequence_parallel_world_size() == 1 or mpu.get_sequence_parallel_rank() == 0)
    )
    return RunFacts(
        total_samples=args.train_samples or args.train_iters * args.global_batch_size,
        block_size=args.global_batch_size, micro_batch=args.micro_batch_size, dp=mpu.get_data_parallel_world_size(),
        num_workers=args.num_workers, iteration=args.iteration, consumed_samples=args.consumed_train_samples,
        save=args.save, load=args.load, tensorboard=args.tensorboard_dir, log_interval=args.log_interval,
        contributes=contributes, device=get_accelerator().current_device_name(),
        layout=layout_facts(args),
    )  # fmt: skip


# ---------------------------------------------------------------- losses and steps


def _engine_loss(session: Session, framework: Framework, stock: Any) -> Any:
    """The pipeline engine's loss. Its arithmetic stays the framework's: the per-token losses are only overheard."""

    @functools.wraps(stock)
    def CrossEntropy(output, labels):
        from megatron.core import tensor_parallel

        heard, stock_losses = [], tensor_parallel.vocab_parallel_cross_entropy

        def vocab_parallel_cross_entropy(*args, **kwargs):
            heard.append(stock_losses(*args, **kwargs))
            return heard[-1]

        tensor_parallel.vocab_parallel_cross_entropy = vocab_parallel_cross_entropy
        try:
            loss = stock(output, labels)
        finally:
            tensor_parallel.vocab_parallel_cross_entropy = stock_losses
        session.measure(heard[0].transpose(0, 1), labels[1])  # [s, b] → [b, s]
        return loss

    return CrossEntropy


def _loss_func(session: Session, stock: Any) -> Any:
    @functools.wraps(stock)
    def loss_func(loss_mask, *args):
        session.measure(args[-1], loss_mask)  # (loss_mask, moe_loss, mos_loss, output_tensor)
        return stock(loss_mask, *args)

    return hooks.measuring(loss_func)


def _train_step(session: Session, framework: Framework, stock: Any) -> Any:
    def train_step(*args, **kwargs):
        from megatron.core import mpu
        from megatron.global_vars import get_num_microbatches

        session.begin()
        result = stock(*args, **kwargs)
        settings = get_args()
        batch = mpu.get_data_parallel_world_size() * settings.micro_batch_size * get_num_microbatches()
        session.end(settings.consumed_train_samples + batch, skipped=bool(result[1]))
        return result

    return train_step


def boards() -> dict[str, Write]:
    """The framework's TensorBoard and W&B, on the rank that has them (the last)."""
    from megatron.global_vars import get_tensorboard_writer, get_wandb_writer
    from megatron.training import interop_tool_logger

    writer, wandb = get_tensorboard_writer(), get_wandb_writer()

    def through(logger: Any, scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            logger.add_scalar(name, value, step)
        if logger.tb_writer:
            logger.tb_writer.flush()  # the framework ends without closing it, and what is queued then is lost

    found: dict[str, Write] = {}
    if writer:
        found["TensorBoard"] = functools.partial(through, interop_tool_logger(writer, None))
    if wandb:
        found["W&B"] = functools.partial(through, interop_tool_logger(None, wandb))
    return found


PROVIDER = ("build_train_valid_test_datasets_provider",)
FRAMEWORK = Framework("Megatron-DeepSpeed", get_args, exclusions.megatron_deepspeed, _facts, _loss_func, boards)
HOOK_POINTS = (
    *hooks.alike(TRAINING, CHECKPOINTING),
    HookPoint(TRAINING, "build_train_valid_test_datasets", PROVIDER, _datasets),
    HookPoint(DATA, "BlendableDataset", ("datasets", "weights", "size"), _blend),
    HookPoint(TRAINING, "build_train_valid_test_data_iterators", PROVIDER, _iterators),
    HookPoint(MODEL, "CrossEntropy", ("output", "labels"), _engine_loss),
    HookPoint(TRAINING, "train_step", ("forward_step_func", "data_iterator", "model", "optimizer"), _train_step),
    # called by ours, or decides what ours may expect
    HookPoint(DATA, "_num_epochs", ("tokens_per_epoch", "seq_length", "num_samples")),
    HookPoint(MODEL, "tensor_parallel.vocab_parallel_cross_entropy", ("vocab_parallel_logits", "target")),
    HookPoint("megatron.core.parallel_state", "get_sequence_parallel_rank", ()),
)


def wrappers(session: Session) -> dict[str, Wrapper]:
    """What each hooked function becomes in a run of `session`: "module:name" → (the stock function → ours)."""
    return hooks.wrappers(HOOK_POINTS, session, dataclasses.replace(FRAMEWORK, build=_Build()))
