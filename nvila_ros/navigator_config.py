# SPDX-License-Identifier: Apache-2.0
"""Everything the navigator can be told at its start; the node declares it as ROS parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

from nvila_ros.config import HistoryConfig
from nvila_ros.primitives import MotionConfig
from nvila_ros.safety import SafetyConfig
from nvila_ros.settings import check_settings, live_setting, setting
from nvila_ros.think_ahead import ThinkingConfig


@dataclass(frozen=True, kw_only=True)
class NavigatorConfig:
    """Settings of the navigator node."""

    autostart: bool = setting(
        True, "configure and activate by itself; false waits for a lifecycle manager", fixed=True
    )
    bond: str = setting(
        "auto",
        "tell Nav2's lifecycle manager that the node lives; auto where bond is installed",
        one_of=("auto", "none"),
    )
    model_path: str = setting("", "checkpoint folder; empty is the small model that is shipped")
    device: str = setting("cpu", "torch device of the model: cpu, cuda, cuda:1, auto")
    backend: str = setting(
        "auto",
        "kernels is the fast path of a CUDA GPU, torch the plain one, auto picks",
        one_of=("auto", "torch", "kernels"),
    )
    vision_backend: str = setting(
        "auto",
        "the tower: the fastest of the engine's and of what nvila export made, or one by name",
        one_of=("auto", "kernels", "tensorrt", "onnxruntime", "torch"),
    )
    round_weights: bool = setting(
        False, "round float weights to int8 and int4 while loading; kernels only"
    )
    model_process: bool = setting(
        True, "the model runs in a process of its own, which is started again when it dies"
    )
    executor: str = setting(
        "primitives",
        "who drives: our primitives on cmd_vel, or Nav2's DriveOnHeading, Spin and BackUp",
        one_of=("primitives", "nav2"),
    )
    image_transport: str = setting(
        "raw",
        "raw images, or compressed ones from <image>/compressed",
        one_of=("raw", "compressed"),
    )
    camera_rate_hz: float = setting(
        0.0, "the camera's own rate, Hz; 0 takes it from the stamps", at_least=0.0
    )
    enable_stamped_cmd_vel: bool = setting(
        True, "cmd_vel is a TwistStamped, else a Twist (Nav2's name for it)"
    )
    base_frame: str = setting("base_link", "frame of the commands")
    execute: bool = live_setting(True, "false decides and reports, but never moves the robot")
    preempt: bool = live_setting(
        True, "a new instruction replaces the running one, else it is refused"
    )
    control_rate_hz: float = setting(20.0, "rate of cmd_vel, Hz", at_least=5.0, at_most=200.0)
    settle_time_s: float = live_setting(
        0.15, "a decision waits for an image that came this long after the motion, s", at_least=0.0
    )
    decision_timeout_s: float = live_setting(
        30.0, "a model that thinks for longer has failed, s", at_least=0.1
    )
    patience_s: float = live_setting(
        10.0, "silent sensors end the episode after this long, s", at_least=0.5
    )
    max_decisions: int = live_setting(200, "decisions after which an episode ends", at_least=1)
    max_failed_primitives: int = live_setting(
        5, "motions that failed one after the other before giving up", at_least=1
    )
    max_refusals: int = live_setting(
        3, "unusable answers one after the other before giving up", at_least=1
    )
    min_confidence: float = live_setting(
        0.12, "a decision below this is not obeyed; 0.1 is a blind guess", at_least=0.0, at_most=1.0
    )
    max_unsure_decisions: int = live_setting(
        5, "decisions below it one after the other before giving up", at_least=1
    )
    lost_after_decisions: int = live_setting(
        30, "decisions that stay within lost_radius_m before giving up", at_least=4
    )
    lost_radius_m: float = live_setting(
        0.5, "a robot that gets no further is lost, m", at_least=0.0
    )
    thinking: ThinkingConfig = field(default_factory=ThinkingConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)

    def __post_init__(self) -> None:
        check_settings(self)
