# SPDX-License-Identifier: Apache-2.0
"""Makes .venv with the pinned packages, and says what else the machine lacks; `make` calls it.

Standard library only. A second run compares one hash and returns at once. `--for demo` leaves out
what the demo does not need; a .venv that holds everything serves the demo too.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
STAMP = VENV / "nvila_ros_setup.sha256"
SUPPORTED = ("3.12", "3.11", "3.10")
PINS = ROOT / "constraints.txt"
PINS_BESIDE_ROS = ROOT / "constraints-ros.txt"
# What the installed package is made of: a change in any of these means installing again.
INSTALLED_GLOBS = (
    "constraints*.txt",
    "setup.*",
    "package.xml",
    "config/*",
    "launch/*",
    "libexec/*",
)
# Extras of setup.py, the smaller set first; the larger one holds it, and ROS comes apart from them.
EXTRAS = {
    "demo": "dashboard",
    "everything": "test,train,scale,dashboard,record,export,tensorrt-rtx,habitat",
}
GRAPHICS_PACKAGES = "libegl1 libopengl0 libgl1 libgl1-mesa-dri"
APT_REFRESHED = False


class SetupError(Exception):
    """The machine lacks something; the message names the one command that gives it."""


def say(text: str) -> None:
    """One line of progress."""
    print(f"[setup] {text}", flush=True)


def answer(command: list[str], environment: dict[str, str] | None = None) -> str | None:
    """What a command prints, or None where it fails or does not exist."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def run(command: list[str], what: str) -> None:
    """Run a command and show what it prints; a failure names what was being done."""
    done = subprocess.run(command, check=False, cwd=ROOT)
    if done.returncode != 0:
        raise SetupError(f"{what} failed (exit code {done.returncode}); its messages are above")


def apt_install(packages: str, why: str) -> None:
    """Install Debian packages when root, else say the one command that does."""
    global APT_REFRESHED
    command = f"apt-get install -y --no-install-recommends {packages}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise SetupError(f"{why}; install it with: sudo {command}")
    say(f"{why}; installing {packages}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if not APT_REFRESHED:
        subprocess.run(["apt-get", "update", "-qq"], check=False, env=environment)
        APT_REFRESHED = True
    done = subprocess.run(command.split(), check=False, env=environment)
    if done.returncode != 0:
        raise SetupError(f"{why}, and '{command}' failed; its messages are above")


def supported_version(python: str) -> str | None:
    """'3.11' when this interpreter can be used, else None."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = answer([python, "-c", program])
    return version if version in SUPPORTED else None


def find_python() -> str:
    """The interpreter that runs this, or another supported one on the PATH."""
    for name in (sys.executable, *(f"python{version}" for version in SUPPORTED)):
        path = shutil.which(name)
        if path and supported_version(path):
            return path
    found = platform.python_version()
    raise SetupError(
        f"Python 3.10, 3.11 or 3.12 is needed, found {found}; "
        "install one (Debian, Ubuntu: sudo apt-get install -y python3 python3-venv) "
        "or name it: make PYTHON=/path/to/python3.11 demo"
    )


def find_sourced_ros(python: str) -> str | None:
    """The distribution's name when a ROS 2 is sourced and this Python imports its rclpy."""
    if not os.environ.get("AMENT_PREFIX_PATH"):
        return None
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    if answer([python, "-c", "import rclpy; print(rclpy.__file__)"], environment) is None:
        say("AMENT_PREFIX_PATH is set, but this Python cannot import rclpy: using pip's wheels")
        return None
    return os.environ.get("ROS_DISTRO", "unknown")


def setup_hash(python: str, ros: str | None) -> str:
    """One hash over everything that decides what .venv holds."""
    digest = hashlib.sha256(f"{supported_version(python)} {ros} {platform.machine()}".encode())
    digest.update(Path(__file__).read_bytes())
    for pattern in INSTALLED_GLOBS:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def installed_set(wanted_hash: str | None = None) -> str | None:
    """Which of EXTRAS .venv holds, by its stamp; None without one, or where its hash is another."""
    words = STAMP.read_text(encoding="utf-8").split() if STAMP.is_file() else []
    if not words or wanted_hash not in (None, words[0]):
        return None
    return words[1] if len(words) > 1 and words[1] in EXTRAS else "everything"


def larger_set(one: str, other: str | None) -> str:
    """Of two of EXTRAS the one that holds the other: what is installed is never thinned out."""
    return max(one, other or one, key=list(EXTRAS).index)


def make_venv(python: str, ros: str | None) -> None:
    """A fresh .venv, unless one of the right kind is there already."""
    settings = VENV / "pyvenv.cfg"
    sees_system = f"include-system-site-packages = {str(ros is not None).lower()}"
    if settings.is_file():
        text = settings.read_text(encoding="utf-8").lower()
        same_kind = sees_system in text
        same_version = supported_version(str(VENV / "bin/python")) == supported_version(python)
        if same_kind and same_version:
            return
        say("the .venv here is of another kind: making it anew")
        shutil.rmtree(VENV)
    if answer([python, "-c", "import venv, ensurepip"]) is None:
        version = supported_version(python)
        apt_install(f"python{version}-venv", f"Python {version} has no venv module")
    say(f"making .venv with {python}" + (f" beside ROS 2 {ros}" if ros else ""))
    options = ["--system-site-packages"] if ros else []
    run([python, "-m", "venv", *options, str(VENV)], "making .venv")


def pins_beside_ros() -> str:
    """constraints.txt with the lines of constraints-ros.txt in place of its own."""

    def package(line: str) -> str:
        return re.split(r"[=;\s]", line, maxsplit=1)[0].lower()

    replacing = PINS_BESIDE_ROS.read_text(encoding="utf-8").splitlines()
    replaced = {package(line) for line in replacing if "==" in line}
    kept = PINS.read_text(encoding="utf-8").splitlines()
    return "\n".join([line for line in kept if package(line) not in replaced] + replacing) + "\n"


def install_packages(ros: str | None, purpose: str) -> None:
    """The package itself, editable, with its pinned dependencies and one set of EXTRAS."""
    pins = PINS
    extras = f"ros,{EXTRAS[purpose]}"
    if ros:
        extras = EXTRAS[purpose]
        pins = VENV / "constraints.txt"
        pins.write_text(pins_beside_ros(), encoding="utf-8")
    elif platform.machine() != "x86_64":
        say("ROS 2 comes as pip wheels for x86_64 only: source a ROS 2 to have the nodes here")
    say(f"installing packages for {purpose} (a few minutes the first time)")
    pip = [str(VENV / "bin/python"), "-m", "pip", "install", "-qq", "--no-input"]
    run([*pip, "-c", str(pins), "--editable", f".[{extras}]"], "installing packages")


def link_shared_files() -> None:
    """What an editable install leaves out: where `ros2 run` and `ros2 launch` look in .venv."""
    places = {
        "resource/*": "share/ament_index/resource_index/packages",
        "package.xml": "share/nvila_ros",
        "config/*": "share/nvila_ros/config",
        "launch/*": "share/nvila_ros/launch",
        "libexec/*": "lib/nvila_ros",
    }
    for pattern, place in places.items():
        folder = VENV / place
        folder.mkdir(parents=True, exist_ok=True)
        files = filter(Path.is_file, ROOT.glob(pattern))  # ros2 launch enters no linked folder
        for source in files:
            link = folder / source.name
            link.unlink(missing_ok=True)
            link.symlink_to(source)


def ensure_graphics() -> None:
    """EGL (or OSMesa, by MUJOCO_GL) draws on this machine, or the reason why not."""
    probe = [sys.executable, str(ROOT / "tools/probe_graphics.py")]
    for attempt in range(2):
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        reason = done.stdout.strip() or "the graphics library crashed"
        if attempt == 0:
            packages = GRAPHICS_PACKAGES
            if os.environ.get("MUJOCO_GL", "").lower() == "osmesa":
                packages = "libosmesa6"
            apt_install(packages, f"the simulator draws without a screen, and {reason}")
    raise SetupError(f"the simulator cannot draw: {reason}; try MUJOCO_GL=osmesa make demo")


def main() -> int:
    """Set everything up, or say in one line what is missing."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--force", action="store_true", help="install again even if unchanged")
    arguments.add_argument("--for", dest="purpose", choices=EXTRAS, default="everything")
    options = arguments.parse_args()
    try:
        python = find_python()
        ros = find_sourced_ros(python)
        wanted = setup_hash(python, ros)
        found = installed_set(wanted)
        if found and larger_set(options.purpose, found) == found and not options.force:
            return 0
        ensure_graphics()
        make_venv(python, ros)
        purpose = larger_set(options.purpose, installed_set())
        install_packages(ros, purpose)
        link_shared_files()
        STAMP.write_text(f"{wanted} {purpose}\n", encoding="utf-8")
        say("ready")
    except SetupError as error:
        print(f"[setup] {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
