# SPDX-License-Identifier: Apache-2.0
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nvila_ros.actions import ACTIONS
from nvila_ros.config import HistoryConfig
from nvila_ros.errors import DataError
from nvila_ros.history import FrameHistory
from nvila_ros.models.config import NvilaConfig, nano_config
from nvila_ros.models.inputs import prepare, prepare_video
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.preprocess import image_tiles
from nvila_ros.models.prompt import chat_prompt, navigation_prompt
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.training.data.encoding import IGNORED, encode, pixel_values
from nvila_ros.training.data.fuse import embed_batch
from nvila_ros.training.data.packing import pack
from nvila_ros.training.data.sample import (
    ClipFile,
    FrameBytes,
    FrameFile,
    Sample,
    Turn,
    open_frame,
    shown_indices,
)
from nvila_ros.training.vocabulary import build_tokenizer

TOKENIZER = build_tokenizer()
NANO = nano_config(TOKENIZER.vocab_size)
NAVIGATION = ACTIONS[3].sentence


def network(config: NvilaConfig) -> Nvila:
    model = Nvila.from_scratch(config, std=0.1)
    skipped = TOKENIZER.padding_and_end_ids if config.skips_end_after_media else ()
    model.connect(TOKENIZER.media_ids, TOKENIZER.encode(config.frame_end_text), skipped)
    return model


def frames(count: int, height: int = 60, width: int = 90) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(count)
    return tuple(rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count))


def sample(kind: str, pictures: tuple, *turns: tuple[str, str]) -> Sample:
    return Sample(
        key="row",
        source="test",
        kind=kind,  # type: ignore[arg-type]
        frames=pictures,
        turns=tuple(Turn(user=user, answer=answer) for user, answer in turns),
    )


def assert_fused_alike(config: NvilaConfig, row: Sample, expected_input) -> None:
    """The batch's embeddings begin as what inference fuses for the same question."""
    model = network(config)
    encoded = encode(row, TOKENIZER, config)
    with torch.no_grad():
        expected = model.embed(expected_input(model).input_ids, expected_input(model).media)
        mine = embed_batch(model, pack([encoded]).to("cpu", torch.float32))[0]
    assert (encoded.labels[: len(expected)] == IGNORED).all()
    assert encoded.labels[len(expected)] != IGNORED
    torch.testing.assert_close(mine[: len(expected)], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_seen", [1, 5, 8, 9, 30])
def test_navigation_is_what_the_policy_shows(num_seen: int) -> None:
    seen = frames(num_seen)
    history = FrameHistory(HistoryConfig())
    for number, frame in enumerate(seen):
        history.append(frame, 0.25 * number, 0.0, 0.0, float(number))
    shown = [np.zeros_like(seen[0]) if f is None else f.rgb for f in history.select()]

    def expected(model: Nvila):
        return prepare(model, TOKENIZER, navigation_prompt("Go to the sofa."), shown)

    assert_fused_alike(NANO, sample("navigation", seen, ("Go to the sofa.", NAVIGATION)), expected)


def test_what_was_selected_once_is_selected_as_it_is() -> None:
    assert shown_indices(20, 8) == [0, 2, 5, 8, 10, 13, 16, 19]
    assert shown_indices(8, 8) == list(range(8))
    assert shown_indices(3, 4) == [None, 0, 1, 2]


@pytest.mark.parametrize("mode", ["resize", "pad", "dynamic"])
def test_a_picture_and_a_question(mode: str) -> None:
    config = dataclasses.replace(NANO, image_aspect_ratio=mode, max_tiles=4)
    pictures = frames(1)
    assert_fused_alike(
        config,
        sample("image", pictures, ("<image>Where is it?", "ahead.")),
        lambda model: prepare(model, TOKENIZER, "<image>Where is it?", pictures),
    )


def test_a_picture_at_several_scales() -> None:
    config = dataclasses.replace(
        NANO, image_aspect_ratio="dynamic_s2", s2_scales=(192, 384), max_tiles=6
    )
    pictures = frames(1, 100, 160)
    assert_fused_alike(
        config,
        sample("image", pictures, ("<image>Where is it?", "ahead.")),
        lambda model: prepare(model, TOKENIZER, "<image>Where is it?", pictures),
    )


@pytest.mark.parametrize(
    "changes", [{"skips_end_after_media": True}, {"frame_end_text": ""}], ids=str
)
def test_a_message_that_ends_with_its_picture(changes: dict) -> None:
    pictures = frames(1)
    assert_fused_alike(
        dataclasses.replace(NANO, **changes),
        sample("image", pictures, ("Where is it? <image>", "ahead.")),
        lambda model: prepare(model, TOKENIZER, "Where is it? <image>", pictures),
    )


@pytest.mark.parametrize("pools", [(), ((2, 1, 1),), ((4, 2, 2), (8, 1, 1))])
def test_a_video_is_one_block(pools: tuple) -> None:
    config = dataclasses.replace(NANO, video_pool_sizes=pools)
    pictures = frames(8)
    assert_fused_alike(
        config,
        sample("video", pictures, ("<vila/video>Where did it turn?", "left.")),
        lambda model: prepare_video(model, TOKENIZER, "<vila/video>Where did it turn?", pictures),
    )


def test_one_place_in_a_video_question_stands_for_all_frames() -> None:
    pictures = frames(20)
    encoded = encode(sample("video", pictures, ("<image> Describe.", "left.")), TOKENIZER, NANO)
    assert len(encoded.media) == NANO.num_video_frames
    assert len(encoded.places) == NANO.num_video_frames * NANO.tokens_per_frame


def test_labels_are_answers_and_their_end_tokens_alone() -> None:
    row = sample(
        "image",
        frames(1),
        ("<image>\nWhere is it?", "It is ahead."),
        ("Which room is this?", "This is the kitchen."),
    )
    encoded = encode(row, TOKENIZER, NANO)
    learned = encoded.labels[encoded.labels != IGNORED].tolist()
    end = TOKENIZER.id("<|im_end|>")
    assert learned == [
        *TOKENIZER.encode("It is ahead."),
        end,
        *TOKENIZER.encode("This is the kitchen."),
        end,
    ]
    text = TOKENIZER.decode(
        [i for n, i in enumerate(encoded.ids.tolist()) if n not in set(encoded.places.tolist())],
        skip_special_tokens=False,
    )
    assert text.count("<|im_start|>user") == 2 and text.count("<|im_start|>system") == 1
    assert "<|im_end|>\n<|im_start|>user" in text


def test_pixels_are_those_of_inference_bit_for_bit() -> None:
    pictures = frames(1)
    encoded = encode(sample("image", pictures, ("<image>Where?", "ahead.")), TOKENIZER, NANO)
    assert torch.equal(pixel_values(encoded.tiles), image_tiles(pictures, NANO).pixels)


def test_turns_beyond_the_limit_are_left_out() -> None:
    turns = [("<image>Where is it?", "ahead."), ("Which room is this?", "the kitchen.")]
    row = sample("image", frames(1), *turns)
    whole = encode(row, TOKENIZER, NANO)
    first = encode(sample("image", frames(1), turns[0]), TOKENIZER, NANO)
    cut = encode(row, TOKENIZER, NANO, max_length=len(whole) - 1)
    assert cut.ids.tolist() == first.ids.tolist()
    with pytest.raises(DataError, match="row: the first turn exceeds"):
        encode(row, TOKENIZER, NANO, max_length=10)


@pytest.mark.parametrize(
    "kind, pictures, turn, message",
    [
        ("image", frames(2), ("<image>Where?", "left."), "1 places for pictures, 2 are given"),
        ("image", frames(1), ("<image>Where?", " "), "an answer is empty"),
        ("image", frames(1), ("<image>a<|im_end|>", "left."), "control token"),
        ("image", frames(1), ("<image>Where?", "<image>"), "an answer holds a media token"),
        ("image", (FrameFile("absent.jpg"),), ("<image>W", "x"), "absent.jpg is no readable"),  # type: ignore[arg-type]
        ("navigation", frames(1), ("", "left."), "instruction is empty"),
        ("navigation", frames(1), ("<image> go", "left."), "is the instruction"),
    ],
)
def test_a_bad_row_is_named(kind: str, pictures: tuple, turn: tuple, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        encode(sample(kind, pictures, turn), TOKENIZER, NANO)
    assert str(caught.value).startswith("row: ")


@pytest.mark.parametrize("kind", ["image", "video", "navigation"])
def test_a_row_without_frames_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match="row: the row has no frames"):
        sample(kind, (), ("a", "b"))


def test_grey_pictures_become_rgb(tmp_path) -> None:
    Image.new("L", (5, 4), 7).save(tmp_path / "grey.png")
    assert open_frame(FrameFile(tmp_path / "grey.png")).mode == "RGB"


def test_a_released_tokenizer_sees_the_same_words_in_pieces_and_as_a_whole() -> None:
    """Turn by turn is how answers are found; whole is how the reference encodes a conversation."""
    folder = Path(__file__).parents[2] / "data" / "conformance" / "lite" / "llm"
    tokenizer = Tokenizer.load(folder)
    turns = [
        ("<image>Where is the red chair?", "It's 30 degrees left, 2.5 m away."),
        ("And\nthe door?", "Behind you.\nTurn round."),
    ]
    encoded = encode(sample("image", frames(1), *turns), tokenizer, NANO)
    messages = [
        (role, text)
        for user, answer in turns
        for role, text in (("user", user), ("assistant", answer))
    ]
    whole: list[int] = []
    for token in tokenizer.encode(chat_prompt(messages, add_generation_prompt=False)):
        is_image = token == tokenizer.image_id
        whole += [-1] * NANO.tokens_per_frame + [*tokenizer.newline_ids] if is_image else [token]
    mine = encoded.ids.clone()
    mine[encoded.places] = -1
    assert mine.tolist() == whole[: len(mine)]
    assert whole[len(mine) :] == list(tokenizer.newline_ids)


def save_video(path: Path, count: int) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(count):
            shade = np.full((48, 64, 3), 12 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode())


def test_a_video_file_is_sampled_evenly(tmp_path: Path) -> None:
    save_video(tmp_path / "clip.mp4", 20)
    row = sample("video", (ClipFile(tmp_path / "clip.mp4"),), ("<vila/video>What?", "left."))
    encoded = encode(row, TOKENIZER, NANO)
    shades = encoded.tiles.float().mean((1, 2, 3)).tolist()
    assert len(encoded.media) == 1 and len(shades) == NANO.num_video_frames
    assert shades == sorted(shades) and shades[0] < 10 and shades[-1] > 200


def test_a_broken_video_is_a_broken_row(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"nothing")
    row = sample("video", (ClipFile(tmp_path / "clip.mp4"),), ("<vila/video>What?", "left."))
    with pytest.raises(DataError, match=r"row: .*clip\.mp4"):
        encode(row, TOKENIZER, NANO)


@pytest.mark.parametrize("picture_format", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_picture_is_read_or_refused_by_name(picture_format: str) -> None:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(frames(1)[0]).save(buffer, picture_format)
    content = buffer.getvalue()
    num_refused = 0
    for _ in range(150):
        damaged = bytearray(content[: int(rng.integers(len(content) + 1))])
        for place in rng.integers(0, max(1, len(damaged)), 3) if damaged else ():
            damaged[place] = int(rng.integers(256))
        try:
            assert open_frame(FrameBytes(bytes(damaged), "a.jpg")).mode == "RGB"
        except DataError as error:
            assert str(error).startswith("a.jpg is no readable picture")
            num_refused += 1
    assert num_refused > 50
