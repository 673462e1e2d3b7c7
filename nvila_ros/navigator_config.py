# SPDX-License-Identifier: Apache-2.0
"""Everything the navigator can be told at its start; the node declares it as ROS parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

from nvila_ros.config import HistoryConfig
from nvila_ros.primitives import MotionConfig
from nvila_ros.safety import SafetyConfig
from nvila_ros.settings import check_settings, setting


@dataclass(frozen=True, kw_only=True)
class NavigatorConfig:
    """Settings of the navigator node."""

    model_path: str = setting("", "checkpoint folder; empty is the small model that is shipped")
    device: str = setting("cpu", "torch device of the model: cpu, cuda, cuda:1, auto")
    backend: str = setting(
        "auto",
        "kernels is the fast path of a CUDA GPU, torch the plain one, auto picks",
        one_of=("auto", "torch", "kernels"),
    )
    round_weights: bool = setting(
        False, "round float weights to int8 and int4 while loading; kernels only"
    )
    image_transport: str = setting(
        "raw",
        "raw images, or compressed ones from <image>/compressed",
        one_of=("raw", "compressed"),
    )
    enable_stamped_cmd_vel: bool = setting(
        True, "cmd_vel is a TwistStamped, else a Twist (Nav2's name for it)"
    )
    base_frame: str = setting("base_link", "frame of the commands")
    execute: bool = setting(True, "false decides and reports, but never moves the robot")
    preempt: bool = setting(True, "a new instruction replaces the running one, else it is refused")
    control_rate_hz: float = setting(20.0, "rate of cmd_vel, Hz", at_least=5.0, at_most=200.0)
    settle_time_s: float = setting(
        0.15, "a decision waits for an image that came this long after the motion, s", at_least=0.0
    )
    decision_timeout_s: float = setting(
        30.0, "a model that thinks for longer has failed, s", at_least=0.1
    )
    patience_s: float = setting(
        10.0, "silent sensors end the episode after this long, s", at_least=0.5
    )
    max_decisions: int = setting(200, "decisions after which an episode ends", at_least=1)
    max_failed_primitives: int = setting(
        5, "motions that failed one after the other before giving up", at_least=1
    )
    motion: MotionConfig = field(default_factory=MotionConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)

    def __post_init__(self) -> None:
        check_settings(self)
