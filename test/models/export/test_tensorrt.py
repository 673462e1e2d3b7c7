# SPDX-License-Identifier: Apache-2.0
"""TensorRT-RTX builds on a machine without a GPU: for which cards, from which forms of int8."""

import logging
import sys

import pytest
import torch

from nvila_ros.errors import ConfigError, ExportError
from nvila_ros.models import tensorrt_engine
from nvila_ros.models.engine_file import read_description
from nvila_ros.models.export import export_engine
from nvila_ros.models.onnx_graph import WEIGHTS_SUFFIX
from nvila_ros.models.tensorrt_engine import RTX, RTX_GPUS, build_engine, check_gpus

pytest.importorskip("tensorrt_rtx")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NVILA_ROS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("gpu", ["sm86", "sm89", "sm120"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_tower_is_built_for_laptops(tmp_path, gpu, precision, graph_of):
    graph = graph_of(precision)
    written = export_engine(
        graph,
        tmp_path,
        RTX,
        fingerprint="a" * 16,
        precision=precision,
        gpus=[gpu],
        frames=(1, 8),
    )
    description = read_description(written.path)
    assert description.gpus == (gpu,) and description.precision == precision
    assert description.max_frames == 8 and description.num_bytes > 10_000


def test_one_engine_for_several_cards(graph_of):
    assert build_engine(RTX, graph_of("fp16"), ["sm86", "sm89", "sm120"], (1, 8))


def test_int8_weights_stay_int8_in_the_engine(product):
    """At SigLIP's width; narrow products are turned back into floats by the builder."""
    sizes = {
        name: len(build_engine(RTX, product(name, 1152, 4304), ["sm89"], (1, 8)))
        for name in ("float16", "per_tensor")
    }
    assert sizes["per_tensor"] < 0.6 * sizes["float16"]


@pytest.mark.parametrize(
    "form, said",
    [
        ("per_tensor", None),
        ("dynamic_per_tensor", None),
        ("zero_point", "zero point"),
        ("matmul_integer", "MatMulInteger"),
    ],
)
def test_which_forms_of_int8_are_accepted(product, form, said):
    graph = product(form, 256, 128)
    if said is None:
        assert build_engine(RTX, graph, ["sm89"], (1, 8))
        return
    with pytest.raises(ExportError, match=f"(?i){said}"):
        build_engine(RTX, graph, ["sm89"], (1, 8))


def test_the_plain_librarys_calls_with_rtx_in_its_place(graph_of, monkeypatch, cache):
    """TensorRT itself is in no registry; RTX has its builder's interface, timing cache and all."""
    monkeypatch.setitem(sys.modules, "tensorrt", pytest.importorskip("tensorrt_rtx"))
    graph = graph_of("int8")
    for _ in range(2):  # without a timing cache, then with the one that was kept
        assert build_engine("tensorrt", graph, ["sm87"], (1, 8))
        (kept,) = cache.rglob("tensorrt_*.timing")
        assert kept.stat().st_size > 0
    kept.write_bytes(b"another version's")
    assert build_engine("tensorrt", graph, ["sm87"], (1, 8))


def test_cards_that_are_not_built_for_are_refused():
    with pytest.raises(ConfigError, match=r"does not build for sm90 .*--engine tensorrt\b"):
        check_gpus(RTX, ["sm89", "sm90"])
    with pytest.raises(ConfigError, match=", ".join(RTX_GPUS)):
        check_gpus(RTX, ["rtx4090"])
    with pytest.raises(ConfigError, match="--gpu current"):
        check_gpus("tensorrt", ["sm87"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_current_card_needs_a_card():
    with pytest.raises(ConfigError, match="name its card"):
        check_gpus(RTX, ["current"])


def test_a_library_that_is_not_installed_is_named_with_its_package():
    with pytest.raises(ConfigError, match="pip install tensorrt"):
        tensorrt_engine.import_library("tensorrt")


def test_a_file_that_is_no_graph_is_refused_and_logged(tmp_path, caplog):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no graph")
    with caplog.at_level(logging.WARNING), pytest.raises(ExportError, match=r"broken\.onnx"):
        build_engine(RTX, path, ["sm89"], (1,))


@pytest.mark.slow
def test_a_tower_of_siglips_width_with_some_linears_in_floats_is_built(tmp_path, wide_int8):
    """Two of three layers' weights stay int8 in the engine, the first's products are halves."""
    sizes = {}
    for kept in ("0.fc1,0.fc2", "none"):
        graph = wide_int8(kept)
        engine = build_engine(RTX, graph, ["sm86", "sm89", "sm120"], (1, 8))
        sizes[kept] = len(engine)
        weights = graph.with_name(graph.name + WEIGHTS_SUFFIX)
        assert len(engine) < 1.1 * weights.stat().st_size
    floats = 2 * 1152 * 4304  # weights that take a byte more
    assert sizes["0.fc1,0.fc2"] - sizes["none"] == pytest.approx(floats, rel=0.2)
