# SPDX-License-Identifier: Apache-2.0
"""The drawing library is chosen alone, and its absence is explained."""

import pytest

from nvila_ros.errors import SystemLibraryError
from nvila_ros.sim import gl


def test_egl_is_preferred_and_a_choice_is_kept(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "_loads", lambda library: True)
    assert gl.choose_gl_backend() == "egl"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert gl.choose_gl_backend() == "osmesa"


def test_osmesa_is_the_second_choice(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "_loads", lambda library: "OSMesa" in library)
    assert gl.choose_gl_backend() == "osmesa"


def test_without_any_library_the_error_names_the_command(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "_loads", lambda library: False)
    monkeypatch.setattr(gl, "_contexts", {})
    with pytest.raises(SystemLibraryError, match="apt-get install"):
        gl.current_context()
