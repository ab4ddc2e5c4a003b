"""Measures of hosts/cpu/megatron_lm.py that are seen without a checkout, on the megatron-core that pip installs."""

import torch
import torch.distributed as dist

from ado_megatron.hosts.cpu import megatron_lm
from tests.kit.ranks import run_ranks

ACTIVATION = (32, 2, 32)


def _send_and_free(rank):
    from megatron.core.pipeline_parallel import p2p_communication, schedules

    megatron_lm.keep_what_is_being_sent()
    received = []
    for value in range(5):
        given = dict.fromkeys(("tensor_send_prev", "tensor_recv_prev", "tensor_send_next", "tensor_recv_next"))
        given |= {"group": dist.group.WORLD, "prev_pipeline_rank": 1 - rank, "next_pipeline_rank": 1 - rank}
        if rank == 0:
            given["tensor_send_next"] = torch.full(ACTIVATION, float(value))
            (request,) = p2p_communication._p2p_ops(**given).values()
            # as the interleaved schedule does it, and then the memory is used for something else
            schedules.deallocate_output_tensor(given["tensor_send_next"], deallocate_pipeline_outputs=True)
            others = [torch.full(ACTIVATION, float("nan")) for _ in range(50)]
            dist.barrier()
            request.wait()
            del others
        else:
            dist.barrier()  # the receiver comes late
            given["tensor_recv_prev"] = torch.empty(ACTIVATION)
            (request,) = p2p_communication._p2p_ops(**given).values()
            request.wait()
            received.append(given["tensor_recv_prev"].unique().tolist())
    return received


def test_an_activation_arrives_although_the_schedule_frees_it_before_it_was_sent():
    assert run_ranks(_send_and_free, 2)[1] == [[0.0], [1.0], [2.0], [3.0], [4.0]]
