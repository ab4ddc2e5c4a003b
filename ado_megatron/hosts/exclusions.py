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
