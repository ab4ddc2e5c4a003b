"""What stands for the packages of NVIDIA is there for the import that needs it, and for nothing else."""

import subprocess
import sys

from tests.kit.host_runs import ROOT

FILES = {
    "bridge/peft/lora_layers.py": "import transformer_engine.pytorch as te\nlayers = te.ops.Sequential, te.Linear\n",
    "bridge/peft/adapter_wrapper.py": "",
    "bridge/peft/lora_merge.py": "",
    "core/transformer/moe/moe_utils.py": "",
}
PROGRAM = """
import importlib.util, sys
from ado_megatron.hosts.cpu import megatron_bridge, megatron_lm
megatron_lm.before_import = lambda: None
megatron_bridge.before_import()
from nvidia_resiliency_ext.inprocess import CallWrapper
from megatron.bridge.peft import lora_layers
assert isinstance(lora_layers.layers[0], type) and not isinstance(None, lora_layers.layers[0])
for name in ("transformer_engine", "nvidia_resiliency_ext.checkpointing"):
    assert name not in sys.modules and importlib.util.find_spec(name) is None, name
"""


def test_transformer_engine_is_there_for_one_import_alone(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "megatron" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(tmp_path), str(ROOT)]}\n{PROGRAM}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
