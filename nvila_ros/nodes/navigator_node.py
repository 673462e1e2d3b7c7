# SPDX-License-Identifier: Apache-2.0
"""ROS shell of the navigator: a lifecycle node around `nvila_ros.navigator.Navigator`."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy._rclpy_pybind11 import InvalidHandle
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import String

from nvila_ros import ros_parameters
from nvila_ros.decision import Policy
from nvila_ros.decision_worker import DecisionWorker
from nvila_ros.errors import ConfigError
from nvila_ros.motion import MakeMotion, own_motion
from nvila_ros.navigator import Navigator
from nvila_ros.navigator_config import NavigatorConfig
from nvila_ros.navigator_status import Phase, Result, Status, status_row
from nvila_ros.nodes.lifecycle_bond import Bond, bond_message
from nvila_ros.nodes.nav2_motion import Nav2Motions
from nvila_ros.nodes.navigator_diagnostics import NavigatorDiagnostics
from nvila_ros.nodes.navigator_inputs import NavigatorInputs
from nvila_ros.nodes.navigator_outputs import NavigatorOutputs
from nvila_ros.nodes.navigator_services import NavigatorServices
from nvila_ros.nodes.policy_loading import policy_loader, shipped_model_warning
from nvila_ros.ros_main import EVENT_QOS, STATE_QOS, SafeLifecycleNode, run_node, steady_clock
from nvila_ros.safety import Velocity

DIAGNOSTICS_PERIOD_S = 1.0
_SUCCESS, _FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class NavigatorNode(SafeLifecycleNode):
    """Callbacks store and return; the worker thread thinks; a steady timer commands.

    All names are relative and can be remapped. Times of silence are measured on the machine's own
    monotonic clock, so that neither a wrong stamp nor a jumping clock can keep the robot moving.

    configure loads the model in the background, activate arms, deactivate and shutdown say zero
    first, cleanup ends the model's process and so frees the GPU.
    """

    def __init__(
        self,
        load_policy: Callable[[NavigatorConfig], Policy] | None = None,
        **node_options: Any,
    ) -> None:
        super().__init__("navigator", **node_options)
        self._problem = ""
        try:
            self.settings = ros_parameters.declare(self, NavigatorConfig, editable=True)
        except ConfigError as error:
            # The node stays up, still and able to say why.
            self._problem = f"the configuration is refused: {error}"
            self.settings = ros_parameters.declare_defaults(self, NavigatorConfig)
        self._load_policy = load_policy
        self._navigator: Navigator | None = None
        self._worker: DecisionWorker | None = None
        self._bond: Bond | None = None
        self._closers: list[Callable[[], Any]] = []
        self._outputs: NavigatorOutputs  # these two are there from configure on
        self.inputs: NavigatorInputs
        self._lifecycle = "unconfigured"
        self._told: Status | None = None
        self._state_publisher = self.create_publisher(String, "~/state", STATE_QOS)
        self._diagnostics_publisher = self.create_publisher(
            DiagnosticArray, "/diagnostics", EVENT_QOS
        )
        hardware_id = self.get_namespace().strip("/") or "robot"
        name = self.get_fully_qualified_name().lstrip("/")
        self._diagnostics = NavigatorDiagnostics(name, hardware_id)
        self.create_timer(DIAGNOSTICS_PERIOD_S, self._on_diagnostics, clock=steady_clock())
        self.add_on_set_parameters_callback(self._on_parameters)
        self._tell(self._status())
        if self.settings.autostart and not self._problem:
            self._autostart_timer = self.create_timer(0.0, self._autostart, clock=steady_clock())

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Makes topics and services, and begins to load the model; does not wait for it."""
        if self._problem:
            self.get_logger().error(self._problem)
            return _FAILURE
        settings = self.settings
        try:
            make_motion = self._make_motion()
        except ConfigError as error:
            self.get_logger().error(str(error))
            self._tell(Status(Phase.FAULT, message=str(error)))
            return _FAILURE
        wake = self.create_guard_condition(self._on_answer)
        loader = policy_loader(settings, self._load_policy)
        self._worker = DecisionWorker(loader, _quietly(wake.trigger))
        self._navigator = Navigator(settings, self._worker, make_motion, is_active=False)
        self._outputs = NavigatorOutputs(self, settings)
        self.inputs = NavigatorInputs(
            self, settings, self._navigator, self._on_emergency, self._on_frame_id
        )
        services = NavigatorServices(self, self._navigator)
        period_s = 1.0 / settings.control_rate_hz
        timer = self.create_timer(period_s, self._on_tick, clock=steady_clock())
        self._closers += [
            lambda: self.destroy_timer(timer),
            lambda: self.destroy_guard_condition(wake),
            services.close,
            self.inputs.close,
            self._outputs.close,
        ]
        self._worker.start()
        self._lifecycle = "inactive"
        return _SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Arms: from now on instructions are taken; the model may still be loading."""
        if self._navigator is None or self._navigator.status.phase is Phase.FAULT:
            return _FAILURE
        self._navigator.activate()
        message = bond_message() if self.settings.bond == "auto" else None
        if message is not None:
            self._bond = Bond(self, message)
        self._lifecycle = "active"
        self._warn_of_shipped_model()
        return _SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Zero velocity first."""
        self._disarm()
        self._lifecycle = "inactive"
        return _SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Ends the model's process and removes what configure made."""
        self._release()
        return _SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Zero velocity first, whatever was going on."""
        self.shut_down()
        self._lifecycle = "finalized"
        return _SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """A transition threw: stand still, let go of everything, and be configured again."""
        self.get_logger().error("a transition failed; the node is unconfigured and stands still")
        with contextlib.suppress(Exception):
            self._disarm()
        self._release()
        return _SUCCESS

    def shut_down(self) -> None:
        """Zero velocity, known to have arrived where somebody listens."""
        self._disarm()
        self._release()

    def _autostart(self) -> None:
        self.destroy_timer(self._autostart_timer)
        if self._lifecycle == "unconfigured" and self.trigger_configure() == _SUCCESS:
            self.trigger_activate()

    def _make_motion(self) -> MakeMotion:
        """Who drives, by the parameter `executor`; ConfigError where Nav2 is not installed."""
        if self.settings.executor != "nav2":
            return own_motion
        nav2 = Nav2Motions(self, self.settings.base_frame)
        self._closers.append(nav2.close)
        return nav2.make_motion

    def _warn_of_shipped_model(self) -> None:
        """Once, when the model that only knows the simulator may move something else."""
        text = shipped_model_warning(self.settings, self.get_parameter("use_sim_time").value)
        if text and self._load_policy is None:
            self.get_logger().warning(text, once=True)

    def _disarm(self) -> None:
        if self._navigator is None:
            return
        self._navigator.deactivate()
        if self.settings.executor == "primitives":
            self._outputs.say_zero()
        self._say_what_happened(self._navigator)
        if self._bond is not None:
            self._bond.end()
            self._bond = None

    def _release(self) -> None:
        if self._worker is not None:
            self._worker.stop()
        for close in self._closers:
            close()
        self._closers.clear()
        self._navigator = self._worker = None
        self._lifecycle = "unconfigured"
        if self._status() != self._told:
            self._tell(self._status())

    def _status(self) -> Status:
        if self._navigator is not None:
            return self._navigator.status
        phase = Phase.FAULT if self._problem else Phase.UNCONFIGURED
        return Status(phase, message=self._problem)

    def _on_tick(self) -> None:
        navigator, worker = self._navigator, self._worker
        if navigator is None or worker is None:
            return
        moves = self.settings.execute and self.settings.executor == "primitives"
        navigator.hear_listeners(self._outputs.num_listeners if moves else 1)
        worker.wants_strip = self._outputs.wants_history
        self._command(navigator)

    def _on_answer(self) -> None:
        """The worker has answered: obeyed at once, not at the next tick."""
        if self._navigator is not None and self._worker is not None:
            self._command(self._navigator)
            strip = self._worker.take_strip()
            if strip is not None:
                self._outputs.say_history(strip)

    def _command(self, navigator: Navigator) -> None:
        velocity = navigator.tick(time.monotonic(), self.get_clock().now().nanoseconds * 1e-9)
        if self._lifecycle == "active" and self.settings.executor == "primitives":
            self._outputs.say_velocity(velocity)
        self._say_what_happened(navigator)

    def _say_what_happened(self, navigator: Navigator) -> None:
        for event in navigator.take_events():
            self._outputs.say_event(event)
        if navigator.status != self._told:
            self._tell(navigator.status)

    def _tell(self, status: Status) -> None:
        self._told = status
        self._state_publisher.publish(String(data=json.dumps(status_row(status))))
        log = self.get_logger()
        if status.phase is Phase.FAULT:
            log.error(status.message)
        elif status.result > Result.SUCCEEDED:
            log.warning(f"{status.result.name}: {status.message}")
        elif status.result is Result.SUCCEEDED:
            log.info(f"SUCCEEDED after {status.num_decisions} decisions")

    def _on_diagnostics(self) -> None:
        listeners = self._outputs.num_listeners if self._navigator is not None else 0
        array = self._diagnostics.array(
            self._navigator, self._worker, self._lifecycle, listeners, time.monotonic()
        )
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics_publisher.publish(array)

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """Takes good values at once, and says what is wrong with bad ones."""
        is_configured = self._navigator is not None
        try:
            settings = ros_parameters.changed(self.settings, parameters, only_live=is_configured)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self.settings = settings
        if self._navigator is not None:
            self._navigator.reconfigure(settings)
            self._warn_of_shipped_model()
        return SetParametersResult(successful=True)

    def _on_frame_id(self, frame_id: str) -> None:
        self._outputs.frame_id = frame_id or self._outputs.frame_id

    def _on_emergency(self, reason: str) -> None:
        """Zero goes out now, not at the next tick."""
        if self._navigator is None or self._navigator.emergency:
            return
        self._navigator.emergency_stop(reason)
        self._outputs.say_velocity(Velocity.ZERO)
        self._say_what_happened(self._navigator)


def _quietly(trigger: Callable[[], None]) -> Callable[[], None]:
    """The worker may answer when the node has gone."""

    def call() -> None:
        with contextlib.suppress(InvalidHandle):
            trigger()

    return call


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `ros2 run nvila_ros navigator_node`."""
    return run_node(NavigatorNode, arguments)


if __name__ == "__main__":
    sys.exit(main())
