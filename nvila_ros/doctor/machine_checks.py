# SPDX-License-Identifier: Apache-2.0
"""Checks of the machine: Python, packages, GPU, graphics, disk, checkpoint."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys

from nvila_ros.doctor.findings import DoctorSettings, Finding, Verdict, run_quietly
from nvila_ros.errors import NvilaError

PYTHON_FROM, PYTHON_BELOW = (3, 10), (3, 13)
MIN_FREE_GB = 2.0  # for recordings and caches
WARN_FREE_GB = 10.0
MIN_DRIVER = 580  # of the driver that CUDA 13's wheels want


def check_python(_settings: DoctorSettings) -> Finding:
    """The interpreter's version."""
    version = sys.version_info[:2]
    found = f"{platform.python_version()} at {sys.executable}"
    if not PYTHON_FROM <= version < PYTHON_BELOW:
        return Finding(
            "Python",
            Verdict.BAD,
            found,
            "use Python 3.10, 3.11 or 3.12: make setup PYTHON=python3.12",
        )
    return Finding("Python", Verdict.GOOD, found)


def check_packages(_settings: DoctorSettings) -> Finding:
    """What the robot needs at run time."""
    names = ("torch", "numpy", "cv2", "PIL", "safetensors", "tokenizers", "yaml", "mujoco")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        return Finding(
            "packages",
            Verdict.BAD,
            f"missing: {', '.join(missing)}",
            "run `make setup` in the repository's folder",
        )
    import torch

    return Finding("packages", Verdict.GOOD, f"torch {torch.__version__} and what goes with it")


def check_gpu(settings: DoctorSettings) -> Finding:
    """The GPU, its driver and whether torch can use it."""
    import torch

    bad = Verdict.BAD if settings.needs_gpu else Verdict.NOTE
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        major, minor = torch.cuda.get_device_capability(0)
        free, total = torch.cuda.mem_get_info(0)
        found = f"{name}, sm_{major}{minor}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        if (major, minor) < (8, 0):
            return Finding("GPU", bad, found, "the kernels need sm_80 or newer: use backend:=torch")
        return Finding("GPU", Verdict.GOOD, found)
    driver = _driver_version()
    if driver is None:
        return Finding(
            "GPU",
            bad,
            "no NVIDIA driver answers; the CPU computes",
            "the small model drives on a CPU; for the large ones install the NVIDIA driver "
            f"({MIN_DRIVER} or newer) and check `nvidia-smi`",
        )
    if torch.version.cuda is None:
        return Finding(
            "GPU",
            bad,
            f"driver {driver} answers, but this torch is built for the CPU",
            f".venv/bin/pip install 'torch=={torch.__version__.partition('+')[0]}+cu130' "
            "--index-url https://download.pytorch.org/whl/cu130",
        )
    return Finding(
        "GPU",
        bad,
        f"driver {driver} answers, but torch (CUDA {torch.version.cuda}) sees no device",
        f"update the driver to {MIN_DRIVER} or newer, check CUDA_VISIBLE_DEVICES, and in a "
        "container --gpus all",
    )


def check_graphics(_settings: DoctorSettings) -> Finding:
    """OpenGL without a screen, for the simulator alone."""
    code = "from nvila_ros.sim.gl import current_context; current_context()"
    answer = run_quietly([sys.executable, "-c", code])
    if answer is not None and answer.returncode == 0:
        return Finding("graphics", Verdict.GOOD, "OpenGL without a screen works")
    last = "no answer" if answer is None else (answer.stderr.strip().splitlines() or ["?"])[-1]
    return Finding(
        "graphics",
        Verdict.NOTE,
        f"the simulator cannot draw ({last[:160]})",
        "apt-get install -y libegl1 libgl1-mesa-dri (or libosmesa6); robots do without",
    )


def check_disk(settings: DoctorSettings) -> Finding:
    """Room where recordings and results go."""
    free_gb = shutil.disk_usage(settings.output.resolve()).free / 1e9
    found = f"{free_gb:.0f} GB free at {settings.output.resolve()}"
    advice = "a recording takes about 1 GB an hour at 10 Hz and 640x480; make room"
    if free_gb < MIN_FREE_GB:
        return Finding("disk", Verdict.BAD, found, advice)
    if free_gb < WARN_FREE_GB:
        return Finding("disk", Verdict.NOTE, found, advice)
    return Finding("disk", Verdict.GOOD, found)


def check_checkpoint(settings: DoctorSettings) -> Finding:
    """Whether the checkpoint would load: configuration, tokenizer, every file's header and length.

    No weight is read, as in `nvila inspect`.
    """
    from nvila_ros.models.part_files import PARTS, tensor_files
    from nvila_ros.models.weights import open_checkpoint

    folder = settings.model
    try:
        network, _, _ = open_checkpoint(folder)
        files = [file for part in PARTS for file in tensor_files(folder / part)]
        size_gb = sum(file.stat().st_size for file in files) / 1e9
    except (NvilaError, OSError) as error:
        advice = f"look at it closely: nvila inspect {folder}"
        return Finding("checkpoint", Verdict.BAD, str(error), advice)
    frames = network.config.num_video_frames
    found = f"{folder}, {size_gb:.2f} GB, {frames} frames; nvila inspect says more"
    return Finding("checkpoint", Verdict.GOOD, found)


def _driver_version() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    answer = run_quietly([program, "--query-gpu=driver_version", "--format=csv,noheader"])
    if answer is None or answer.returncode:
        return None
    return answer.stdout.strip().splitlines()[0] if answer.stdout.strip() else None
