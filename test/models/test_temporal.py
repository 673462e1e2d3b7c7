# SPDX-License-Identifier: Apache-2.0
"""Pooling of a video's tokens, how they stand in the prompt, and times by token."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nvila_ros.errors import CheckpointError, ConfigError, InstructionError
from nvila_ros.models import ask, generate
from nvila_ros.models.inputs import prepare_video
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.temporal import frames_multiple, pool_frames, times_in, video_block
from nvila_ros.models.video import Clip


@pytest.mark.parametrize("size", [(8, 1, 1), (1, 2, 2), (2, 4, 1), (4, 2, 4), (1, 1, 1)])
def test_pooling_is_the_mean_of_each_box(size):
    frames, rows, columns = size
    features = torch.randn(8, 16, 5, generator=torch.Generator().manual_seed(3))
    grid = features.reshape(8, 4, 4, 5)
    boxes = [
        grid[f : f + frames, r : r + rows, c : c + columns].mean((0, 1, 2))
        for f in range(0, 8, frames)
        for r in range(0, 4, rows)
        for c in range(0, 4, columns)
    ]
    pooled = pool_frames(features, size)
    assert pooled.shape == (8 // frames, 16 // (rows * columns), 5)
    assert torch.allclose(pooled.flatten(0, 1), torch.stack(boxes), atol=1e-6)


@pytest.mark.parametrize("size", [(3, 1, 1), (1, 3, 1), (1, 1, 8), (0, 1, 1)])
def test_boxes_that_do_not_fit_are_refused(size):
    with pytest.raises(ConfigError, match="pool"):
        pool_frames(torch.zeros(8, 16, 5), size)


def test_a_newline_ends_every_frame_but_the_last():
    features = torch.tensor([[[1.0]], [[2.0]], [[3.0]], [[4.0]]])  # 4 frames of one token
    newline = torch.tensor([[-1.0], [-2.0]])
    assert video_block(features, newline).flatten().tolist() == [
        1, -1, -2, 2, -1, -2, 3, -1, -2, 4,
    ]  # fmt: skip
    pooled = video_block(features, newline, [(4, 1, 1), (2, 1, 1)])
    assert pooled.flatten().tolist() == [2.5, -1, -2, 1.5, -1, -2, 3.5]


@pytest.fixture
def frames():
    generator = np.random.default_rng(5)
    return [generator.integers(0, 256, (30, 50, 3), dtype=np.uint8) for _ in range(10)]


def embed_video(model, tokenizer, frames):
    fused = prepare_video(model, tokenizer, "<vila/video>turn left", frames)
    return fused, model.embed(fused.input_ids, fused.media)


@torch.inference_mode()
def test_without_pooling_a_video_reads_like_pictures_with_newlines(tiny_model, tokenizer, frames):
    from nvila_ros.models.inputs import prepare

    fused, embeds = embed_video(tiny_model, tokenizer, frames)
    pictures = prepare(tiny_model, tokenizer, "<image>" * len(frames) + "turn left", frames)
    assert fused.input_ids.count(tokenizer.video_id) == 1
    expected = tiny_model.embed(pictures.input_ids, pictures.media)
    assert torch.allclose(embeds, expected, atol=1e-6)


@torch.inference_mode()
def test_a_network_that_ends_no_frame_takes_videos_too(tiny_model, tokenizer, frames):
    tiny_model.connect(tokenizer.media_ids, ())
    fused, embeds = embed_video(tiny_model, tokenizer, frames)
    assert len(embeds) == len(fused.input_ids) - 1 + 10 * tiny_model.config.tokens_per_frame


@torch.inference_mode()
def test_several_pool_sizes_at_once(make_config, tokenizer, frames):
    config = make_config(
        vocab_size=tokenizer.vocab_size,
        mm_projector_type="mlp_downsample_3x3_fix",  # 5 x 5 patches: 2 x 2 tokens
        video_pool_sizes=((5, 1, 1), (2, 2, 2)),
    )
    model = Nvila.from_scratch(config, std=0.2).eval()
    model.connect(tokenizer.media_ids, tokenizer.newline_ids)
    fused, embeds = embed_video(model, tokenizer, frames)
    num_newlines = len(tokenizer.newline_ids)
    num_video = 2 * (4 + num_newlines) + 5 * (1 + num_newlines)
    assert frames_multiple(config) == 10
    assert len(embeds) == len(fused.input_ids) - 1 + num_video


@pytest.fixture
def with_times(make_config, tokenizer):
    """A model and tokenizer with five time tokens that pools over two frames."""
    from nvila_ros.training.nano_tokenizer import build_nano_tokenizer

    own = build_nano_tokenizer(["turn", "left"])
    own.add_tokens(f"<t{index}>" for index in range(5))
    config = make_config(
        vocab_size=own.vocab_size, num_time_tokens=5, video_pool_sizes=((2, 1, 1),)
    )
    model = Nvila.from_scratch(config, std=0.2).eval()
    model.connect(own.media_ids, own.newline_ids)
    return model, own


def test_time_tokens_are_read_as_seconds(with_times):
    config = with_times[0].config
    times = times_in("from <t1> to <t4>, at most <t7>", config, 8.0)
    assert times == {"<t1>": 2.0, "<t4>": 8.0, "<t7>": 8.0}


def test_times_mean_nothing_to_other_checkpoints(tiny_config):
    assert times_in("<t1>", tiny_config, 8.0) == {}


def test_questions_may_name_times_that_exist(with_times, monkeypatch, frames, tmp_path):
    clip = Clip(tuple(frames[:4]), (0, 1, 2, 3), 4, 8.0)
    monkeypatch.setattr(ask, "read_clip", lambda *arguments: clip)
    answer = with_times[1].encode("left<t3>")
    monkeypatch.setattr(generate, "generate_greedy", lambda *_, **__: answer)
    result = ask.ask_video(*with_times, tmp_path, "turn at <t1>?", 4)
    assert result["times_s"] == {"<t3>": 6.0} and result["num_frames"] == 4
    for question in ("turn at <t7>?", "turn <image>", "<t1><|im_end|>"):
        with pytest.raises(InstructionError):
            ask.ask_video(*with_times, tmp_path, question, 4)


@pytest.mark.parametrize(
    ("fps", "is_folder", "asked"), [(None, False, 2.0), (None, True, 0.0), (0.5, False, 0.5)]
)
def test_the_checkpoints_rate_holds_for_files_unless_one_is_given(
    with_times, monkeypatch, frames, tmp_path, fps, is_folder, asked
):
    model, tokenizer = with_times
    monkeypatch.setattr(model, "config", replace(model.config, video_rate_hz=2.0))
    rates = []

    def read(path, num_frames, rate_hz):
        rates.append(rate_hz)
        return Clip(tuple(frames[:4]), (0, 1, 2, 3), 4, 8.0)

    monkeypatch.setattr(ask, "read_clip", read)
    path = tmp_path if is_folder else tmp_path / "video.mp4"
    ask.ask_video(model, tokenizer, path, "turn?", 1, fps=fps)
    assert rates == [asked]


def test_time_tokens_without_rows_are_refused(with_times, make_config, tmp_path):
    tokenizer = with_times[1]
    short = make_config(vocab_size=tokenizer.vocab_size - 2, num_time_tokens=5)
    with pytest.raises(CheckpointError, match="beyond the decoder"):
        ask.ask_video(Nvila.from_scratch(short), tokenizer, tmp_path, "turn at <t4>?", 4)


def test_a_number_of_frames_that_cannot_be_pooled_is_refused(
    with_times, monkeypatch, frames, tmp_path
):
    clip = Clip(tuple(frames[:3]), (0, 1, 2), 3, 8.0)
    monkeypatch.setattr(ask, "read_clip", lambda *arguments: clip)
    with pytest.raises(ConfigError, match="multiple of 2"):
        ask.ask_video(*with_times, tmp_path, "turn?", 4)
