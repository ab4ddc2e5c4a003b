"""The embedded host: a small GPT of megatron-core layers in a DeepSpeed pipeline, trained on the adaptive blend.

    launch.py      `ado-megatron pretrain`: checks, then starts the deepspeed launcher, or trains when under one
      options.py     what the command line may say, checked
      steps.py       batch, first sample and learning rate of each step
      validation.py  what can be known to be wrong with the data before a process starts
      mixture.py     the domains of the run, its supply
      run_dir.py     which run a directory belongs to
    loop.py        the training loop of a rank
      layout.py      process groups of DeepSpeed and megatron-core that agree; random states
      model.py       the layers of the pipeline
      loss.py        the loss site: engine loss, per-domain sums, validation sums
      optimizer.py   which Adam, and the DeepSpeed engine around it
      data.py        GPTDatasets, the adaptive blend, batches
      saving.py      checkpoints: engine and mixer, complete or not there
      progress.py    progress bar, metrics, TensorBoard

On a GPU nothing changes but the device.
"""
