# SPDX-License-Identifier: Apache-2.0
"""Distances around obstacles: one eikonal field per goal, marched for all goals at once."""

from __future__ import annotations

import numpy as np

from nvila_ros.errors import SceneError

EXACT_RADIUS_CELLS = 8  # around a goal straight distances replace the inaccurate first cells
BAND_CELLS = 0.5  # width of the front that advances together; only speed depends on it
DIAGONAL = np.float32(np.sqrt(2))
MIN_GAIN = 1e-3  # in cells: a smaller improvement is not passed on


def distance_fields(
    free: np.ndarray, goals_ij: np.ndarray, resolution_m: float, speed: np.ndarray | None = None
) -> np.ndarray:
    """Travel time from every cell to each goal: (nx, ny), (G, 2) -> (G, nx, ny) float32.

    `speed` is 1 without an argument (the field is the geodesic distance in metres), else an array
    that broadcasts to (G, nx, ny), in (0, 1]. Cells that cannot reach the goal hold inf; a goal
    that is not free raises SceneError. The border of `free` must be False.
    """
    goals_ij = np.asarray(goals_ij, dtype=np.int64).reshape(-1, 2)
    if not free[goals_ij[:, 0], goals_ij[:, 1]].all():
        raise SceneError("a goal lies in a cell that is not free; snap goals to the grid first")
    num_goals, num_y, num_cells = len(goals_ij), free.shape[1], free.size
    if speed is None:
        slowness = np.full(num_goals * num_cells, resolution_m, dtype=np.float32)
    else:
        relative = resolution_m / np.broadcast_to(speed, (num_goals, *free.shape))
        slowness = relative.ravel().astype(np.float32)
    is_open = np.broadcast_to(free.ravel(), (num_goals, num_cells)).ravel()
    time = np.full(num_goals * num_cells, np.inf, dtype=np.float32)
    seeds = _seed(time, free, goals_ij, slowness, EXACT_RADIUS_CELLS if speed is None else 2)
    with np.errstate(invalid="ignore"):  # inf - inf where nothing has arrived yet
        _march(time, is_open, slowness, seeds, num_y, BAND_CELLS * resolution_m)
    return time.reshape(num_goals, *free.shape)


def _seed(
    time: np.ndarray, free: np.ndarray, goals_ij: np.ndarray, slowness: np.ndarray, radius: int
) -> np.ndarray:
    """Write straight distances within sight of each goal; returns the flat indices written."""
    span = np.arange(-radius, radius + 1)
    offsets = np.stack(np.meshgrid(span, span, indexing="ij"), axis=-1).reshape(-1, 2)
    lengths = np.hypot(offsets[:, 0], offsets[:, 1])
    offsets, lengths = offsets[lengths <= radius], lengths[lengths <= radius]
    steps = np.linspace(0, 1, 2 * radius + 1)
    rays = np.rint(steps[:, None, None] * offsets).astype(np.int64)  # (steps, K, 2)
    upper = np.array(free.shape) - 1
    cells = np.clip(goals_ij[:, None, None, :] + rays, 0, upper)  # (G, steps, K, 2)
    in_sight = free[cells[..., 0], cells[..., 1]].all(axis=1)  # (G, K)
    goal, ray = np.nonzero(in_sight)
    ends = goals_ij[goal] + offsets[ray]
    flat = goal * free.size + ends[:, 0] * free.shape[1] + ends[:, 1]
    time[flat] = lengths[ray] * slowness[flat]
    return flat


def _march(
    time: np.ndarray,
    is_open: np.ndarray,
    slowness: np.ndarray,
    seeds: np.ndarray,
    num_y: int,
    band: float,
) -> None:
    """Group marching: the part of the front below a rising limit updates its neighbours.

    A cell that improves joins the front again, so the band decides about repeated work, not about
    the result: first order, from the better of the axis-aligned and the diagonal stencil.
    """
    neighbours = np.array([-num_y, num_y, -1, 1])
    queued = np.zeros(len(time), dtype=bool)
    order = np.empty(len(time), dtype=np.int32)
    queued[seeds] = True
    front, limit = seeds, 0.0
    while len(front):
        ready = time[front] <= limit
        group, waiting = front[ready], front[~ready]
        if not len(group):
            limit = float(time[front].min()) + band
            continue
        queued[group] = False
        cells = (group + neighbours[:, None]).ravel()
        behind = np.tile(time[group], 4)
        cells = cells[is_open[cells] & (time[cells] > behind)]
        step = slowness[cells]
        arrival = np.minimum(
            _arrival(time, cells, num_y, 1, step),
            _arrival(time, cells, num_y + 1, num_y - 1, DIAGONAL * step),
        )
        better = arrival < time[cells] - MIN_GAIN * step
        cells = cells[better]
        time[cells] = arrival[better]
        cells = cells[~queued[cells]]
        order[cells] = np.arange(len(cells))
        cells = cells[order[cells] == np.arange(len(cells))]  # one of each
        queued[cells] = True
        front = np.concatenate([waiting, cells])
        limit += band


def _arrival(
    time: np.ndarray, cells: np.ndarray, first: int, second: int, step: np.ndarray
) -> np.ndarray:
    """Upwind solution from two perpendicular pairs of neighbours at the given index offsets."""
    along_first = np.minimum(time[cells - first], time[cells + first])
    along_second = np.minimum(time[cells - second], time[cells + second])
    lower = np.minimum(along_first, along_second)
    difference = np.fmin(np.abs(along_first - along_second), step)
    return lower + 0.5 * (difference + np.sqrt(2 * step * step - difference * difference))
