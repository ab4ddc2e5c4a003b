"""A run without a model: losses come from a known response to the samples drawn, and everything else is the product.

What comes in: a response (samples so far of each domain → true losses), a prior, a target, the options of a run. What
goes out: the weights of every block, the samples of each domain at the end, and the target loss that they led to. So
options can be chosen, and policies compared with the best fixed mixture, in seconds and without a GPU:

    result = simulate(response, prior_K, target_K=target_K, config=AdoConfig(), steps=30_000, block_size=512)
    result.target_loss, result.weights_SxK[-1]

    simulation.py  the loop: history, fits, schedule of refits, policy and planner of a run, on made-up losses
    response.py    responses from a file, and the best fixed mixture under a response
    arms.py        policies side by side over several seeds, as gains over the prior
    command.py     `ado-megatron simulate RESPONSE.npz`; figure.py draws its picture
"""

from ado_megatron.simulate.response import PowerResponse, best_static, read_response
from ado_megatron.simulate.simulation import Simulation, simulate

__all__ = ["PowerResponse", "Simulation", "best_static", "read_response", "simulate"]
