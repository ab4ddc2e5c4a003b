"""How many blocks a loader holds in flight."""

import dataclasses

import pytest

from ado_megatron.mixer.loader import LoaderSettings


@pytest.mark.parametrize(
    ("settings", "block_size", "blocks"),
    [
        ({}, 16, 2),  # no workers: the block being read, and its neighbour under a batch ramp
        ({"num_workers": 2, "prefetch_factor": 2, "micro_batch": 4, "dp": 1}, 16, 3),  # 16 samples in flight: one block
        ({"num_workers": 2, "prefetch_factor": 2, "micro_batch": 4, "dp": 2}, 16, 4),
        ({"num_workers": 4, "prefetch_factor": 4, "micro_batch": 4, "dp": 1}, 16, 6),
        ({"num_workers": 3, "prefetch_factor": None, "micro_batch": 4, "dp": 1}, 16, 2),
    ],
)
def test_the_lookahead_covers_what_is_in_flight(settings, block_size, blocks):
    assert LoaderSettings(**settings).lookahead(block_size) == blocks


def test_shared_memory_counts_every_batch():
    settings = LoaderSettings(num_workers=2, prefetch_factor=3, micro_batch=5, sample_bytes=100)
    assert settings.shared_bytes() == (2 * 4 + 1) * 5 * 100
    assert dataclasses.replace(settings, loaders=3).shared_bytes() == 3 * (2 * 4 + 1) * 5 * 100
    assert LoaderSettings(num_workers=0, micro_batch=5, sample_bytes=100).shared_bytes() == 0
