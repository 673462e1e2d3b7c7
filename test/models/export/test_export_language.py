# SPDX-License-Identifier: Apache-2.0
"""The decoder as a folder that other engines read."""

import json
import shutil
from pathlib import Path

import pytest

from nvila_ros import models
from nvila_ros.errors import ExportError
from nvila_ros.models.export_language import export_language

NANO_FOLDER = Path(models.__file__).parent / "nano"


def test_the_decoder_is_a_checkpoint_that_transformers_reads(tmp_path):
    transformers = pytest.importorskip("transformers")
    report = export_language(NANO_FOLDER, tmp_path / "text")
    assert report["architecture"] == "Qwen2ForCausalLM" and report["num_bytes"] > 1e6
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "text", output_loading_info=True
    )
    assert type(loaded).__name__ == "Qwen2ForCausalLM"
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with pytest.raises(ExportError, match="new or empty"):
        export_language(NANO_FOLDER, tmp_path / "text")


def test_a_decoder_that_others_do_not_know_is_refused(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(NANO_FOLDER, copy)
    path = copy / "llm" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "other"}))
    with pytest.raises(ExportError, match=r"model_type 'other'; vLLM"):
        export_language(copy, tmp_path / "text")
    assert not (tmp_path / "text").exists()
