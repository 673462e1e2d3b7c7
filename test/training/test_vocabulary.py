# SPDX-License-Identifier: Apache-2.0
"""Ablations change the small network and the sequences with it, and nothing else."""

import pytest

from nvila_ros.training.vocabulary import NetworkShape, build_sequences


@pytest.mark.parametrize("num_frames", [1, 4, 8])
@pytest.mark.parametrize(
    ("projector", "tokens"), [("mlp_downsample_3x3_fix", 16), ("mlp_downsample_2x2_fix", 36)]
)
def test_prompts_have_places_for_the_networks_frames(num_frames, projector, tokens):
    sequences = build_sequences(NetworkShape(num_frames, projector))
    places = sequences.navigation_image_places
    assert len(places) == num_frames * tokens
    prompt = sequences.navigation_prompt("Turn left.")
    assert (prompt[places] == sequences.pad_id).all()
    assert (prompt == sequences.pad_id).sum() == num_frames * tokens
