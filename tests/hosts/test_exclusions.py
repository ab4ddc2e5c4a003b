"""What of a framework is not served: one sentence each, and nothing else is excluded."""

from types import SimpleNamespace

import pytest

from ado_megatron.hosts import exclusions

LM_ARGUMENTS = {"dataloader_type": "single"}
DEEPSPEED_ARGUMENTS = {
    "dataloader_type": "single", "deepspeed_config_dict": {}, "data_efficiency_curriculum_learning": False,
    "curriculum_learning_legacy": False, "repeated_dataloader": False, "train_data_exact_num_epochs": None,
    "train_desc_path": None, "train_doc_idx_path": None, "train_sample_idx_path": None, "train_shuffle_idx_path": None,
    "retro_add_retriever": False, "mos": False, "kd": False, "ds_sequence_parallel_fpdt": False,
}  # fmt: skip

EFFICIENT = {"data_efficiency": {"enabled": True}}


@pytest.mark.parametrize(
    ("framework", "change", "word"),
    [
        (exclusions.megatron_lm, {"mock_data": True}, "--mock-data"),
        (exclusions.megatron_lm, {"phase_transition_iterations": [5]}, "--phase-transition-iterations"),
        (exclusions.megatron_lm, {"dataloader_type": "cyclic"}, "--dataloader-type cyclic"),
        (exclusions.megatron_lm, {"dataloader_type": "external"}, "--dataloader-type external"),
        (exclusions.megatron_lm, {"hybrid_context_parallel": True}, "--hybrid-context-parallel"),
        (exclusions.megatron_lm, {"sft": True}, "--sft"),
        (exclusions.megatron_lm, {"perform_rl_step": True}, "--perform-rl-step"),
        (exclusions.megatron_lm, {"rl_use_sequence_packing": True}, "--rl-use-sequence-packing packs samples anew"),
        (exclusions.megatron_lm, {"sequence_packing_scheduler": "dp_balanced"}, "--sequence-packing-scheduler"),
        (exclusions.megatron_lm, {"logits_load_dir": "teacher"}, "--logits-load-dir"),
        (exclusions.megatron_lm, {"dataloader_fast_cache_load": True}, "--dataloader-fast-cache-load"),
        (exclusions.megatron_lm, {"dataloader_defer_npy_index_mmap": True}, "--dataloader-defer-npy-index-mmap"),
        (exclusions.megatron_lm, {"retro_add_retriever": True}, "retro"),
        (exclusions.megatron_deepspeed, {"data_efficiency_curriculum_learning": True}, "data efficiency"),
        (exclusions.megatron_deepspeed, {"deepspeed_config_dict": EFFICIENT}, "data efficiency"),
        (exclusions.megatron_deepspeed, {"curriculum_learning_legacy": True}, "curriculum"),
        (exclusions.megatron_deepspeed, {"dataloader_type": "cyclic"}, "--dataloader-type cyclic"),
        (exclusions.megatron_deepspeed, {"repeated_dataloader": True}, "--repeated-dataloader"),
        (exclusions.megatron_deepspeed, {"train_data_exact_num_epochs": 2}, "--train-data-exact-num-epochs"),
        (exclusions.megatron_deepspeed, {"train_doc_idx_path": "x"}, "--train-doc-idx-path"),
        (exclusions.megatron_deepspeed, {"retro_add_retriever": True}, "retro"),
        (exclusions.megatron_deepspeed, {"kd": True}, "distillation"),
    ],
)
def test_exclusions_are_one_sentence_each_and_nothing_else_is_excluded(framework, change, word):
    plain = LM_ARGUMENTS if framework is exclusions.megatron_lm else DEEPSPEED_ARGUMENTS
    assert not any(excluded for excluded, _ in framework(SimpleNamespace(**plain)))
    sentences = [text for excluded, text in framework(SimpleNamespace(**{**plain, **change})) if excluded]
    assert len(sentences) == 1 and word in sentences[0]
