"""Our blend under the stock loop: like ado_megatron.run, but nothing is hooked except the data.

The session makes the mixer for its table, which is planned on as the samples are consumed, and else does nothing: no
losses, no sidecar, no log line.
"""

from ado_megatron.hosts.session import Session
from ado_megatron.run import main


def nothing(*args, **kwargs):
    """In place of a hook."""


def end(self, consumed_samples, skipped):
    """The rows of the next steps, and nothing of this one."""
    if self.mixer is not None:
        self.mixer.end_step(self._step, consumed_samples, skipped=True)
        self._step += 1


for name in ("measure", "begin", "save", "log_line"):
    setattr(Session, name, nothing)
Session.end = end

if __name__ == "__main__":
    main()
