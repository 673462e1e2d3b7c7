# SPDX-License-Identifier: Apache-2.0
import dataclasses
import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nvila_ros.config import load
from nvila_ros.errors import ConfigError, DataError
from nvila_ros.models.config import nano_config
from nvila_ros.training.data.augmentation import AugmentationConfig
from nvila_ros.training.data.loader import Loader, LoaderSettings
from nvila_ros.training.data.mixture import MixtureConfig
from nvila_ros.training.data.packing import PackedBatch
from nvila_ros.training.data.sample import FrameBytes, Sample, Turn
from nvila_ros.training.data.shard_writing import write_shards
from nvila_ros.training.data.shards import find_shards
from nvila_ros.training.data.stream import ListSource
from nvila_ros.training.vocabulary import build_tokenizer

TOKENIZER = build_tokenizer()
CONFIG = nano_config(TOKENIZER.vocab_size)


def sample(number: int, source: str = "views", frame=None) -> Sample:
    picture = np.full((12, 16, 3), number % 256, np.uint8) if frame is None else frame
    return Sample(
        key=f"{source}{number}",
        source=source,
        kind="image",
        frames=(picture,) * (1 + number % 3),
        turns=(Turn(user="<image>\n" * (1 + number % 3) + "Where is it?", answer="ahead."),),
    )


VIEWS = ListSource("views", tuple(sample(n) for n in range(30)))
TEXTS = ListSource(
    "texts",
    tuple(
        Sample(
            key=f"t{n}",
            source="texts",
            kind="text",
            frames=(),
            turns=(Turn(user="left " * (n % 9), answer="right."),),
        )
        for n in range(20)
    ),
)


def loader(rank: int = 0, num_ranks: int = 1, sources=(VIEWS, TEXTS), **settings) -> Loader:
    values = {"max_tokens": 160, "window": 12, "num_workers": 0, "seed": 3, **settings}
    return Loader(
        {source.name: source for source in sources},
        {source.name: 1.0 + index for index, source in enumerate(sources)},
        TOKENIZER,
        CONFIG,
        LoaderSettings(**values),
        rank=rank,
        num_ranks=num_ranks,
    )


def same(first: PackedBatch, second: PackedBatch) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in (
            (getattr(first, field.name), getattr(second, field.name))
            for field in dataclasses.fields(first)
        )
    )


def test_batches_hold_whole_samples_within_the_limit() -> None:
    batches = [next(loader_) for loader_ in [loader()] for _ in range(10)]
    assert all(len(batch) <= 160 for batch in batches)
    assert max(len(batch.keys) for batch in batches) > 1


def test_one_epoch_holds_every_sample_once() -> None:
    keys = [key for batch in loader(epochs=1) for key in batch.keys]
    assert sorted(keys) == sorted(s.key for source in (VIEWS, TEXTS) for s in source.samples)


def test_ranks_and_workers_share_an_epoch() -> None:
    keys = [
        key
        for rank in range(2)
        for batch in loader(rank, 2, epochs=1, num_workers=2)
        for key in batch.keys
    ]
    assert sorted(keys) == sorted(s.key for source in (VIEWS, TEXTS) for s in source.samples)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("consumed", [0, 1, 7])
def test_a_loaded_state_gives_the_same_batches(num_workers: int, consumed: int) -> None:
    settings = {"num_workers": num_workers, "augmentation": AugmentationConfig()}
    first = loader(**settings)
    for _ in range(consumed):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))
    expected = [next(first) for _ in range(6)]
    resumed = loader(**settings)
    resumed.load_state_dict(state)
    assert all(same(next(resumed), batch) for batch in expected)
    first.close()
    resumed.close()


@pytest.mark.parametrize("consumed", [0, 3])
def test_workers_go_on_within_shards(consumed: int, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    write_shards(VIEWS.samples, tmp_path, max_samples=7)
    source = find_shards(str(tmp_path), "views", buffer_size=6)
    settings = {"num_workers": 2, "window": 5}
    first = loader(sources=(source, TEXTS), **settings)
    for _ in range(consumed):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))
    expected = [next(first) for _ in range(5)]
    resumed = loader(sources=(source, TEXTS), **settings)
    resumed.load_state_dict(state)
    assert all(same(next(resumed), batch) for batch in expected)
    first.close()
    resumed.close()


def test_a_state_of_other_workers_is_refused() -> None:
    state = loader(num_workers=3).state_dict()
    with pytest.raises(DataError, match="num_workers=3"):
        loader(num_workers=2).load_state_dict(state)


def test_weights_decide_how_often_a_source_is_drawn() -> None:
    batches = loader(window=200)
    sources = [source for _ in range(40) for source in next(batches).sources]
    assert 0.55 < sources.count("texts") / len(sources) < 0.78  # weighs 2 of 3


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_pictures_are_skipped_up_to_the_stated_share(num_workers: int) -> None:
    broken = FrameBytes(b"no picture", "broken.jpg")
    rows = [sample(n, frame=broken if n % 10 == 0 else None) for n in range(30)]
    source = ListSource("views", tuple(rows))
    tolerant = loader(sources=(source,), epochs=1, max_broken_share=0.2, num_workers=num_workers)
    keys = [key for batch in tolerant for key in batch.keys]
    assert len(keys) == 27 and tolerant.counts.num_broken == 3
    strict = loader(sources=(source,), epochs=1, max_broken_share=0.05, num_workers=num_workers)
    with pytest.raises(DataError, match="3 of 30 rows are broken") as caught:
        list(strict)
    assert "broken.jpg" in str(caught.value) and "views" in str(caught.value)


def test_a_sample_with_too_many_tiles_is_a_broken_row() -> None:
    batches = loader(sources=(VIEWS,), epochs=1, max_tiles=2, max_broken_share=0.5)
    tiles = [len(batch.pixels) for batch in batches]
    assert max(tiles) <= 2 and batches.counts.num_broken == 10


def test_packing_leaves_less_padding_than_one_sample_per_sequence() -> None:
    packed = loader(epochs=1, fixed_length=True, window=50)
    single = loader(epochs=1, fixed_length=True, packs=False)
    shares = []
    for batches in (packed, single):
        list(batches)
        shares.append(batches.counts.num_padding / batches.counts.num_tokens)
    assert shares[0] < 0.15 and shares[1] > 0.5


def test_a_recipe_names_the_mixture_and_a_wrong_key_is_an_error() -> None:
    data = {
        "sources": [{"name": "a", "path": "x", "weight": 2, "options": {"stop_repeats": 5}}],
        "loader": {"max_tokens": 512, "augmentation": {"roll_deg": 1, "jpeg_quality": [50, 90]}},
    }
    config = load(MixtureConfig, data)
    assert config.sources[0].weight == 2.0 and config.loader.augmentation is not None
    with pytest.raises(ConfigError, match="did you mean 'window'"):
        load(MixtureConfig, {**data, "loader": {"windw": 3}})
    with pytest.raises(ConfigError, match="one name each"):
        load(MixtureConfig, {"sources": data["sources"] * 2})


def test_a_sample_is_changed_in_another_way_each_epoch() -> None:
    source = ListSource("views", (sample(1), sample(2)))
    settings = {"augmentation": AugmentationConfig(share=1.0), "window": 2, "epochs": 2}
    first, second = loader(sources=(source,), **settings)
    tiles = [
        dict(zip(b.keys, b.pixels[b.tile_rows].split(b.num_tiles), strict=True))
        for b in (first, second)
    ]
    assert not torch.equal(tiles[0]["views1"], tiles[1]["views1"])


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_worker_processes_end_in_silence(start_method: str, capfd) -> None:
    batches = loader(num_workers=2, start_method=start_method)
    next(batches)
    batches.close()
    gc.collect()
    captured = capfd.readouterr()
    assert "terminate called" not in captured.err and "Aborted" not in captured.err
