"""Our blend under the stock loop: like ado_megatron.run, but nothing is hooked except the data.

The session makes the mixer for its table and then does nothing: no losses, no steps, no sidecar, no log line.
"""

from ado_megatron.hosts.session import Session
from ado_megatron.run import main


def nothing(*args, **kwargs):
    """In place of a hook."""


for name in ("measure", "begin", "end", "save", "log_line"):
    setattr(Session, name, nothing)

if __name__ == "__main__":
    main()
