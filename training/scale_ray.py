# SPDX-License-Identifier: Apache-2.0
"""Units of work on a Ray cluster: results come back to the driver, which alone writes files."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvila_ros.errors import ConfigError, NvilaError, install_hint
from nvila_ros.training.scale import PENDING_PER_WORKER, Job, ScaleSettings, Unit, _do

LOGGER = logging.getLogger(__name__)
MAX_TRIES = 5  # of one unit whose machine or process died: the sixth time it is the unit's fault
POLL_S = 5.0
REACH_TIMEOUT_S = 5.0


def ray_results(
    job: Job, units: list[Unit], settings: ScaleSettings
) -> Iterator[tuple[Unit, dict[str, bytes]]]:
    """Each unit's files once, in the order in which they come; dead machines' units are redone."""
    ray = connect(settings.ray)
    remote = ray.remote(
        num_cpus=settings.num_cpus, num_gpus=settings.num_gpus, max_retries=0, max_calls=0
    )(_do)
    shared = ray.put(job)
    waiting = list(reversed(units))
    tries = {unit.name: 0 for unit in units}
    pending: dict[Any, Unit] = {}
    try:
        while waiting or pending:
            room = _num_slots(ray, settings) * PENDING_PER_WORKER
            while waiting and len(pending) < room:
                unit = waiting.pop()
                tries[unit.name] += 1
                pending[remote.remote(shared, unit)] = unit
            finished, _ = ray.wait([*pending], num_returns=1, timeout=POLL_S)
            for reference in finished:
                unit = pending.pop(reference)
                try:
                    files = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise _cause(error, unit) from None
                except ray.exceptions.RayError as error:  # the process, its machine or the object
                    if tries[unit.name] >= MAX_TRIES:
                        raise NvilaError(
                            f"unit {unit.name} was tried {MAX_TRIES} times and died each time "
                            f"({type(error).__name__}); look at its memory"
                        ) from None
                    LOGGER.warning("unit %s died (%s): again", unit.name, type(error).__name__)
                    waiting.append(unit)
                    continue
                yield unit, files
    finally:
        for reference in pending:
            ray.cancel(reference, force=False)


def connect(address: str | None) -> Any:
    """The module ray, connected; ConfigError names the extra or the address."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"--ray needs the library ray ({error}); {install_hint('scale')}"
        ) from None
    if not ray.is_initialized():
        _check_reachable(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"no Ray cluster at {address!r} ({error}); start one with `ray start --head`"
            ) from None
    return ray


def _check_reachable(address: str | None) -> None:
    """Raises ConfigError at once where nobody listens; Ray itself would wait for minutes."""
    found = address
    if address in (None, "auto"):
        current = (
            Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
            / "ray"
            / "ray_current_cluster"
        )
        try:
            found = os.environ.get("RAY_ADDRESS") or current.read_text().strip()
        except OSError:
            found = ""
    host, _, port = (found or "").rpartition(":")
    if "://" in (found or ""):
        return
    try:
        socket.create_connection((host, int(port)), REACH_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster at {address!r} ({found or 'none was started here'}: {error}); "
            "start one with `ray start --head`"
        ) from None


def _num_slots(ray: Any, settings: ScaleSettings) -> int:
    """How many units the machines that live now can do at once."""
    total = ray.cluster_resources()
    slots = total.get("CPU", 0.0) / settings.num_cpus if settings.num_cpus else 1.0
    if settings.num_gpus:
        slots = min(slots, total.get("GPU", 0.0) / settings.num_gpus)
    return max(1, int(slots))


def _cause(error: Any, unit: Unit) -> Exception:
    """What a unit raised, as it raised it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, NvilaError):
        return type(cause)(str(cause).split("\n")[0])
    return RuntimeError(f"unit {unit.name} failed: {error}")
