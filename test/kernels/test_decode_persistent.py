# SPDX-License-Identifier: Apache-2.0
"""The decode step of one launch: how it is cut, and its code on an emulator of a GPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nvila_ros.kernels import compiler
from nvila_ros.kernels.decode_persistent import PersistentLayers
from nvila_ros.kernels.decode_persistent_plan import (
    PAIRED,
    PHASES,
    QKV,
    RELEASED,
    Cut,
    Sizes,
    plan,
)
from nvila_ros.kernels.decode_plan import H100, Device
from nvila_ros.kernels.decode_step import DecodeStep, StepShape, StepWeights
from nvila_ros.kernels.packing import RowsInt4

EMULATOR = Path(__file__).parent / "emulator"
MAP_WORDS = 16  # of 64 bits
PLACES, VOCABULARY, EPS = 1700, 50, 1e-6


def sizes_of(*numbers: int) -> Sizes:
    names = ("hidden", "intermediate", "num_heads", "num_kv_heads", "head_dim", "num_layers")
    return Sizes(**dict(zip(names, numbers, strict=True)))


QWEN2_7B, QWEN2_15B = RELEASED
LLAMA3_8B = sizes_of(4096, 14336, 32, 8, 128, 32)
SMALL = sizes_of(256, 512, 4, 2, 64, 2)
MANY_HEADS = sizes_of(256, 256, 12, 1, 64, 1)  # more than eight to a key-value head
WIDE_HEADS = sizes_of(512, 768, 6, 3, 128, 1)  # blocks without keys: 3 heads over 16 blocks


@pytest.mark.parametrize("sizes", [QWEN2_7B, QWEN2_15B, LLAMA3_8B])
def test_released_decoders_fit_one_launch_on_an_h100(sizes: Sizes) -> None:
    cut = plan(sizes, H100)
    assert cut is not None
    assert cut.stages >= 4 and cut.shared_bytes <= H100.block_bytes


def test_what_does_not_fit_is_left_to_the_kernels() -> None:
    assert plan(sizes_of(896, 4864, 14, 2, 64, 24), H100) is None  # 896 is no multiple of 256
    assert plan(QWEN2_7B, Device(132, 101376, 102400)) is None  # shared memory of a GeForce


CUTS = [
    Cut(QWEN2_7B, 132, 12, 6), Cut(QWEN2_15B, 132, 12, 6), Cut(LLAMA3_8B, 114, 16, 3),
    Cut(SMALL, 16, 4, 2), Cut(WIDE_HEADS, 7, 12, 2),
]  # fmt: skip


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("phase", PHASES)
def test_every_row_of_a_matrix_is_somebodys_and_only_once(cut: Cut, phase: int) -> None:
    rows = cut.rows(phase)
    assert rows.shape == (cut.num_blocks, cut.most_tiles(phase), 16)
    num_rows = 4 * cut.sizes.num_quads(phase) * (2 if phase in PAIRED else 1)
    found = rows[rows >= 0]
    assert sorted(found.tolist()) == list(range(num_rows))
    if phase in PAIRED:  # lane rows n and n + 8 are the two of a pair
        first, second = rows[..., :8], rows[..., 8:]
        assert ((second - first)[first >= 0] == cut.sizes.pair_step(phase)).all()
    if phase == QKV:
        column = rows[..., :8][rows[..., :8] >= 0] % cut.sizes.head_dim
        assert (column < cut.sizes.head_dim // 2).all()


@pytest.mark.parametrize("phase", PHASES)
def test_a_units_scales_stand_together(phase: int) -> None:
    cut = Cut(WIDE_HEADS, 16, 12, 2)
    num_groups = cut.sizes.num_inputs(phase) // 128
    rows = cut.rows(phase)
    numbers = torch.arange((int(rows.max()) + 1) * num_groups).view(-1, num_groups, 1)
    packed = cut.pack_scales(phase, torch.cat((numbers, -numbers), dim=2))
    blocks, tiles, pieces = cut.scale_shapes[phase]
    assert packed.shape == (blocks, tiles, pieces, 16, 2, 2)
    for block, tile, piece, output, group in ((0, 0, 0, 0, 0), (3, 0, 1, 9, 1), (7, 0, 1, 3, 0)):
        row = int(rows[block, tile, output])
        expected = row * num_groups + 2 * piece + group
        assert row < 0 or packed[block, tile, piece, output, group].tolist() == [
            expected,
            -expected,
        ]


class EmulatedLayers(PersistentLayers):
    """The same buffers in the CPU's memory; a launch runs the source on the emulator."""

    seed = 0
    library: ctypes.CDLL

    def _make_maps(self, boxes: list[tuple[Tensor, tuple[int, ...]]]) -> ctypes.Array:
        """What the emulator wants to know of a tensor: where it is, its sizes, a box."""
        self._room = (ctypes.c_uint64 * (MAP_WORDS * len(boxes) + 8))()
        start = (ctypes.addressof(self._room) + 63) // 64 * 64
        maps = (ctypes.c_uint64 * (len(self._room) - 8)).from_address(start)
        for index, (tensor, box) in enumerate(boxes):
            assert tensor.is_contiguous() and box[0] == 1 and box[3] == 32
            wholes, parts, rows, words = tensor.shape
            numbers = (tensor.data_ptr(), 4 * words, rows, parts, wholes, box[2], box[1])
            maps[index * MAP_WORDS : index * MAP_WORDS + 7] = numbers
        return maps

    def launch(self, *tensors: object) -> None:
        self.seed += 1
        failure = self.library.run(
            ctypes.byref(self.arguments(*tensors)), ctypes.byref(self._maps), self.seed
        )
        if failure:
            raise RuntimeError(failure.decode())


def emulate(cut: Cut, folder: Path) -> ctypes.CDLL:
    """The source, compiled for the CPU with the emulator's words and instructions."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    shutil.copytree(EMULATOR, folder, dirs_exist_ok=True)
    for path in compiler.SOURCES.glob("decode_persistent*"):
        if not (folder / path.name).exists():
            text = path.read_text("utf-8")
            room = "extern __shared__ __align__(1024) unsigned char room[];"
            text = text.replace(room, "unsigned char *room = emulator::block().room;")
            (folder / path.name).write_text(text, "utf-8")
    probe = subprocess.run(
        ["g++", "-x", "c++", "-fsyntax-only", "-"], input=b"_Float16 one = 1;", capture_output=True
    )
    if probe.returncode:
        pytest.skip("needs a g++ that knows _Float16")
    names = [f"-D{name}={value}" for name, value in cut.defines.items()]
    names.append("-DMOST_POLLS=100000")
    command = ["g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{folder}", *names]
    subprocess.run([*command, str(folder / "run.cpp"), "-o", str(folder / "run.so")], check=True)
    library = ctypes.CDLL(str(folder / "run.so"))
    library.run.restype = ctypes.c_char_p
    return library


def random_weights(sizes: Sizes) -> StepWeights:
    """Codes, scales and norms of all kinds; every other layer without a bias."""

    def rows(num_outputs: int, num_inputs: int) -> RowsInt4:
        words = torch.randint(-(2**31), 2**31 - 1, (num_outputs, num_inputs // 8)).int()
        scales = torch.rand(num_outputs, num_inputs // 128) * 0.01 + 0.005
        zeros = torch.randint(4, 12, scales.shape)
        return RowsInt4(qweight=words, scale_zero=torch.stack((scales, zeros), -1).half())

    def norm() -> Tensor:
        return (torch.rand(sizes.hidden) + 0.5).half()

    queries = sizes.num_heads * sizes.head_dim
    all_heads = queries + 2 * sizes.num_kv_heads * sizes.head_dim
    layers = [
        SimpleNamespace(
            input_norm=norm(), post_norm=norm(),
            qkv=rows(all_heads, sizes.hidden),
            qkv_bias=torch.randn(all_heads).half() if index % 2 == 0 else None,
            output=rows(sizes.hidden, queries),
            gate_up=rows(2 * sizes.intermediate, sizes.hidden),
            down=rows(sizes.hidden, sizes.intermediate),
        )
        for index in range(sizes.num_layers)
    ]  # fmt: skip
    return StepWeights(
        table=torch.randn(VOCABULARY, sizes.hidden).half(), layers=layers, norm=norm(),
        head=torch.randint(-128, 128, (VOCABULARY, sizes.hidden), dtype=torch.int8),
        head_scales=torch.rand(VOCABULARY),
    )  # fmt: skip


def in_float32(weights: StepWeights) -> StepWeights:
    def wide(value: object) -> object:
        return value.float() if isinstance(value, Tensor) else value

    layers = [
        SimpleNamespace(**{name: wide(value) for name, value in vars(layer).items()})
        for layer in weights.layers
    ]
    return StepWeights(
        table=weights.table.float(), layers=layers, norm=weights.norm.float(),
        head=weights.head, head_scales=weights.head_scales,
    )  # fmt: skip


class Pair:
    """The emulated launch and its float32 twin, over one cache of random keys and values."""

    def __init__(self, cut: Cut, folder: Path) -> None:
        torch.manual_seed(1)
        sizes = cut.sizes
        self.weights = random_weights(sizes)
        shape = StepShape(
            num_heads=sizes.num_heads, num_kv_heads=sizes.num_kv_heads, head_dim=sizes.head_dim,
            eps=EPS,
        )  # fmt: skip
        angles = torch.randn(PLACES, sizes.head_dim // 2)
        self.cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
        size = (sizes.num_layers, sizes.num_kv_heads, PLACES, sizes.head_dim)
        self.keys, self.values = torch.randn(size).half(), torch.randn(size).half()
        self.twin = DecodeStep(
            in_float32(self.weights), shape, self.keys.float(), self.values.float(), self.cos_sin
        )
        matrices = [
            (each.qkv, each.output, each.gate_up, each.down) for each in self.weights.layers
        ]
        vectors = [(each.qkv_bias, each.input_norm, each.post_norm) for each in self.weights.layers]
        self.layers = EmulatedLayers(cut, matrices, vectors, self.keys, self.values)
        self.layers.library = emulate(cut, folder)

    def errors(self, position: int) -> tuple[float, float, float]:
        """Of the hidden row, the new keys and the new values, after a step at `position`."""
        token = torch.tensor([position % VOCABULARY], dtype=torch.int32)
        self.twin.begin(token, position)
        for mine, other in ((self.keys, self.twin.keys), (self.values, self.twin.values)):
            mine.copy_(other)
            mine[:, :, position:] = float("nan")  # nothing there yet
        hidden = torch.full((1, self.layers.cut.sizes.hidden), float("nan")).half()
        place = torch.tensor([position, position + 1], dtype=torch.int32)
        self.layers.launch(token, place, self.weights.table, self.cos_sin, hidden, EPS)
        self.twin.launch()
        at = (slice(None), slice(None), position)
        return (
            relative_error(hidden, self.twin._hidden),
            relative_error(self.keys[at], self.twin.keys[at]),
            relative_error(self.values[at], self.twin.values[at]),
        )


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cut", "positions"),
    [
        # Seeds 1 to 4: stores and copies at once, late, and so late that nobody can go on without.
        (Cut(SMALL, 16, 4, 2), (0, 31, 32, 100)),
        (Cut(SMALL, 11, 6, 4), (5, 690)),
        (Cut(MANY_HEADS, 14, 8, 3), (3, 40)),
        (Cut(MANY_HEADS, 28, 8, 3), (1536, 1650)),  # as many splits as are added in one round; more
        (Cut(WIDE_HEADS, 16, 12, 3), (2, 600)),
    ],
)
def test_the_emulated_launch_is_its_twin(
    cut: Cut, positions: tuple[int, ...], tmp_path: Path
) -> None:
    pair = Pair(cut, tmp_path)
    for position in positions:
        errors = pair.errors(position)
        assert max(errors) < 2e-3, (position, errors)


@pytest.mark.slow
def test_the_number_of_layers_ever_run_may_wrap_and_splits_may_rest(tmp_path: Path) -> None:
    pair = Pair(Cut(SMALL, 16, 4, 2), tmp_path)
    pair.layers.exchange.epochs.fill_(-2)  # 2 layers before 2 ** 32
    for position in (400, 3, 401, 64):
        assert max(pair.errors(position)) < 2e-3, position


@pytest.mark.slow
def test_blocks_that_disagree_end_the_launch(tmp_path: Path) -> None:
    """A block that waits for what never comes: an error, not a wait for ever."""
    pair = Pair(Cut(SMALL, 16, 4, 2), tmp_path)
    pair.layers.exchange.epochs[5] = 1
    with pytest.raises(RuntimeError, match=r"waits for another|waited too long"):
        pair.errors(10)
