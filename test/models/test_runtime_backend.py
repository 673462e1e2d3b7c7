# SPDX-License-Identifier: Apache-2.0
"""Which engine answers: what a device lacks is said, and the best path that works is taken."""

import logging

import pytest
import torch

from nvila_ros.errors import ConfigError, KernelError
from nvila_ros.kernels import build, compiler, driver
from nvila_ros.models import runtime, runtime_backend, runtime_memory, weights
from nvila_ros.models.footprint import num_prompt_tokens
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.runtime import Engine

CUDA = torch.device("cuda", 0)


@pytest.fixture
def old_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))


def test_a_cpu_gets_plain_torch_and_kernels_only_when_asked():
    cpu = torch.device("cpu")
    assert runtime_backend.choose_backend("auto", cpu) == ("torch", "the device is cpu")
    assert runtime_backend.choose_backend("kernels", cpu)[0] == "kernels"
    with pytest.raises(ConfigError, match="auto, torch, kernels"):
        runtime_backend.choose_backend("fast", cpu)


def test_an_old_gpu_gets_plain_torch_with_a_warning(old_gpu, caplog):
    with caplog.at_level(logging.WARNING):
        name, reason = runtime_backend.choose_backend("auto", CUDA)
    assert name == "torch" and "sm_75" in reason and "sm_75" in caplog.text
    with pytest.raises(ConfigError, match="sm_75"):
        runtime_backend.choose_backend("kernels", CUDA)


def test_devices_that_are_not_there_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime_backend.usable_device("auto") == torch.device("cpu")
    for name, words in (("cuda", "sees 0 CUDA GPUs"), ("banana", "cpu, cuda")):
        with pytest.raises(ConfigError, match=words):
            runtime_backend.usable_device(name)


def test_rounding_at_load_needs_the_kernels(tiny_folder):
    with pytest.raises(ConfigError, match="nvila quantize"):
        runtime_backend.load_engine(tiny_folder, backend="torch", quantizes=True)


def test_too_little_memory_says_how_many_frames_would_fit(make_config, monkeypatch):
    config = make_config()
    with torch.device("meta"):
        model = Nvila(config)

    def free(num_bytes):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (num_bytes, 2**34))

    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: 0)
    stored = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    needed = runtime_memory.cache_bytes(config, 3) + runtime_memory.activation_bytes(config, 3)
    free(stored + needed)
    runtime_memory.check_room(config, CUDA, model, 3)
    with pytest.raises(ConfigError, match="3 frames would fit"):
        runtime_memory.check_room(config, CUDA, model, 8)
    free(stored)
    with pytest.raises(ConfigError, match="not one frame"):
        runtime_memory.check_room(config, CUDA, model, 8)


def test_the_cache_is_no_larger_than_the_advice_allows(make_config, make_language, monkeypatch):
    config = make_config(
        language=make_language(max_position_embeddings=8192, model_max_length=8192)
    )
    for count in (torch.cuda.memory_reserved, torch.cuda.memory_allocated):
        monkeypatch.setattr(torch.cuda, count.__name__, lambda device=None: 0)
    for frames in (1, 3, 8):
        needed = runtime_memory.cache_bytes(config, frames)
        needed += runtime_memory.activation_bytes(config, frames)
        for free, expected in ((needed, num_prompt_tokens(config, frames)), (2**34, 4096)):
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2**35))
            assert runtime_memory.default_places(config, CUDA, frames) == expected
    assert runtime_memory.default_places(config, torch.device("cpu"), 3) == 4096


def test_the_devices_own_complaint_becomes_advice(make_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2**20, 2**34))
    with (
        pytest.raises(ConfigError, match="frames"),
        runtime_memory.out_of_memory(make_config(), CUDA, 8),
    ):
        raise torch.OutOfMemoryError("no")


def test_a_devices_complaint_while_loading_becomes_advice(tiny_folder, monkeypatch):
    def load(*arguments):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(weights, "load", load)
    with pytest.raises(ConfigError, match="frame"):
        runtime_backend.load_engine(tiny_folder)


@pytest.mark.parametrize(
    "complaint",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        KernelError("cuModuleLoadData: CUDA error 2, out of memory"),
    ],
)
def test_libraries_and_the_driver_complain_in_their_own_words(make_config, monkeypatch, complaint):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2**20, 2**34))
    with (
        pytest.raises(ConfigError, match="frames"),
        runtime_memory.out_of_memory(make_config(), CUDA, 8),
    ):
        raise complaint
    with pytest.raises(RuntimeError, match="shapes"), runtime_memory.out_of_memory(None, CUDA, 8):
        raise RuntimeError("shapes differ")


def test_frames_that_do_not_fit_the_tower_are_named(tiny_folder, monkeypatch):
    def encode(self, pixels):
        raise torch.OutOfMemoryError("no")

    for backend in ("torch", "kernels"):
        engine, _ = runtime_backend.load_engine(tiny_folder, backend=backend)
        with monkeypatch.context() as patch:
            if backend == "torch":
                patch.setattr(Nvila, "encode_frames", encode)
            else:
                patch.setattr(engine, "_encode", lambda pixels: encode(None, pixels))
            side = engine.config.vision.image_size
            with pytest.raises(ConfigError, match="frames"):
                engine.encode_frames(torch.zeros(2, 3, side, side))


def test_a_cache_that_cannot_grow_leaves_the_engine_as_it_was(tiny_model, monkeypatch):
    engine = Engine.from_model(tiny_model, max_tokens=64)
    expected = engine.generate_greedy([1, 2, 3], max_new_tokens=4)
    make = runtime.FixedCache

    def most_64(config, places, *rest):
        if places > 64:
            raise torch.OutOfMemoryError("no")
        return make(config, places, *rest)

    monkeypatch.setattr(runtime, "FixedCache", most_64)
    with pytest.raises(ConfigError, match="frames"):
        engine.generate_greedy([1] * 100, max_new_tokens=4)
    assert engine.max_tokens == 64
    assert engine.generate_greedy([1, 2, 3], max_new_tokens=4) == expected


@pytest.fixture
def ada_gpu(monkeypatch):
    """A GPU that the kernels know, with its driver."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Ada")
    monkeypatch.setattr(driver, "cuda", lambda: None)


def test_no_compiler_gives_plain_torch_and_says_what_to_install(ada_gpu, monkeypatch, caplog):
    def find():
        raise KernelError(f"no CUDA compiler was found: {compiler.INSTALL_HINT}")

    monkeypatch.setattr(build, "find_compiler", find)
    with caplog.at_level(logging.WARNING):
        assert runtime_backend.choose_backend("auto", CUDA)[0] == "torch"
    assert "pip install nvidia-cuda-nvrtc" in caplog.text
    with pytest.raises(ConfigError, match="nvidia-cuda-nvrtc"):
        runtime_backend.choose_backend("kernels", CUDA)


def test_a_compiler_older_than_the_gpu_gives_plain_torch(ada_gpu, monkeypatch):
    def found(*architectures):
        known = compiler.Compiler("nvrtc 11.7", None, architectures=frozenset(architectures))
        monkeypatch.setattr(build, "find_compiler", lambda: known)
        return runtime_backend.choose_backend("auto", CUDA)

    name, reason = found(75, 80, 86)
    assert name == "torch" and "this GPU is sm_89" in reason and "sm_86; update" in reason
    assert found(80, 89) == ("kernels", "Ada")
    assert found() == ("kernels", "Ada")  # nvcc was not asked


@pytest.fixture
def broken_kernels(monkeypatch):
    """Kernels that seem to be there and fail when the engine is made, its model half packed."""

    def from_model(model, **options):
        model.to("meta")
        raise KernelError("decode.cu: no")

    monkeypatch.setattr(runtime_backend, "choose_backend", lambda name, device: ("kernels", "a"))
    monkeypatch.setattr(Engine, "from_model", from_model)


def test_kernels_that_fail_at_load_give_plain_torch(tiny_folder, broken_kernels, caplog):
    engine, _ = runtime_backend.load_engine(tiny_folder)
    assert engine.name == "torch" and "decode.cu: no: plain torch" in caplog.text
    assert len(engine.generate_greedy([1, 2, 3], max_new_tokens=2)) == 2


@pytest.mark.parametrize("options", [{"backend": "kernels"}, {"quantizes": True}])
def test_kernels_that_were_asked_for_and_fail_are_an_error(tiny_folder, broken_kernels, options):
    with pytest.raises(KernelError, match=r"decode\.cu"):
        runtime_backend.load_engine(tiny_folder, **options)
