"""The trainer of `ado-megatron pretrain`: a small GPT of megatron-core layers in a DeepSpeed pipeline, on the adaptive
blend.

In: options of a command line, prefixes or a prepared directory. Out: a run directory with checkpoints, ado/ and
TensorBoard events. On a GPU nothing changes but the device.

    ado_megatron.trainer.launch.main(["--run-dir", "RUN", "--data", "DATA"])      # the exit code of the run

    launch.py             checks, then starts the deepspeed launcher; exit codes and signals
      options.py          what the command line may say, checked
      check_data.py       what can be known to be wrong with the data before a process starts
      mixture.py          the domains of the run, and whether they can feed it
      run_dir.py          which run a directory belongs to
      step_plan.py        batch, first sample and learning rate of each step
    rank.py               one rank under a launcher, and whom it ends with
    loop.py               the training loop of a rank
      parallel.py         process groups of DeepSpeed and megatron-core that agree; random states
      model.py            the layers of the pipeline
      pipeline_loss.py    the last stage's loss: for the engine, by domain, and of the validation
      optimizer.py        which Adam, and the DeepSpeed engine around it
      data.py             GPTDatasets, the adaptive blend, batches
      evaluation.py       validation losses by domain
      checkpoints.py      checkpoints of engine and mixer, by all ranks
      checkpoint_files.py which files a checkpoint has, and whether it is whole
      exit_signal.py      an end after a whole step
      progress.py         lines, bar, metrics, TensorBoard

`TrainerOptions` is all that this file imports: the rest needs torch, DeepSpeed and megatron-core, or is imported by a
parent that needs none of them.
"""

from ado_megatron.trainer.options import TrainerOptions

__all__ = ["TrainerOptions"]
