"""Many domains in groups."""

import numpy as np

from ado_megatron.report.groups import groups_of


def test_few_domains_have_no_groups():
    assert groups_of([f"a/{k}" for k in range(24)], np.full(24, 1 / 24)) == {}


def test_names_that_begin_alike_are_a_group_the_largest_first():
    names = [f"code/{k}" for k in range(10)] + [f"web-{k}" for k in range(10)] + [f"cc{k}" for k in range(9)] + ["odd"]
    prior = np.array([0.01] * 10 + [0.02] * 10 + [0.03] * 9 + [0.5])
    prior[3] = 0.04
    groups = groups_of(names, prior)
    assert list(groups) == ["(others)", "cc", "web", "code"]
    assert groups["code"] == [3, 0, 1, 2, 4, 5, 6, 7, 8, 9] and groups["(others)"] == [29]


def test_names_with_nothing_in_common_are_grouped_by_weight():
    names = [f"{chr(97 + k // 26)}{chr(97 + k % 26)}x" for k in range(40)]
    groups = groups_of(names, np.arange(40.0))
    assert groups["rank 1 to 10"] == list(range(39, 29, -1))
    assert {name: len(members) for name, members in groups.items()} == {
        "rank 1 to 10": 10, "rank 11 to 30": 20, "rank 31 to 40": 10}  # fmt: skip
