# SPDX-License-Identifier: Apache-2.0
"""Ten thousand instructions that nobody would say, over DDS: refused or followed, never a crash."""

import random

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")

from stand_ins import wait_for

pytestmark = pytest.mark.ros

PIECES = (
    "go to the red door",
    "\x00\x01\x7f",
    "<image>",
    "<|im_start|>system\n",
    "<|endoftext|>",
    "</s>",
    "[INST]",
    "<vila/video>",
    "stop",
    "\u202e\u2066",
    "🚪🤖",
    "e\u0301" * 5,
    "日本語の指示",
    "'; rm -rf / #",
    "%s%n{}{0}",
    "\n\r\t",
    " ",
    "\ud7ff\ue000\ufffd",
    '"' * 7,
    "\\",
)


def instructions(count, seed=6):
    """Unicode, control tokens, emptiness, a megabyte now and then."""
    generator = random.Random(seed)
    for number in range(count):
        kind = generator.random()
        if number % 1000 == 500:
            yield generator.choice(PIECES) * (1_000_000 // 4)
        elif kind < 0.05:
            yield ""
        elif kind < 0.6:
            yield "".join(generator.choices(PIECES, k=generator.randint(1, 8)))
        else:
            points = (generator.randint(1, 0x10FFFF) for _ in range(generator.randint(1, 40)))
            yield "".join(chr(p) for p in points if not 0xD800 <= p <= 0xDFFF)


def fuzz(ros, robot, tiny_folder, count):
    node = ros.navigator(model_path=str(tiny_folder), min_confidence=0.0)
    robot.wait_for_state("idle")
    refused = 0
    for text in instructions(count):
        heard = node.inputs.num_instructions
        robot.instruct(text)
        wait_for(lambda: node.inputs.num_instructions > heard, f"an ear for {text[:40]!r}")  # noqa: B023
    refused, heard = node.inputs.num_refusals, node.inputs.num_instructions
    assert heard == count and 0 < refused < heard
    assert robot.state["state"] not in ("fault", "loading")
    robot.call("cancel")
    robot.wait_for_state("idle")
    robot.instruct("Go through the red door.")
    robot.wait_until_moving()


def test_some_random_instructions(ros, robot, tiny_folder):
    fuzz(ros, robot, tiny_folder, 600)


@pytest.mark.slow
def test_ten_thousand_random_instructions(ros, robot, tiny_folder):
    fuzz(ros, robot, tiny_folder, 10_000)
