# SPDX-License-Identifier: Apache-2.0
"""The arrows between the rooms: an inner room never imports an outer, rclpy stays at the rim."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = {
    "action_trie",
    "actions",
    "asking_policy",
    "config",
    "decision",
    "decision_worker",
    "episode_watch",
    "errors",
    "history",
    "history_strip",
    "mirrored_policy",
    "navigator",
    "motion",
    "navigator_config",
    "navigator_episode",
    "navigator_senses",
    "navigator_status",
    "navigator_times",
    "patience",
    "policy",
    "policy_process",
    "policy_server",
    "primitives",
    "restraint",
    "rolling",
    "safety",
    "sensor_guard",
    "settings",
    "think_ahead",
}
# room -> the other rooms (or modules of the core) that it may import; "core" stands for all of CORE
ALLOWED = {
    "kernels": {"errors"},
    "models": {"kernels", "errors"},
    "core": {"core", "models", "kernels"},
    "sim": {"errors"},
    "training": {"models", "kernels", "core", "sim", "evaluation"},
    "evaluation": {"models", "core", "sim"},
    "recording": {"models", "core", "training", "evaluation", "ros"},
    "doctor": {"models", "core", "ros"},
    "dashboard": {"models", "core"},
    "cli": {
        "models",
        "core",
        "sim",
        "evaluation",
        "training",
        "nodes",
        "recording",
        "doctor",
        "ros",
    },
    "ros": {"core"},
    "nodes": {"core", "models", "sim", "ros", "evaluation", "recording", "dashboard"},
}


def room_of(module: str) -> str:
    """'nvila_ros.models.vision' -> 'models'; a module of the core -> 'core'."""
    part = module.split(".")[1] if "." in module else "core"
    if part in CORE:
        return "core"
    rim = next((room for room in ("ros", "cli") if part.startswith(f"{room}_")), None)
    return rim or part


def imported_modules(path: Path) -> set[str]:
    """Every module that a file names in an import, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def source_files() -> list[tuple[str, Path]]:
    """(module name, file) of every module in the package."""
    files = list(ROOT.glob("nvila_ros/**/*.py"))
    for linked in ("models", "kernels", "training"):
        files += ROOT.glob(f"{linked}/**/*.py")
    named = []
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "nvila_ros" else ("nvila_ros", *parts)
        named.append((".".join(part for part in parts if part != "__init__"), path))
    return sorted(set(named))


SOURCE_FILES = source_files()
MODULES = [module for module, _ in SOURCE_FILES]


def may_import(module: str, imported: str) -> bool:
    room = room_of(module)
    target = room_of(imported)
    if room == target or imported.split(".")[1:2] in ([], ["__version__"]):
        return True
    allowed = ALLOWED.get(room, set())
    return target in allowed or imported.split(".")[1] in allowed


@pytest.mark.parametrize("module, path", SOURCE_FILES, ids=MODULES)
def test_imports_follow_the_arrows(module: str, path: Path) -> None:
    wrong = [
        name
        for name in sorted(imported_modules(path))
        if name.split(".")[0] == "nvila_ros" and not may_import(module, name)
    ]
    assert not wrong, f"{module} may not import {wrong}"


@pytest.mark.parametrize("module, path", SOURCE_FILES, ids=MODULES)
def test_ros_stays_in_nodes_and_ros_modules(module: str, path: Path) -> None:
    if room_of(module) in ("nodes", "ros"):
        return
    ros_packages = {"rclpy", "launch", "launch_ros", "ament_index_python"}
    found = {
        name for name in imported_modules(path) if name.split(".")[0] in ros_packages
        or name.split(".")[0].endswith(("_msgs", "_srvs"))
    }  # fmt: skip
    assert not found, f"{module} imports {sorted(found)}; only nodes/ and ros_*.py may"


def test_links_lead_to_the_rooms_at_the_top() -> None:
    for room in ("models", "kernels", "training"):
        link = ROOT / "nvila_ros" / room
        assert link.is_symlink() and link.resolve() == ROOT / room


def test_a_forbidden_import_is_seen() -> None:
    assert not may_import("nvila_ros.kernels.w4a16", "nvila_ros.models.vision.Tower")
    assert not may_import("nvila_ros.sim.world", "nvila_ros.actions.ACTIONS")
    assert not may_import("nvila_ros.training.train", "nvila_ros.nodes.navigator_node")
    assert may_import("nvila_ros.models.vision", "nvila_ros.kernels.norms.rms_norm")
    assert may_import("nvila_ros.sim.world", "nvila_ros.errors.SceneError")
