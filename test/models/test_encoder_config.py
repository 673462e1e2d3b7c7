# SPDX-License-Identifier: Apache-2.0
"""Encoders as released config files describe them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nvila_ros.errors import CheckpointError
from nvila_ros.models.encoder_config import read_encoders

PATH = Path("config.json")
PREFIX = "llava.model.encoders."


@pytest.fixture(name="read")
def reader(make_config):
    def read(data, decoder="qwen2"):
        return read_encoders(data, PATH, replace(make_config().language, model_type=decoder))

    return read


def test_without_encoders_nvila_ends_frames_and_vila_1_5_does_not(read):
    assert read({})["frame_end_text"] == "\n"
    assert read({}, "llama")["frame_end_text"] == ""


@pytest.mark.parametrize("form", [dict, json.dumps])
def test_a_description_may_be_json_in_a_string(read, form):
    video = {"_target_": f"{PREFIX}TSPVideoEncoder", "pool_sizes": [[8, 1, 1], [2, 2, 2]]}
    image = {"_target_": f"{PREFIX}BasicImageEncoder"}
    encoders = read({"image_encoder": form(image), "video_encoder": form(video)})
    assert encoders["video_pool_sizes"] == ((8, 1, 1), (2, 2, 2))
    assert encoders["frame_end_text"] == "\n"


def test_only_code_that_travels_with_weights_skips_ends(read):
    assert read({"model_type": "vila"})["skips_end_after_media"]
    assert not read({"model_type": "llava_llama"})["skips_end_after_media"]


@pytest.mark.parametrize(
    ("key", "spec", "message"),
    [
        ("image_encoder", {"start_tokens": "<i>"}, "start_tokens '<i>'"),
        ("video_encoder", {"sep_tokens": ";"}, "sep_tokens ';'"),
        ("video_encoder", {"end_tokens": None}, "one text for both"),
        ("video_encoder", {"_target_": f"{PREFIX}OtherEncoder"}, "OtherEncoder; BasicVideoEncoder"),
        ("video_encoder", {"pool_sizes": [[8, 1]]}, r"pool size is \[8, 1\]"),
        ("video_encoder", {"pool_sizes": [[8, 0, 1]]}, "at least 1"),
        ("image_encoder", "{", "not valid JSON"),
        ("image_encoder", [1], "description of an encoder"),
    ],
)
def test_what_is_not_supported_is_named(read, key, spec, message):
    with pytest.raises(CheckpointError, match=message):
        read({key: spec})
