"""Warnings of the package's loggers: on stderr, marked, with the rank, once."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BY = {
    "hosts": "from ado_megatron.hosts import console\nconsole.print_warnings(), console.print_warnings()",
    "others": "from ado_megatron import messages\nmessages.print_warnings('ado: '), messages.print_warnings('other: ')",
}
WARN = """
import logging
logging.basicConfig(level=logging.CRITICAL, format="%(message)s")
{by}
logging.getLogger("ado_megatron.files").warning("the board cannot be written")
logging.getLogger("ado_megatron.files").warning("ado: once")
logging.getLogger("ado_megatron.files").info("no news")
"""


@pytest.mark.parametrize("by", BY)
def test_warnings_are_printed_once_with_their_rank_whatever_the_framework_sets(by):
    done = subprocess.run([sys.executable, "-c", WARN.format(by=BY[by])], cwd=ROOT, capture_output=True, text=True,
                          env={"RANK": "3", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "ado: rank 3: the board cannot be written\nado: rank 3: once\n")
    assert not logging.getLogger("ado_megatron").handlers, "this process was left alone"
