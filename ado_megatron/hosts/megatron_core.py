"""What Megatron-LM and Megatron-Bridge have from megatron-core: datasets, data iterators, attempts of a step.

The train split of the dataset builder becomes ours, validation and test stay stock. A batch loses our keys where the
rerun state machine hands it out, also on a replay; an attempt of a step begins where that machine says so.
"""

from __future__ import annotations

from typing import Any

from ado_megatron.errors import UserError
from ado_megatron.hosts.hooks import Framework, HookPoint
from ado_megatron.hosts.session import Session
from ado_megatron.hosts.takeover import StockBlend, weights_at

BUILDER = "megatron.core.datasets.blended_megatron_dataset_builder"
RERUN = "megatron.core.rerun_state_machine"
INDICES = ("document_index", "sample_index", "shuffle_index")  # of a GPTDataset: what its samples are


# ---------------------------------------------------------------- data


def _train_blend(config):
    """(prefixes, weights or None, train part of the split) of the train split, or None if the framework has none."""
    if config.blend is not None:
        return (*config.blend, config.split_matrix[0]) if config.split_matrix[0] is not None else None
    blend = config.blend_per_split[0] if config.blend_per_split is not None else None
    return None if blend is None else (*blend, (0.0, 1.0))


def _eval_prefixes(config, split: int):
    """The prefixes of the validation (1) or test (2) blend; none if the framework has no such split."""
    if config.blend is not None:
        return config.blend[0]
    blend = config.blend_per_split[split] if config.blend_per_split is not None else None
    return [] if blend is None else blend[0]


def _build(session: Session, framework: Framework, stock: Any) -> Any:
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
    """One-epoch train datasets by the framework's own machinery, collective as that is; the other splits stock."""
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
    """(the framework's own train blend, its weights, its size), as the run that drew from it had it."""
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


# ---------------------------------------------------------------- batches and attempts


def _next(session: Session, framework: Framework, stock: Any) -> Any:
    def __next__(self):
        batch = session.drawn(stock(self))
        if isinstance(batch, dict) and "dataset_id" in batch:
            # no stock code reads it, and under context parallelism main trips over it
            batch = {name: value for name, value in batch.items() if name != "dataset_id"}
        return batch

    return __next__


def _should_run(session: Session, framework: Framework, stock: Any) -> Any:
    def should_run_forward_backward(self, data_iterator):
        run = stock(self, data_iterator)
        if run:
            session.begin()
        return run

    return should_run_forward_backward


HOOK_POINTS = (
    HookPoint(BUILDER, "BlendedMegatronDatasetBuilder.build", ("self",), _build),
    HookPoint(RERUN, "RerunDataIterator.__next__", ("self",), _next),
    HookPoint(RERUN, "RerunStateMachine.should_run_forward_backward", ("self", "data_iterator"), _should_run),
    # called by ours
    HookPoint(
        BUILDER, "BlendedMegatronDatasetBuilder._build_megatron_datasets_parallel",
        ("self", "prefixes", "split", "sizes_per_dataset"),
    ),
)  # fmt: skip
