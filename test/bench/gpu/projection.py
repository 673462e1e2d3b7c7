# SPDX-License-Identifier: Apache-2.0
"""What other GPUs may do, from what this one was measured to do: docs/benchmarks/projection.md.

    python test/bench/gpu/projection.py            (needs no GPU)

Nothing here was run on the GPUs that the table names.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
H100_TB_S = 3.35
H100_SUSTAINED = 0.92  # share of the vendor's bandwidth that any kernel can reach
MMA_SHARE = 0.65  # of the peak that mma.sync kernels reach; TinyChat's did 0.67 on an RTX 4090


@dataclass(frozen=True)
class Gpu:
    """Vendor's figures; rates of laptops depend on their power limit, so there are two."""

    name: str
    tb_s: float
    fp16_tflop_s: tuple[float, float]  # sums in fp16, at the lowest and the highest clock
    int8_top_s: tuple[float, float]


# Dense rates and bandwidths by the vendors, and clocks of laptops at their power limits.
GPUS = (
    Gpu("RTX 4080 Laptop", 0.432, (80, 135), (160, 271)),
    Gpu("RTX 4090 Laptop", 0.576, (113, 159), (226, 318)),
    Gpu("RTX 5090 Laptop", 0.896, (228, 228), (456, 456)),
    Gpu("Jetson AGX Orin 64 GB", 0.2048, (42.5, 42.5), (85, 85)),
)


@dataclass(frozen=True)
class Model:
    """Bytes and operations of one network; sizes of engine.md section 5."""

    title: str
    row: str  # of h100.json
    decode_bytes: float  # of a token at 1,024 places, int8 head
    prompt_tflop: float  # of 1,088 tokens
    frame_linear_top: float  # int8
    frame_attention_tflop: float  # fp16


MODELS = (
    Model("NVILA-Lite-8B", "lite8b", 3.994e9 * 1.02, 14.43, 0.811, 0.126),
    Model("NVILA-Lite-2B", "lite2b", 0.943e9 * 1.02, 2.95, 0.811, 0.126),
)
MEASURED_MMA_TFLOP_S = 228  # our mma.sync path on the H100, 1,088 rows, sums in fp16


def decode_ms(model: Model, gpu: Gpu, step_ms: float) -> tuple[float, float]:
    """Two readings of the measured step: the same share of bandwidth, or the same lost time."""
    share = model.decode_bytes / (step_ms * 1e-3) / (H100_TB_S * 1e12)
    same_share = model.decode_bytes / (gpu.tb_s * 1e12 * share) * 1e3
    lost_ms = max(step_ms - model.decode_bytes / (H100_TB_S * 1e12 * H100_SUSTAINED) * 1e3, 0.0)
    same_loss = model.decode_bytes / (gpu.tb_s * 1e12 * H100_SUSTAINED) * 1e3 + lost_ms
    return max(same_share, same_loss), min(same_share, same_loss)


def prompt_ms(model: Model, gpu: Gpu, tokens: int) -> tuple[float, float]:
    """At the lowest and the highest clock."""
    work = model.prompt_tflop * tokens / 1088
    slow, fast = (1e3 * work / (rate * MMA_SHARE) for rate in gpu.fp16_tflop_s)
    return slow, fast


def frame_ms(model: Model, gpu: Gpu) -> tuple[float, float]:
    """One frame through the tower; attention sums in fp32, at half the rate."""
    times = [
        1e3 * (model.frame_linear_top / int8 + model.frame_attention_tflop / (fp16 / 2)) / MMA_SHARE
        for int8, fp16 in zip(gpu.int8_top_s, gpu.fp16_tflop_s, strict=True)
    ]
    return times[0], times[1]


def rows(model: Model, measured: dict[str, Any]) -> list[str]:
    """One line of the table per GPU."""
    lines = []
    for gpu in GPUS:
        step = decode_ms(model, gpu, measured["decode_step_wall_ms"])
        first = prompt_ms(model, gpu, 1088)
        frame = frame_ms(model, gpu)
        again = prompt_ms(model, gpu, int(measured["new_tokens_p50"]))
        decision = [frame[index] + again[index] + 2 for index in range(2)]
        cells = (
            f"{1e3 / step[0]:.0f} to {1e3 / step[1]:.0f}",
            _span(first),
            _span(frame),
            _span((decision[0], decision[1])),
        )
        lines.append(f"| {gpu.name} | " + " | ".join(cells) + " |")
    return lines


def _span(times: tuple[float, float]) -> str:
    slow, fast = (f"{value:.0f}" if value >= 10 else f"{value:.1f}" for value in times)
    return fast if slow == fast else f"{fast} to {slow}"


def document(found: dict[str, Any]) -> str:
    """The whole page."""
    machine = found["machine"]
    text = [
        "# Projections: GPUs that this engine was not run on",
        "",
        "**Nothing here was measured on the GPUs that are named.** `test/bench/gpu/projection.py`",
        "computes it from `h100.json` and the vendors' figures (bandwidth; dense rates at the",
        "lowest and highest clock of laptops).",
        "",
        f"Measured on {machine['gpu']} at commit {machine['commit']}, {machine['measured_at']}.",
        "Kernels of later commits are not in it: [engine notes](engine_notes.md) has their times.",
        "",
        "How:",
        "- decode: bytes of a token (int4 weights with scales, int8 head, 1,024 places of cache)",
        "  over bandwidth. The slow end keeps the H100's share of bandwidth, the fast end the time",
        f"  that it loses over {H100_SUSTAINED:.0%} of it (launches, small matrices).",
        "- prompt and vision: operations over dense rates (fp16 sums, int8), times",
        f"  {MMA_SHARE:.2f}, **an assumption**: TinyChat's W4A16 reached 0.67 of an RTX 4090's",
        "  fp16-sum peak with mma.sync. Ours was measured on the H100 alone, where another path",
        f"  is taken: {MEASURED_MMA_TFLOP_S} TFLOP/s, 23 % of its peak; times may be longer.",
        "- decision: one new frame, as many tokens read anew as in the measured drive's median,",
        "  the grammar in the same pass, 2 ms of the host's.",
        "",
    ]
    for model in MODELS:
        measured = found["rows"].get(model.row, {})
        if "decode_step_wall_ms" not in measured:
            continue
        text += [
            f"## {model.title}",
            "",
            "| projected | decode, tokens/s | 1,088 tokens, ms | one frame, ms | decision, ms |",
            "| --- | --- | --- | --- | --- |",
            *rows(model, measured),
            "",
        ]
    return "\n".join(text)


def main() -> None:
    """Command line."""
    folder = REPOSITORY / "docs" / "benchmarks"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=folder / "h100.json")
    parser.add_argument("--output", type=Path, default=folder / "projection.md")
    arguments = parser.parse_args()
    arguments.output.write_text(document(json.loads(arguments.json.read_text())))


if __name__ == "__main__":
    main()
