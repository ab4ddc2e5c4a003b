"""What of a framework an adaptive blend cannot serve, a sentence each. `--ado-shadow` says it and measures nothing."""

from __future__ import annotations

from typing import Any

Exclusion = tuple[bool, str]  # (it is so, the sentence)

# options of Megatron-LM (core's data_schedule.py, arguments.py) under which a row of a batch is no sample any more
PACKING = ("sequence_packing_scheduler", "rl_use_sequence_packing")


def megatron_lm(args: Any) -> list[Exclusion]:
    """Of Megatron-LM; newer versions have options that the older lack."""

    def on(name: str) -> bool:
        return bool(getattr(args, name, False))

    packing = [name for name in PACKING if on(name)]
    return [
        (on("mock_data"), "--mock-data has no domains to mix; give --data-path with weights and prefixes"),
        (on("phase_transition_iterations"), "--phase-transition-iterations restarts the data in every phase; leave it "
         "out: the mixture changes while the run goes on"),
        (args.dataloader_type != "single", f"--dataloader-type {args.dataloader_type} does not draw sample indices in "
         "order; use --dataloader-type single"),
        (on("hybrid_context_parallel"), "--hybrid-context-parallel reorders the samples of a batch; leave it out"),
        (bool(packing), f"--{''.join(packing[:1]).replace('_', '-')} packs samples anew or moves them between ranks, "
         "and a loss does not tell its domain then; leave it out"),
        (on("dataloader_fast_cache_load"), "--dataloader-fast-cache-load reads the index files of the framework's own "
         "blend, and an adaptive blend has others; leave it out"),
        (on("dataloader_defer_npy_index_mmap"), "--dataloader-defer-npy-index-mmap reads index files that an earlier "
         "job has made, and an adaptive blend asks for others; leave it out"),
        (on("logits_load_dir"), "--logits-load-dir holds a teacher's answers in the order of another run's samples; "
         "an adaptive blend has its own, so leave it out"),
        (on("sft"), "--sft packs samples of several domains into one sequence; leave it out"),
        (on("perform_rl_step"), "--perform-rl-step generates its own batches; leave it out"),
        (on("retro_add_retriever"), "retro datasets are not served; train without --retro-add-retriever"),
        (on("decrease_batch_size_if_needed"), "--decrease-batch-size-if-needed drops samples of a batch; leave it out"),
    ]  # fmt: skip


def megatron_deepspeed(args: Any) -> list[Exclusion]:
    """Of Megatron-DeepSpeed."""
    deepspeed = getattr(args, "deepspeed_config_dict", None) or {}
    efficiency = deepspeed.get("data_efficiency", {}).get("enabled", False)
    named = [name for name in ("desc", "doc_idx", "sample_idx", "shuffle_idx") if getattr(args, f"train_{name}_path")]
    return [
        (args.data_efficiency_curriculum_learning or efficiency, "DeepSpeed's data efficiency sampler draws samples by "
         "difficulty, not in order; leave data_efficiency out of the DeepSpeed configuration"),
        (args.curriculum_learning_legacy, "DeepSpeed's curriculum learning shortens samples, so losses of different "
         "steps cannot be compared; leave curriculum_learning out"),
        (args.dataloader_type != "single", f"--dataloader-type {args.dataloader_type} does not draw sample indices in "
         "order; use --dataloader-type single"),
        (args.repeated_dataloader, "--repeated-dataloader starts the data over; leave it out: an adaptive blend does "
         "not end before the run"),
        (args.train_data_exact_num_epochs is not None, "--train-data-exact-num-epochs fixes the epochs of every "
         "domain; leave it out, or cap them by --ado-max-epochs"),
        (bool(named), f"--train-{'/'.join(named).replace('_', '-')}-path fixes the order of the samples; leave it out"),
        (args.retro_add_retriever, "retro datasets are not served; train without --retro-add-retriever"),
        (args.mos or args.kd, "distillation (--mos, --kd) mixes a teacher's loss into the model's; train without it"),
        (args.ds_sequence_parallel_fpdt, "--ds-sequence-parallel-fpdt computes the loss in pieces; leave it out"),
    ]  # fmt: skip


def megatron_bridge(config: Any) -> list[Exclusion]:
    """Of Megatron-Bridge, by its ConfigContainer before Bridge completes it."""
    dataset, model = config.dataset, config.model
    if type(dataset).__name__ not in ("GPTDatasetConfig", "GPTFIMDatasetConfig", "MockGPTDatasetConfig"):
        return [(True, f"datasets of a {type(dataset).__name__} are not served; those of GPTDatasetConfig and "
                 "GPTFIMDatasetConfig are")]  # fmt: skip

    def on(part: Any, name: str) -> bool:
        return bool(getattr(part, name, False))

    graphs = getattr(model, "cuda_graph_impl", "none")
    modules = f"{getattr(model, 'cuda_graph_modules', '')} {getattr(model, 'cuda_graph_scope', '')}"
    whole = graphs == "full_iteration" or graphs == "local" and "full_iteration" in modules
    mock = not any(on(dataset, name) for name in ("blend", "blend_per_split", "data_path"))
    return [
        (mock, "mock data has no domains to mix; give dataset.blend, blend_per_split or data_path"),
        (dataset.dataloader_type != "single", f"dataset.dataloader_type {dataset.dataloader_type} does not draw sample "
         "indices in order; use single"),
        (on(dataset, "hybrid_context_parallel"), "dataset.hybrid_context_parallel reorders the samples of a batch; "
         "leave it out"),
        (on(dataset, "fast_cache_load"), "dataset.fast_cache_load reads the index files of the framework's own blend, "
         "and an adaptive blend has others; leave it out"),
        (on(dataset, "defer_npy_index_mmap"), "dataset.defer_npy_index_mmap reads index files that an earlier job has "
         "made, and an adaptive blend asks for others; leave it out"),
        (on(config.train, "decrease_batch_size_if_needed"), "train.decrease_batch_size_if_needed drops samples of a "
         "batch; leave it out"),
        (on(config.inprocess_restart, "enabled"), "in-process restart begins the run anew inside its processes; leave "
         "inprocess_restart out, and let the launcher restart them"),
        (whole, "a CUDA graph of the full iteration replays what it recorded, and losses by domain are not in it; "
         "graph less than that"),
        (getattr(model, "moe_expert_rank_capacity_factor", None) is not None, "model.moe_expert_rank_capacity_factor "
         "runs a step again with the same batch; leave it out"),
        (type(model).__name__ == "DistillationProvider", "distillation mixes a teacher's loss into the model's; train "
         "without it"),
    ]  # fmt: skip
