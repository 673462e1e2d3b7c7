# SPDX-License-Identifier: Apache-2.0
import json
from collections import Counter

import pytest

from nvila_ros.errors import ConfigError, DataError
from nvila_ros.training.data.sample import Sample, Turn
from nvila_ros.training.data.stream import (
    BrokenRow,
    Guard,
    ListSource,
    ListStream,
    MixtureStream,
    Part,
)
from nvila_ros.training.data.subset import SelectedSource, read_selection


def texts(source: str, count: int) -> list[Sample]:
    turn = Turn(user="a", answer="b")
    return [
        Sample(key=f"{source}{n}", source=source, kind="text", frames=(), turns=(turn,))
        for n in range(count)
    ]


def mixture(seed: int = 0, epochs: int | None = None) -> MixtureStream:
    streams = {
        name: ListStream(texts(name, count), seed=seed, epochs=epochs)
        for name, count in (("a", 10), ("b", 30))
    }
    return MixtureStream(streams, {"a": 3.0, "b": 1.0}, seed)


def test_weights_decide_how_often_a_stream_is_drawn() -> None:
    stream = mixture()
    drawn = Counter(next(stream).source for _ in range(2000))  # type: ignore[union-attr]
    assert 0.7 < drawn["a"] / 2000 < 0.8


def test_streams_that_end_leave_the_rest_to_the_others() -> None:
    keys = [item.key for item in mixture(epochs=1)]  # type: ignore[union-attr]
    assert sorted(keys) == sorted(f"a{n}" for n in range(10)) + sorted(f"b{n}" for n in range(30))


@pytest.mark.parametrize("consumed", [0, 7, 39])
@pytest.mark.parametrize("epochs", [None, 1])
def test_a_mixture_goes_on_where_it_was(consumed: int, epochs: int | None) -> None:
    stream = mixture(epochs=epochs)
    for _ in range(consumed):
        next(stream)
    state = json.loads(json.dumps(stream.state_dict()))
    expected = [item.key for item, _ in zip(stream, range(20), strict=False)]  # type: ignore[union-attr]
    resumed = mixture(epochs=epochs)
    resumed.load_state_dict(state)
    found = [item.key for item, _ in zip(resumed, range(20), strict=False)]  # type: ignore[union-attr]
    assert found == expected


def test_a_state_of_another_mixture_is_refused() -> None:
    other = MixtureStream({"c": ListStream(texts("c", 2))}, {"c": 1.0})
    with pytest.raises(DataError, match="same mixture"):
        other.load_state_dict(mixture().state_dict())
    with pytest.raises(DataError, match="same data"):
        ListStream(texts("c", 2)).load_state_dict(ListStream(texts("c", 3)).state_dict())


@pytest.mark.parametrize("weights", [{"a": 0.0}, {"a": -1.0}, {"a": float("nan")}, {"b": 1.0}, {}])
def test_impossible_weights_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        MixtureStream({"a": ListStream(texts("a", 2))}, weights)


def test_parts_share_each_epoch() -> None:
    source = ListSource("a", tuple(texts("a", 11)))
    for epochs in (1, 2):
        keys = [
            item.key  # type: ignore[union-attr]
            for index in range(3)
            for item in source.open(Part(index, 3), 5, epochs=epochs)
        ]
        assert Counter(keys) == {f"a{n}": epochs for n in range(11)}


@pytest.mark.parametrize("index, count", [(-1, 2), (2, 2), (0, 0)])
def test_a_part_that_does_not_exist_is_refused(index: int, count: int) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        Part(index, count)


def rows(*broken: int, total: int = 40) -> ListStream:
    items: list[Sample | BrokenRow] = [*texts("a", total)]
    for number in broken:
        items[number] = BrokenRow("a", f"shard-{number % 2}", f"row {number}", "it is torn")
    return ListStream(items, epochs=1, shuffle=False)


def test_broken_rows_pass_up_to_the_share() -> None:
    guard = Guard(rows(3, 30), 0.05)
    assert len(list(guard)) == 38 and guard.num_broken == 2


def test_too_many_broken_rows_name_the_worst_place_and_examples() -> None:
    with pytest.raises(DataError, match=r"5 of 40 rows are broken, 12\.4% are allowed") as caught:
        list(Guard(rows(21, 23, 25, 36, 39), 0.124))
    text = str(caught.value)
    assert "most in a: shard-1 (4)" in text and "row 21: it is torn" in text


def test_a_short_stream_is_judged_at_its_end() -> None:
    with pytest.raises(DataError, match="3 of 5 rows"):
        list(Guard(rows(0, 1, 2, total=5), 0.1))


def test_a_run_without_end_stops_when_the_share_is_exceeded_beyond_chance() -> None:
    early = Guard(rows(0, total=10_000), 0.01)
    assert len(list(early)) == 9_999  # one of one, but not the share of all
    with pytest.raises(DataError, match="10 of 10 rows"):
        list(Guard(rows(*range(1000), total=10_000), 0.01))
    with pytest.raises(DataError) as caught:
        list(Guard(rows(*range(0, 10_000, 20), total=10_000), 0.01))
    assert 100 < int(str(caught.value).split(" of ")[1].split()[0]) < 500
    with pytest.raises(DataError, match="1 of 6 rows"):
        list(Guard(rows(5, total=10_000), 0.0))


def test_counts_of_broken_rows_are_resumed() -> None:
    guard = Guard(rows(1, 2), 0.5)
    next(guard)
    next(guard)
    again = Guard(rows(1, 2), 0.5)
    again.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert (again.num_broken, again.num_rows) == (2, 4) and len(list(again)) == 36


def test_a_selection_leaves_only_its_keys(tmp_path) -> None:
    path = tmp_path / "delta.json"
    path.write_text(json.dumps({"selected": {"a": ["a1", "a7"]}}))
    source = SelectedSource(ListSource("all", tuple(texts("a", 9))), read_selection(str(path)))
    keys = [item.key for item in source.open(Part(), 0, epochs=1)]  # type: ignore[union-attr]
    assert sorted(keys) == ["a1", "a7"]
    path.write_text(json.dumps({"selected": {}}))
    with pytest.raises(DataError, match="selects no sample"):
        read_selection(str(path))
    path.write_text("[]")
    with pytest.raises(DataError, match="no selection"):
        read_selection(str(path))
