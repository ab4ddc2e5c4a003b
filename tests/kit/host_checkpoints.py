"""What a checkpoint of a host holds, read without the host."""

import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from tests.kit.host_runs import Run


def final_parameters(run: Run) -> dict[str, torch.Tensor]:
    """The model's tensors in the last checkpoint (of model-parallel rank zero), by name."""
    class Anything:
        """Stands for a class of the host, which this process cannot import."""

        def __init__(self, *args, **kwargs):
            pass

        def __setstate__(self, state):
            pass

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            try:
                return super().find_class(module, name)
            except (ImportError, AttributeError):
                return Anything

    lenient = SimpleNamespace(__name__="lenient", Unpickler=Unpickler, load=pickle.load)

    def read(path):
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=lenient)

    (last,) = sorted([*run.directory.glob("iter_*"), *run.directory.glob("global_step*")])[-1:]
    layers = sorted(last.glob("layer_*-model_00-model_states.pt"))  # of the pipeline engine, one file a layer
    if layers:
        return dict(_tensors({layer.name: read(layer) for layer in layers}))
    if (last / ".metadata").is_file():
        return _distributed_tensors(last)
    (file,) = [*last.glob("mp_rank_00/model_optim_rng.pt"), *last.glob("mp_rank_00_model_states.pt")]
    state = read(file)
    return dict(_tensors(state.get("model") or state["module"]))


def _distributed_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a `torch_dist` checkpoint, the optimizer's, too."""
    known = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(one.size, dtype=one.properties.dtype)
        for name, one in known.items()
        if isinstance(one, TensorStorageMetadata)
    }
    with warnings.catch_warnings():  # that there is no process group
        warnings.simplefilter("ignore")
        load(state, checkpoint_id=checkpoint, no_dist=True)
    return state


def _tensors(tree, name=""):
    if isinstance(tree, torch.Tensor):
        yield name, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _tensors(value, f"{name}/{key}")
