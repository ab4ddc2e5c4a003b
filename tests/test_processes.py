"""A child that ends with its parent, however that ends."""

import signal
import subprocess
import sys

import psutil

CHILD = "import os, sys, time; from ado_megatron.processes import die_with_parent; die_with_parent(int(sys.argv[1]));"
PARENT = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r} + "print('ready', flush=True); time.sleep(60)",
                          str(os.getpid())], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_child_dies_with_a_parent_that_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert psutil.wait_procs([child], timeout=20)[1] == []


def test_a_child_whose_parent_is_gone_already_ends_at_once():
    done = subprocess.run([sys.executable, "-c", CHILD + "print('alive')", "1"], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL and done.stdout == b""
