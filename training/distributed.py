# SPDX-License-Identifier: Apache-2.0
"""Where a stage runs: one process, DDP, FSDP2 or DeepSpeed ZeRO, all through Accelerate.

`accelerate launch --config_file training/launch/...` says which by environment variables; nothing
of it is in a recipe, so the same recipe runs on a laptop and on 16 x 8 GPUs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from nvila_ros.errors import ConfigError, TrainingError, install_hint
from nvila_ros.training.fp8 import PrecisionConfig
from nvila_ros.training.stage_recipe import StageRecipe

if TYPE_CHECKING:
    from accelerate import Accelerator

Kind = Literal["one", "ddp", "fsdp", "deepspeed"]
WRAPPED = ["LanguageLayer", "VisionLayer"]  # what FSDP gathers and frees one at a time


def asked_kind() -> Kind:
    """How the launcher wants the model spread, from its environment variables."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        return "deepspeed"
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "fsdp"
    return "ddp" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "one"


@dataclass(frozen=True)
class Ranks:
    """The processes of a run and what they say to each other."""

    accelerator: Accelerator
    kind: Kind
    accumulation: int  # micro-batches per optimizer step and rank

    @property
    def rank(self) -> int:
        """Of this process, over all machines."""
        return self.accelerator.process_index

    @property
    def count(self) -> int:
        """Of processes, over all machines."""
        return self.accelerator.num_processes

    @property
    def device(self) -> torch.device:
        """Of this process."""
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this one writes what is written once."""
        return self.accelerator.is_main_process

    @contextlib.contextmanager
    def accumulate(self, learner: Any) -> Iterator[None]:
        """Around one micro-batch's forward and backward passes.

        Sharded gradients are reduced after every micro-batch. Accelerate would not do it where
        there is one process: gradients would be whole, in the compute dtype, and FSDP2 up to torch
        2.13 ends with an AttributeError at a layer that never ran (the tower has one).
        """
        with self.accelerator.accumulate(learner):
            if self.kind == "fsdp":
                learner.set_requires_gradient_sync(True)
            yield

    def sum(self, values: Tensor) -> Tensor:
        """Element by element over all ranks."""
        return self.accelerator.reduce(values, "sum") if self.count > 1 else values

    def all_agree(self, flag: bool) -> bool:
        """Whether every rank says True: what one alone notices, all have to act on."""
        missing = torch.tensor([0.0 if flag else 1.0], device=self.device)
        return self.sum(missing).item() == 0.0

    def wait(self) -> None:
        """Until all ranks are here."""
        self.accelerator.wait_for_everyone()


def start_ranks(recipe: StageRecipe, *, use_cpu: bool = False) -> Ranks:
    """Joins the processes that the launcher started; checks that the batch divides among them."""
    try:
        from accelerate import Accelerator
        from accelerate.utils import GradientAccumulationPlugin
    except ImportError as error:
        raise ConfigError(
            f"training needs accelerate ({error}); {install_hint('train')}"
        ) from error
    kind, count = asked_kind(), int(os.environ.get("WORLD_SIZE", "1"))
    sequences = recipe.batch.sequences
    if sequences % count:
        raise TrainingError(
            f"a step has {sequences} sequences, which {count} ranks cannot share evenly; "
            f"set --override batch.sequences={-(-sequences // count) * count}"
        )
    accumulation = sequences // count
    has_wide_weights = recipe.precision.optimizer_states == "float32"
    is_mixed = recipe.precision.dtype == torch.bfloat16 and has_wide_weights
    forget_ranks()
    arguments: dict[str, Any] = {
        "cpu": use_cpu,
        "mixed_precision": "bf16" if is_mixed else "no",
        "gradient_accumulation_plugin": GradientAccumulationPlugin(
            num_steps=accumulation,
            sync_with_dataloader=False,
            sync_each_batch=kind == "fsdp",  # else each rank would hold all gradients whole
        ),
    }
    if kind == "fsdp":
        arguments["fsdp_plugin"] = _fsdp_plugin(recipe.precision)
    if kind == "deepspeed":
        arguments["deepspeed_plugin"] = _deepspeed_plugin(recipe, accumulation)
    accelerator = Accelerator(**arguments)
    if kind == "fsdp" and accelerator.device.type == "cpu":
        _shard_on_cpu(accelerator, arguments["fsdp_plugin"])
    return Ranks(accelerator, kind, accumulation)


def forget_ranks() -> None:
    """Accelerate keeps its settings for the whole process: the next stage has others."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state()
    GradientState._reset_state()


def _fsdp_plugin(precision: PrecisionConfig):
    """FSDP2 that computes in the recipe's numbers, and sums gradients in float32."""
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=WRAPPED,
        state_dict_type="SHARDED_STATE_DICT",
        cpu_ram_efficient_loading=True,
        # Accelerate's own would round the loss to bfloat16 too, and the weights of its tokens.
        mixed_precision_policy=MixedPrecisionPolicy(
            param_dtype=precision.dtype,
            reduce_dtype=torch.float32,
            output_dtype=None,
            cast_forward_inputs=False,
        ),
    )


def _deepspeed_plugin(recipe: StageRecipe, accumulation: int):
    """ZeRO's stage is the launcher's; batch and clipping are the recipe's."""
    from accelerate import DeepSpeedPlugin

    plugin = DeepSpeedPlugin(
        gradient_accumulation_steps=accumulation,
        gradient_clipping=recipe.schedule.max_gradient_norm or 0.0,
        zero3_init_flag=False,
        zero3_save_16bit_model=True,
    )
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
    return plugin


def _shard_on_cpu(accelerator: Accelerator, plugin) -> None:
    """Accelerate shards on accelerators only; on a CPU this sets what it would have set there.

    Every new `AcceleratorState()`, and Accelerate makes many, copies what `PartialState` says.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    for state in (accelerator.state._shared_state, PartialState._shared_state):
        state["distributed_type"] = DistributedType.FSDP
    accelerator.state._shared_state["fsdp_plugin"] = plugin


def unwrapped(ranks: Ranks, module: nn.Module) -> nn.Module:
    """The module inside what DDP or DeepSpeed put around it."""
    return ranks.accelerator.unwrap_model(module)
