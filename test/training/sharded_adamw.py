# SPDX-License-Identifier: Apache-2.0
"""One of two ranks that train a sharded network with float8 moments; see `test_fp8_adamw.py`.

`sharded_adamw.py RANK FOLDER`: six steps at once, then three, a checkpoint, and three more from it.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from nvila_ros.training.fp8_adamw import Float8AdamW


def make() -> tuple[torch.nn.Module, Float8AdamW]:
    """Rows that do not divide by two, a layer with small shards, the same on both ranks."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(70, 301), torch.nn.Linear(301, 5)).bfloat16()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model, Float8AdamW(model.parameters(), lr=1e-2)


def run(model: torch.nn.Module, optimizer: Float8AdamW, steps: range, rank: int) -> None:
    """Every rank sees its own rows."""
    for step in steps:
        torch.manual_seed(2 * step + rank)
        optimizer.zero_grad()
        model(torch.randn(8, 70).bfloat16()).square().mean().backward()
        optimizer.step()


def main() -> None:
    """Exit code 0 if the resumed ranks end where the others did, bit by bit."""
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    whole = make()
    run(*whole, range(6), rank)
    first = make()
    run(*first, range(3), rank)
    weights, states = get_state_dict(*first)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder / "checkpoint")
    second = make()
    weights, states = get_state_dict(*second)
    state = {"model": weights, "optimizer": states}
    dcp.load(state, checkpoint_id=folder / "checkpoint")
    set_state_dict(*second, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    run(*second, range(3, 6), rank)
    for ours, theirs in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(ours.to_local(), theirs.to_local())
    codes = second[1].state[next(iter(second[0].parameters()))]["first"]
    assert codes.dtype == torch.float8_e4m3fn and codes.shape[0] == 2 * len(codes.to_local())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
