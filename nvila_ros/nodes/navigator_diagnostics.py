# SPDX-License-Identifier: Apache-2.0
"""What the navigator says once a second on /diagnostics."""

from __future__ import annotations

import math
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from nvila_ros.decision_worker import DecisionWorker
from nvila_ros.navigator import Navigator
from nvila_ros.navigator_status import Phase

LOW_RATE_SHARE = 0.5  # images that arrive at less than this share of the camera's rate are lost
_OK, _WARN = DiagnosticStatus.OK, DiagnosticStatus.WARN
_ERROR, _STALE = DiagnosticStatus.ERROR, DiagnosticStatus.STALE


class NavigatorDiagnostics:
    """Makes the array from what the navigator and its worker know."""

    def __init__(self, node_name: str, hardware_id: str) -> None:
        self._node_name, self._hardware_id = node_name, hardware_id

    def array(
        self,
        navigator: Navigator | None,
        worker: DecisionWorker | None,
        lifecycle: str,
        num_listeners: int,
        now_s: float,
    ) -> DiagnosticArray:
        """One status per concern; the stamp is the caller's to set."""
        if navigator is None or worker is None:
            return DiagnosticArray(status=[self._status("state", _OK, "unconfigured", [])])
        return DiagnosticArray(
            status=[
                self._state(navigator, lifecycle, num_listeners),
                self._camera(navigator, now_s),
                self._odometry(navigator, now_s),
                self._model(navigator, worker, now_s),
            ]
        )

    def _status(
        self, task: str, level: bytes, message: str, rows: list[tuple[str, Any]]
    ) -> DiagnosticStatus:
        values = [KeyValue(key=key, value=_text(value)) for key, value in rows]
        name = f"{self._node_name}: {task}"
        hardware_id = self._hardware_id
        return DiagnosticStatus(
            level=level, name=name, message=message, hardware_id=hardware_id, values=values
        )

    def _state(self, navigator: Navigator, lifecycle: str, num_listeners: int) -> DiagnosticStatus:
        status = navigator.status
        level = _OK
        if status.phase in (Phase.FAULT, Phase.EMERGENCY_STOP):
            level = _ERROR
        elif lifecycle == "active" and num_listeners == 0:
            level = _WARN
        nobody = "nobody listens to cmd_vel" if level == _WARN else ""
        times = navigator.times
        rows = [
            ("lifecycle", lifecycle),
            ("result", status.result.name),
            ("episode", status.episode),
            ("decisions", status.num_decisions),
            ("cmd_vel listeners", num_listeners),
            ("watchdog trips", navigator.num_watchdog_trips),
            ("emergency stop", navigator.emergency or "no"),
            ("waiting share of the episode", times.waiting_share()),
            ("episode duration (s)", times.duration_s),
        ]
        message = ": ".join(filter(None, (status.phase.value, nobody or status.message)))
        return self._status("state", level, message, rows)

    def _camera(self, navigator: Navigator, now_s: float) -> DiagnosticStatus:
        images, senses = navigator.senses.images, navigator.senses
        age_s, rate_hz = images.age_s(now_s), images.rate_hz(now_s)
        source_hz = navigator.config.camera_rate_hz or images.source_rate_hz()
        level, message = _OK, f"{rate_hz:.1f} Hz"
        if age_s > navigator.config.safety.max_image_age_s:
            level = _STALE if math.isinf(age_s) else _ERROR
            message = "no image yet" if math.isinf(age_s) else f"no image for {age_s:.1f} s"
        elif source_hz > 0 and rate_hz < LOW_RATE_SHARE * source_hz:
            level = _WARN
            message = (
                f"images arrive at {rate_hz:.1f} Hz, the camera makes {source_hz:.1f} Hz: set "
                "FASTDDS_DEFAULT_PROFILES_FILE to config/fastdds.xml on both sides"
            )
        rows = [
            ("rate (Hz)", rate_hz),
            ("camera's own rate (Hz)", source_hz),
            ("age (s)", age_s),
            ("images", images.count),
            ("refused images", senses.num_refused_images),
            ("last refusal", senses.last_problem),
        ]
        return self._status("camera", level, message, rows)

    def _odometry(self, navigator: Navigator, now_s: float) -> DiagnosticStatus:
        odometry = navigator.senses.odometry
        age_s = odometry.age_s(now_s)
        level, message = _OK, f"{odometry.rate_hz(now_s):.1f} Hz"
        if age_s > navigator.config.safety.max_odometry_age_s:
            level = _STALE if math.isinf(age_s) else _ERROR
            message = "no odometry yet" if math.isinf(age_s) else f"no odometry for {age_s:.1f} s"
        return self._status("odometry", level, message, [("age (s)", age_s)])

    def _model(self, navigator: Navigator, worker: DecisionWorker, now_s: float) -> Any:
        latency, watch = navigator.latency, navigator.watch
        level, message = _OK, "ready"
        if worker.load_error:
            level, message = _ERROR, worker.load_error
        elif worker.policy is None:
            level = _WARN
            message = f"{worker.progress()}, for {now_s - worker.loading_since_s:.1f} s"
        elif worker.notices():
            level, message = _WARN, "; ".join(worker.notices())
        elif worker.busy:
            message = "thinking"
        rows = [
            ("decision latency p50 (s)", latency.percentile_s(50.0)),
            ("decision latency p95 (s)", latency.percentile_s(95.0)),
            ("decision latency max (s)", latency.max_s),
            ("decisions", latency.count),
            ("GPU memory (MB)", worker.memory_bytes() / 1e6),
            ("confidence of the last decision", navigator.last_confidence),
            ("refused answers", watch.num_refusals),
            ("unsure decisions", watch.num_unsure),
            ("loads", worker.num_loads),
        ]
        return self._status("model", level, message, rows)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
