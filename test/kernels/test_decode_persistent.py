# SPDX-License-Identifier: Apache-2.0
"""The decode step of one launch: where it settles, and its code on an emulator of a GPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nvila_ros.kernels import compiler, decode_persistent
from nvila_ros.kernels.decode_persistent import HeadWeights, PersistentLayers
from nvila_ros.kernels.decode_persistent_plan import Cut, Sizes
from nvila_ros.kernels.decode_step import DecodeStep, StepShape, StepWeights
from nvila_ros.kernels.packing import RowsInt4

EMULATOR = Path(__file__).parent / "emulator"
MAP_WORDS = 16  # of 64 bits
PLACES, VOCABULARY, EPS = 1700, 50, 1e-6


def sizes_of(*numbers: int) -> Sizes:
    names = ("hidden", "intermediate", "num_heads", "num_kv_heads", "head_dim", "num_layers")
    return Sizes(**dict(zip(names, numbers, strict=True)))


SMALL = sizes_of(256, 512, 4, 2, 64, 2)
MANY_HEADS = sizes_of(256, 256, 12, 1, 64, 1)  # more than eight to a key-value head
WIDE_HEADS = sizes_of(512, 768, 6, 3, 128, 1)  # blocks without keys: 3 heads over 16 blocks


class EmulatedLayers(PersistentLayers):
    """The same buffers in the CPU's memory; a launch runs the source on the emulator."""

    seed = 0
    library: ctypes.CDLL

    def _make_maps(self, boxes: list[tuple[Tensor, tuple[int, ...]]]) -> ctypes.Array:
        """What the emulator wants to know of a tensor: where it is, its sizes, a box."""
        self._room = (ctypes.c_uint64 * (MAP_WORDS * self.num_maps + 8))()
        start = (ctypes.addressof(self._room) + 63) // 64 * 64
        maps = (ctypes.c_uint64 * (len(self._room) - 8)).from_address(start)
        for index, (tensor, box) in enumerate(boxes):
            assert tensor.is_contiguous() and box[0] == 1 and box[3] == 32
            wholes, parts, rows, words = tensor.shape
            numbers = (tensor.data_ptr(), 4 * words, rows, parts, wholes, box[2], box[1])
            maps[index * MAP_WORDS : index * MAP_WORDS + 7] = numbers
        return maps

    def launch(self, *tensors: object, history: Tensor | None = None) -> None:
        self.seed += 1
        failure = self.library.run(
            ctypes.byref(self.arguments(*tensors)), ctypes.byref(self._maps),
            ctypes.byref(self.head_arguments(history)), self.seed,
        )  # fmt: skip
        if failure:
            raise RuntimeError(failure.decode())


def emulate(cut: Cut, folder: Path) -> ctypes.CDLL:
    """The source, compiled for the CPU with the emulator's words and instructions."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    shutil.copytree(EMULATOR, folder, dirs_exist_ok=True)
    for path in (
        *compiler.SOURCES.glob("decode_persistent*"),
        compiler.SOURCES / "decode_head.cuh",
    ):
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


def random_weights(sizes: Sizes, num_tokens: int) -> StepWeights:
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
        head=torch.randint(-128, 128, (num_tokens, sizes.hidden), dtype=torch.int8),
        head_scales=torch.rand(num_tokens),
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

    def __init__(self, cut: Cut, folder: Path, num_tokens: int = VOCABULARY) -> None:
        torch.manual_seed(1)
        sizes = cut.sizes
        self.weights = random_weights(sizes, num_tokens)
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
        head = HeadWeights(
            norm=self.weights.norm, rows=self.weights.head, scales=self.weights.head_scales
        )
        self.layers = EmulatedLayers(cut, matrices, vectors, self.keys, self.values, head)
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
        self.left = token, place, torch.full((PLACES + 1,), -7, dtype=torch.int32)
        self.layers.launch(
            token, place, self.weights.table, self.cos_sin, hidden, EPS, history=self.left[2]
        )
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
        (Cut(SMALL, 11, 6, 4, asks_first=True), (0, 33)),
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


class Placed:
    """Layers whose launch takes as long as their exchange's place says, and hiccups once."""

    def __init__(self) -> None:
        self.made = 0
        self.exchange = self.new_exchange()

    def new_exchange(self) -> decode_persistent.Exchange:
        self.made += 1
        number = torch.tensor([self.made])
        return decode_persistent.Exchange(words=number, found=number, epochs=number)


def test_the_exchange_settles_at_the_fastest_place() -> None:
    layers, asked = Placed(), []
    fastest = decode_persistent.PLACES - 2

    def series_ms() -> float:
        place = int(layers.exchange.words)
        asked.append(place)
        hiccup = 9.0 if asked.count(place) == 2 else 0.0
        return abs(place - fastest) * 0.01 + 0.7 + hiccup

    decode_persistent.settle(layers, series_ms)
    assert int(layers.exchange.words) == fastest
    assert set(asked) == set(range(1, decode_persistent.PLACES + 1))
    again = [place for place in set(asked) if asked.count(place) > 2]
    assert len(again) == decode_persistent.FINALISTS and fastest in again


def choice(pair: Pair, position: int) -> int:
    """The token that a step at `position` leaves, after a look at everything else it leaves."""
    assert max(pair.errors(position)) < 2e-3
    token, place, history = pair.left
    assert place.tolist() == pair.twin._place.tolist() == [position + 1, position + 2]
    assert history.tolist() == [-7] * (position + 1) + token.tolist() + [-7] * (
        PLACES - position - 1
    )
    return int(token)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cut", "num_tokens"),
    [
        (Cut(SMALL, 16, 4, 2, has_head=True), 50),  # fewer tiles than warps, the last one not full
        (Cut(SMALL, 16, 4, 2, has_head=True, asks_first=True), 1025),  # one tile more than warps
        (Cut(WIDE_HEADS, 16, 12, 3, has_head=True, asks_first=True), 9000),
        (Cut(MANY_HEADS, 28, 8, 3, has_head=True), 2000),  # warps without units in a layer
    ],
)
def test_the_emulated_launch_goes_on_to_the_token_of_its_twin(
    cut: Cut, num_tokens: int, tmp_path: Path
) -> None:
    pair = Pair(cut, tmp_path, num_tokens)
    for position in (2, 33, 100, 101):
        assert choice(pair, position) == int(pair.twin.token), position


@pytest.mark.slow
def test_of_equal_scores_the_emulated_launch_takes_the_smaller_token(tmp_path: Path) -> None:
    pair = Pair(Cut(SMALL, 16, 4, 2, has_head=True), tmp_path, 1500)
    head, scales = pair.weights.head, pair.weights.head_scales
    best = choice(pair, 40)
    assert best == int(pair.twin.token)
    for others in ((best + 1, 1499), (3, best + 8, 1030), (0,)):
        others = [other for other in others if other < 1500]
        head[others], scales[others] = head[best].clone(), scales[best].clone()
        assert choice(pair, 40) == min(best, *others)
