# SPDX-License-Identifier: Apache-2.0
"""Which frames of a video are shown, and that they are the right ones."""

import av
import numpy as np
import pytest
from PIL import Image

from nvila_ros.errors import ConfigError, ImageError
from nvila_ros.models.video import rate_indices, read_clip, uniform_indices, upright

NUM_FRAMES, RATE_HZ = 20, 10


def grey(index: int) -> int:
    """The brightness of frame `index`."""
    return 20 + 10 * index


def write_steps(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE_HZ)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(NUM_FRAMES):
            picture = np.full((48, 64, 3), grey(index), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_steps(tmp_path_factory.mktemp("video") / "steps.mp4")


def brightness(clip):
    return [float(np.asarray(frame).mean()) for frame in clip.frames]


@pytest.mark.parametrize(
    ("num_video_frames", "num_frames", "indices"),
    [
        (20, 5, [0, 5, 10, 14, 19]),  # 4.75, 9.5 (to even), 14.25
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, 8, [0, 0, 1, 1, 1, 1, 2, 2]),
        (100, 1, [0]),
    ],
)
def test_frames_are_spread_evenly(num_video_frames, num_frames, indices):
    assert uniform_indices(num_video_frames, num_frames) == indices


@pytest.mark.parametrize(
    ("video_rate_hz", "rate_hz", "num_frames", "indices"),
    [
        (10.0, 2.0, 8, [0, 5, 10, 15]),
        (10.0, 2.0, 3, [0, 5, 10]),  # a long video is cut off, not thinned
        (29.97, 4.0, 8, [0, 7, 14]),
        (10.0, 20.0, 4, [0, 0, 1, 1]),
    ],
)
def test_frames_at_a_rate(video_rate_hz, rate_hz, num_frames, indices):
    assert rate_indices(20, video_rate_hz, rate_hz, num_frames) == indices


def test_a_file_is_decoded_at_the_right_places(video):
    clip = read_clip(video, 5)
    assert clip.indices == (0, 5, 10, 14, 19)
    assert brightness(clip) == pytest.approx([grey(index) for index in clip.indices], abs=3)
    assert clip.num_video_frames == NUM_FRAMES and clip.duration_s == pytest.approx(2.0)
    assert clip.frames[0].size == (64, 48) and clip.frames[0].mode == "RGB"
    assert brightness(read_clip(video, 8, 2.0)) == pytest.approx([20, 70, 120, 170], abs=3)


def test_a_short_video_repeats_frames(video):
    assert len(read_clip(video, 64).frames) == 64


def test_a_header_that_promises_too_much_is_corrected(video, monkeypatch):
    monkeypatch.setattr("nvila_ros.models.video._promised", lambda path: (NUM_FRAMES + 9, 10.0))
    clip = read_clip(video, 5)
    assert clip.indices == (0, 5, 10, 14, 19) and clip.num_video_frames == NUM_FRAMES


def test_a_file_that_does_not_say_its_length_is_counted(tmp_path, video):
    path = tmp_path / "steps.mkv"  # Matroska has no frame count
    with av.open(str(video)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert read_clip(path, 5).indices == (0, 5, 10, 14, 19)


def test_a_truncated_file_is_read_as_far_as_it_goes(tmp_path):
    path = write_steps(tmp_path / "steps.ts")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    clip = read_clip(path, 4)
    assert 0 < clip.num_video_frames < NUM_FRAMES and len(clip.frames) == 4


def test_a_folder_of_frames_is_taken_in_the_order_of_names(tmp_path):
    for index in range(6):
        Image.new("RGB", (8, 8), (grey(index),) * 3).save(tmp_path / f"frame_{index}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    clip = read_clip(tmp_path, 3)
    assert clip.indices == (0, 2, 5) and brightness(clip) == [20, 40, 70]
    assert clip.duration_s is None
    with pytest.raises(ConfigError, match="no rate"):
        read_clip(tmp_path, 3, 1.0)


def test_a_turned_recording_is_set_upright():
    image = Image.new("RGB", (4, 2))
    assert [upright(image, angle).size for angle in (0, 90, -90, 180)] == [
        (4, 2), (2, 4), (2, 4), (4, 2),
    ]  # fmt: skip


def test_what_is_no_video_is_named(tmp_path, video):
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    for path, message in (
        (text, "no readable video"),
        (tmp_path / "absent.mp4", "does not exist"),
        (tmp_path / "empty", "no pictures"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ImageError, match=message):
            read_clip(path, 4)
    for arguments in ((0, 0.0), (4, -1.0), (4, float("nan"))):
        with pytest.raises(ConfigError, match="at least one frame"):
            read_clip(video, *arguments)
