"""`ado-megatron replay TRACE`: a recorded run comes in; the laws and weights that a policy answers with go out.

    result = replay(read_trace("trace.npz"), AdoConfig(profile="released"))   # command.py

    command.py  the replay itself and its command line
    trace.py    an .npz trace or a run's metrics.jsonl as arrays, checked
    plot.py     the picture
"""
