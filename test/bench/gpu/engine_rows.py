# SPDX-License-Identifier: Apache-2.0
"""Our engine on networks of the released sizes with random weights: rows of `run.py`."""

from __future__ import annotations

import functools
import gc
import inspect
import statistics
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from decision import Drive, action_trie
from floors import FLOORS, TARGETS
from shapes import random_engine
from timing import (
    after_idle_ms,
    events_ms,
    process_memory_bytes,
    sustained_ms,
    wall_ms,
)

from nvila_ros.models.preprocess import frame_pixels
from nvila_ros.models.runtime import Engine
from nvila_ros.models.runtime_cache import Sequence1D
from nvila_ros.models.runtime_decoder import lay_out

PROMPT_TOKENS = 1088
LEADING_TOKENS, DECODED_TOKENS = 32, 128  # what an answer costs once is in the leading ones
REPLAYS = 64  # in a row
NUM_DECISIONS = 24
FIRST_DECISION = 12  # by then seven frames are spread over the episode, as in most of it

Part = Callable[[Engine], dict[str, Any]]


def lite8b(device: torch.device) -> dict[str, Any]:
    """NVILA-Lite-8B: everything, and the navigation decision."""
    return _measure("lite8b", device, (prefill, decode), (vision, decide, memory))


def lite8b_fp16_tower(device: torch.device) -> dict[str, Any]:
    """The same with the tower of a checkpoint whose vision is not quantized."""
    return _measure("lite8b", device, (), (vision, decide, memory), is_int8_tower=False)


def two_by_two(device: torch.device) -> dict[str, Any]:
    """NVILA-8B: 256 tokens a frame."""
    return _measure("8b", device, (decode,), (decide, memory), max_tokens=2304)


def lite2b(device: torch.device) -> dict[str, Any]:
    """NVILA-Lite-2B."""
    return _measure("lite2b", device, (prefill, decode), (decide, memory))


def llama8b(device: torch.device) -> dict[str, Any]:
    """NaVILA's Llama-3-8B."""
    return _measure("llama8b", device, (prefill, decode), (memory,))


def fifteen(device: torch.device) -> dict[str, Any]:
    """NVILA-15B."""
    return _measure("15b", device, (prefill, decode), (memory,))


def _measure(
    name: str,
    device: torch.device,
    of_decoder: tuple[Part, ...],
    of_all: tuple[Part, ...],
    max_tokens: int = 1536,
    is_int8_tower: bool = True,
) -> dict[str, Any]:
    """An engine's parts one after the other; one that fails leaves its reason."""
    row: dict[str, Any] = {}
    begin_s = time.perf_counter()
    engine = random_engine(name, device, max_tokens, is_int8_tower=is_int8_tower)
    torch.cuda.synchronize()
    row["made_s"] = time.perf_counter() - begin_s
    stages: tuple[Callable[[Engine], Any], ...] = (
        warm_up_decoder, *of_decoder, warm_up_vision, *of_all
    )  # fmt: skip
    for part in stages:
        try:
            with torch.inference_mode():
                row |= part(engine)
        except Exception:
            traceback.print_exc()
            row[f"{part.__name__}_error"] = traceback.format_exc(limit=-3)
    return row


def warm_up_decoder(engine: Engine) -> dict[str, float]:
    """Kernels of all numbers of rows, the graph of a step."""
    begin_s = time.perf_counter()
    engine.warm_up_decoder()
    torch.cuda.synchronize()
    return {"warm_up_decoder_s": time.perf_counter() - begin_s}


def warm_up_vision(engine: Engine) -> dict[str, float]:
    """Graphs of one and of all frames; then what `Engine.warm_up` gives back is given back."""
    begin_s = time.perf_counter()
    engine.warm_up_vision()
    torch.cuda.synchronize()
    _give_back()
    return {"warm_up_vision_s": time.perf_counter() - begin_s}


def vision(engine: Engine) -> dict[str, float]:
    """Eight frames and one: after a pause, and without one; frames are on the device already.

    `vision` is what a decision waits for: tower, projector and the copies into and out of the
    engine's graph; `vision_tower` is the tower alone.
    """
    side = engine.config.vision.image_size
    pixels = torch.randn(8, 3, side, side, device=engine.device, dtype=torch.float16)
    times = {**_vision_times(engine, pixels), **_vision_times(engine, pixels[:1].clone())}
    _give_back()
    return times


def _vision_times(engine: Engine, pixels: torch.Tensor) -> dict[str, float]:
    tower = inspect.getclosurevars(engine._encode).nonlocals["tower"]
    works: dict[str, Callable[[], Any]] = {
        "vision": functools.partial(engine.encode_frames, pixels),
        # In the engine's stream and pool: another stream's workspaces would count as its memory.
        "vision_tower": engine._pool.capture(functools.partial(tower, pixels)),
    }
    times = {}
    for name, work in works.items():
        times[f"{name}_{len(pixels)}_ms"] = after_idle_ms(work)
        times[f"{name}_{len(pixels)}_sustained_ms"] = sustained_ms(work)
    return times


def _give_back() -> None:
    """What the benchmark's own graphs and tensors took is not the engine's."""
    gc.collect()
    torch.cuda.empty_cache()


def prefill(engine: Engine) -> dict[str, float]:
    """1,088 embeddings into an empty cache, the last state out."""
    width = engine.config.language.hidden_size
    embeds = torch.randn(PROMPT_TOKENS, width, device=engine.device, dtype=torch.float16)
    last = [PROMPT_TOKENS - 1]
    rows = lay_out(0, PROMPT_TOKENS, None, engine.device)
    places = torch.tensor(last, device=engine.device)
    launched = events_ms(lambda: engine._decoder._read(embeds, rows, places), 7)
    replayed = events_ms(lambda: engine._decoder.read(embeds, 0, None, last), 7)
    engine._cache.hold(Sequence1D(()))
    return {"prefill_1088_ms": replayed, "prefill_1088_without_graph_ms": launched}


def decode(engine: Engine) -> dict[str, float]:
    """Free greedy decoding after 1,088 tokens: wall clock, and the step's replay alone."""
    ids = [100 + index % 5000 for index in range(PROMPT_TOKENS)]

    def answer(num_tokens: int) -> None:
        engine.generate_greedy(ids, max_new_tokens=num_tokens)

    answer(2)  # the prompt stays in the cache
    none, short, long = (
        wall_ms(lambda count=count: answer(1 + count), 7)
        for count in (0, LEADING_TOKENS, LEADING_TOKENS + DECODED_TOKENS)
    )
    step_ms = (long - short) / DECODED_TOKENS
    token = torch.zeros(1, dtype=torch.int32, device=engine.device)
    engine._decoder.step.begin(token, PROMPT_TOKENS)
    alone_ms = events_ms(engine._decoder._launch, 50)
    engine._decoder.step.begin(token, PROMPT_TOKENS)

    def many() -> None:
        for _ in range(REPLAYS):
            engine._decoder._launch()

    return {
        "decode_tokens_per_s": 1e3 / step_ms,
        "decode_step_wall_ms": step_ms,
        "decode_begin_ms": short - none - LEADING_TOKENS * step_ms,
        "decode_step_replay_ms": alone_ms,
        "decode_step_in_a_row_ms": events_ms(many, 3, 1) / REPLAYS,
    }


def decide(engine: Engine) -> dict[str, Any]:
    """A drive: each decision encodes one new frame and reads what changed of the prompt."""
    config, trie = engine.config, action_trie()
    side = config.vision.image_size
    num_frames = FIRST_DECISION + NUM_DECISIONS
    # One picture for all frames: others would be the benchmark's memory, not the engine's.
    pixels = torch.randn(1, 3, side, side, device=engine.device, dtype=torch.float16)
    drive = Drive(pixels.expand(num_frames, -1, -1, -1))
    ids = drive.prompt()
    blocks = [engine.encode_frames(drive.pixels[index : index + 1])[0]
              for index in range(FIRST_DECISION)]  # fmt: skip
    times, fresh, first_times = [], [], []
    for seen in range(FIRST_DECISION + 1, num_frames + 1):
        torch.cuda.synchronize()
        begin_s = time.perf_counter()
        blocks.append(engine.encode_frames(drive.pixels[seen - 1 : seen])[0])
        media = [blocks[index] for index in drive.shown(seen)]
        shared = engine._cache.held.num_shared(engine._fuse(ids, media))
        engine.choose(ids, media, trie)
        times.append(1e3 * (time.perf_counter() - begin_s))
        if len(engine._cache.held) - shared not in fresh:
            first_times.append(times[-1])  # a layout that no graph is kept of
        fresh.append(len(engine._cache.held) - shared)
        engine.catch_up()  # as the policy does while the robot moves

    def first() -> None:
        engine._cache.hold(Sequence1D(()))
        engine.choose(ids, [blocks[index] for index in drive.shown(num_frames)], trie)

    camera = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    return {
        "prompt_tokens": len(engine._cache.held),
        "tree_rows": len(trie.tail.tokens),
        "new_tokens_p50": statistics.median(fresh),
        "decision_p50_ms": statistics.median(times),
        "decision_new_layout_p50_ms": statistics.median(first_times),
        "num_layouts": len(first_times),
        "decision_p95_ms": float(np.percentile(times, 95)),
        "decision_max_ms": max(times),
        "decision_nothing_kept_ms": wall_ms(first, 5) ,
        "preprocess_one_frame_ms": wall_ms(lambda: frame_pixels(camera, config), 10),
    }  # fmt: skip


def memory(engine: Engine) -> dict[str, Any]:
    """Bytes by torch, and by the driver with its context."""
    return {
        "memory": engine.memory().to_json(),
        "in_use_by_driver_bytes": process_memory_bytes(),
    }


def table(name: str, row: dict[str, Any]) -> str:
    """Figures of one row with floor, ratio and target where there are some."""
    lines = []
    for key, value in row.items():
        if isinstance(value, dict):
            inner = " ".join(f"{k}={_text(v)}" for k, v in value.items())
            lines.append(f"{key:28} {inner}")
            continue
        floor, target = FLOORS.get((name, key)), TARGETS.get((name, key))
        line = f"{key:28} {_text(value):>10}"
        if floor is not None:
            ratio = max(value / floor, floor / value)
            line += f"   floor {_text(floor)}, {ratio:.2f}x of it"
        if target is not None:
            line += f"   target {target}"
        lines.append(line)
    return "\n".join(lines)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
