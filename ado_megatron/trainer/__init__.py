"""The embedded host: a small GPT of megatron-core layers in a DeepSpeed pipeline, trained on the adaptive blend.

    steps.py       batch, first sample and learning rate of each step
    options.py     what the command line may say, checked
    validation.py  what can be known to be wrong before a process starts
    launch.py      `ado-megatron pretrain`: checks, then starts the deepspeed launcher, or trains when under one
    layout.py      process groups of DeepSpeed and megatron-core that agree; random states
    model.py       the layers of the pipeline
    loss.py        the loss site: engine loss, per-domain sums, validation sums
    optimizer.py   which Adam, and the DeepSpeed engine around it
    data.py        GPTDatasets, the adaptive blend, batches
    saving.py      checkpoints: engine and mixer, complete or not there
    progress.py    progress bar, metrics, TensorBoard
    loop.py        the training loop

On a GPU nothing changes but the device.
"""
