# SPDX-License-Identifier: Apache-2.0
import io
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvila_ros.errors import ConfigError, DataError
from nvila_ros.training.data.sample import FrameBytes, FrameFile, Sample, Turn, open_frame
from nvila_ros.training.data.shard_writing import write_shards
from nvila_ros.training.data.shards import ShardSource, find_shards, open_url
from nvila_ros.training.data.stream import BrokenRow, Guard, Part

pytest.importorskip("webdataset")


def picture(value: int) -> np.ndarray:
    return np.full((8, 10, 3), value % 256, np.uint8)


def sample(number: int, group: str | None = None, frames: tuple = ()) -> Sample:
    return Sample(
        key=f"row{number}",
        source="views",
        kind="image",
        frames=frames or (picture(number),),
        turns=(Turn(user="<image>\nWhat?", answer=f"It is {number}."),),
        group=group,
    )


def samples(count: int) -> Iterator[Sample]:
    return (sample(number) for number in range(count))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(samples(40), tmp_path / "shards", max_samples=8)
    return tmp_path / "shards"


def keys(stream) -> list[str]:
    return [item.key for item in stream]


def test_what_is_written_is_read_back(folder: Path) -> None:
    source = find_shards(str(folder), "views", buffer_size=4)
    read = list(source.open(Part(), seed=0, epochs=1))
    assert len(source.urls) == 5 and source.counts == (8,) * 5
    assert sorted(s.key for s in read) == sorted(f"row{n}" for n in range(40))
    one = next(s for s in read if s.key == "row7")
    assert one.turns == sample(7).turns and one.kind == "image" and one.source == "views"
    assert abs(int(np.asarray(open_frame(one.frames[0]))[0, 0, 0]) - 7) <= 2


def test_order_is_shuffled_by_the_seed_and_differs_between_epochs(folder: Path) -> None:
    source = find_shards(str(folder), "views", buffer_size=16)
    first, again = (keys(source.open(Part(), seed=3, epochs=1)) for _ in range(2))
    other = keys(source.open(Part(), seed=4, epochs=1))
    both = keys(source.open(Part(), seed=3, epochs=2))
    assert first == again != other
    assert len(both) == 80 and both[:40] != both[40:]


@pytest.mark.parametrize("num_ranks, num_workers", [(2, 1), (2, 2), (3, 4), (1, 7)])
def test_ranks_and_workers_share_without_overlap(
    folder: Path, num_ranks: int, num_workers: int
) -> None:
    source = find_shards(str(folder), "views", buffer_size=4)
    parts = [
        Part.of(rank, num_ranks, worker, num_workers)
        for rank in range(num_ranks)
        for worker in range(num_workers)
    ]
    read = [key for part in parts for key in keys(source.open(part, seed=1, epochs=1))]
    assert len(read) == 40 and len(set(read)) == 40


@pytest.mark.parametrize("consumed", [0, 1, 13, 39, 57])
@pytest.mark.parametrize("num_parts", [1, 8])
def test_a_loaded_state_goes_on_exactly_there(folder: Path, consumed: int, num_parts: int) -> None:
    source = find_shards(str(folder), "views", buffer_size=10)
    part = Part(num_parts - 1, num_parts)
    stream = source.open(part, seed=5)
    for _ in range(consumed):
        next(stream)
    state = json.loads(json.dumps(stream.state_dict()))
    expected = [next(stream).key for _ in range(50)]
    resumed = source.open(part, seed=5)
    resumed.load_state_dict(state)
    assert [next(resumed).key for _ in range(50)] == expected


def test_a_state_of_other_data_is_refused(folder: Path) -> None:
    source = find_shards(str(folder), "views")
    state = source.open(Part(0, 2), seed=5).state_dict()
    with pytest.raises(DataError, match="same data, ranks and workers"):
        source.open(Part(), seed=5).load_state_dict(state)


def test_frames_of_a_group_are_stored_once(tmp_path: Path) -> None:
    frames = tuple(picture(n) for n in range(6))
    episode = [sample(n, "episode", frames[: n + 1]) for n in range(6)]
    written = write_shards([*episode, sample(9)], tmp_path)
    assert written.shards == {"shard-000000.tar": {"records": 2, "samples": 7}}
    read = {s.key: s for s in find_shards(str(tmp_path), "v").open(Part(), 0, epochs=1)}
    assert [len(read[f"row{n}"].frames) for n in range(6)] == [1, 2, 3, 4, 5, 6]
    stored = {frame.name for s in read.values() for frame in s.frames}
    assert len(stored) == 7


def test_encoded_pictures_are_kept_as_they_are(tmp_path: Path) -> None:
    Image.fromarray(picture(50)).save(tmp_path / "a.png")
    write_shards([sample(0, frames=(FrameFile(tmp_path / "a.png"),))], tmp_path / "out")
    (read,) = find_shards(str(tmp_path / "out"), "v").open(Part(), 0, epochs=1)
    frame = read.frames[0]
    assert isinstance(frame, FrameBytes) and frame.content == (tmp_path / "a.png").read_bytes()


def test_a_row_with_an_unreadable_picture_is_left_out_and_listed(tmp_path: Path) -> None:
    rows = [sample(0), sample(1, frames=(FrameFile(tmp_path / "absent.jpg"),)), sample(2)]
    written = write_shards(rows, tmp_path / "out")
    assert written.num_samples == 2
    assert [row.row for row in written.broken] == ["row1"]
    assert "absent.jpg" in written.broken[0].reason


@pytest.mark.parametrize("keep", [0.0, 0.03, 0.5, 0.8])
def test_a_truncated_shard_is_counted_and_named(folder: Path, keep: float) -> None:
    shard = folder / "shard-000002.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[: int(len(content) * keep)])
    stream = find_shards(str(folder), "views").open(Part(), seed=0, epochs=1)
    read = list(stream)
    broken = [item for item in read if isinstance(item, BrokenRow)]
    good = [item for item in read if isinstance(item, Sample)]
    assert len(good) + len(broken) == 40 and broken
    assert all(row.where.endswith("shard-000002.tar") for row in broken)
    guard = Guard(find_shards(str(folder), "views").open(Part(), seed=0, epochs=1), 0.001)
    with pytest.raises(DataError, match="shard-000002"):
        list(guard)


def test_a_lost_shard_is_noticed_by_the_index(folder: Path) -> None:
    (folder / "shard-000001.tar").unlink()
    read = list(find_shards(str(folder), "views").open(Part(), seed=0, epochs=1))
    assert sum(isinstance(item, BrokenRow) for item in read) == 8


def test_shards_stream_from_an_address(folder: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        source = find_shards(url, "views", buffer_size=5)
        read = keys(source.open(Part(), seed=0, epochs=1))
        local = keys(find_shards(str(folder), "views", buffer_size=5).open(Part(), 0, epochs=1))
        lost = ShardSource("views", (f"{url}/absent.tar",), (3,))
        assert read == local
        assert [type(item) for item in lost.open(Part(), 0, epochs=1)] == [BrokenRow] * 3
    finally:
        server.shutdown()


def test_shell_commands_are_no_shards() -> None:
    with pytest.raises(ConfigError, match="paths"):
        open_url("pipe:echo hello")


def test_more_readers_than_records_is_an_error(tmp_path: Path) -> None:
    write_shards(samples(2), tmp_path)
    with pytest.raises(DataError, match="fewer workers"):
        next(find_shards(str(tmp_path), "views").open(Part(5, 6), seed=0))


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shards"):
        find_shards(str(tmp_path), "views")


def test_llava_records_of_others_are_read(tmp_path: Path) -> None:
    import webdataset

    buffer = io.BytesIO()
    Image.fromarray(picture(9)).save(buffer, "JPEG")
    row = {
        "id": "x",
        "conversations": [
            {"from": "human", "value": "What is it?\n<image>"},
            {"from": "gpt", "value": "A wall."},
        ],
    }
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "x", "jpg": buffer.getvalue(), "json": row})
    (read,) = find_shards(str(tmp_path), "others").open(Part(), 0, epochs=1)
    assert read.turns == (Turn(user="<image>What is it?", answer="A wall."),)


def test_a_full_disk_leaves_whole_shards_only(tmp_path: Path, monkeypatch) -> None:
    import webdataset

    write = webdataset.TarWriter.write
    calls = []

    def failing(self, record):
        calls.append(record)
        if len(calls) > 10:
            raise OSError(28, "No space left on device")
        return write(self, record)

    monkeypatch.setattr(webdataset.TarWriter, "write", failing)
    with pytest.raises(DataError, match="No space left"):
        write_shards(samples(20), tmp_path, max_samples=4)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "shard-000000.tar",
        "shard-000001.tar",
    ]
