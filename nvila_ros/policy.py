# SPDX-License-Identifier: Apache-2.0
"""Navigation policy: instruction and frames in, one of ten actions out; frames are encoded once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from nvila_ros.action_trie import ActionTrie
from nvila_ros.actions import ACTIONS
from nvila_ros.config import HistoryConfig
from nvila_ros.decision import Decision
from nvila_ros.errors import ImageError, InstructionError
from nvila_ros.history import Frame, FrameHistory
from nvila_ros.history_strip import strip_jpeg
from nvila_ros.models.generate import Choice
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.preprocess import frame_pixels
from nvila_ros.models.prompt import IMAGE_TOKEN, navigation_prompt, user_prompt
from nvila_ros.models.runtime_backend import InferenceEngine, as_engine, load_engine
from nvila_ros.models.tokenizer import Tokenizer
from nvila_ros.models.trie import TokenTrie
from nvila_ros.restraint import Restraint

_log = logging.getLogger(__name__)


class NavigationPolicy:
    """Decides where to go from an instruction and the frames seen so far.

    A frame's features are kept with it; black padding is encoded once for all episodes. `prepare`,
    called while the robot moves, encodes what later decisions may show, so that each of them has
    only the newest frame left to encode. `observe` and `reset` are cheap and may be called from
    another thread than the one that runs `decide` and `prepare`.
    """

    def __init__(
        self,
        model: Nvila | InferenceEngine,
        tokenizer: Tokenizer,
        history: HistoryConfig | None = None,
    ) -> None:
        default = HistoryConfig(num_frames=model.config.num_video_frames)
        self._history = FrameHistory(history or default)
        self._engine = as_engine(model)
        self._tokenizer = tokenizer
        self._trie = ActionTrie(tokenizer)
        self._restraint = Restraint()
        self.notices: tuple[str, ...] = ()  # what was not used at loading, and why
        self._shown: list[Frame] = []  # by the last decision, oldest first
        self._sentence = ""
        self._prompt_ids: list[int] | None = None
        side_px = model.config.vision.image_size
        black = np.zeros((side_px, side_px, 3), np.uint8)
        self._black = Frame(index=-1, rgb=black, x_m=0.0, y_m=0.0, yaw_rad=0.0, stamp_s=0.0)
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        history: HistoryConfig | None = None,
        *,
        backend: str = "auto",
        vision_backend: str = "auto",
        quantizes: bool = False,
    ) -> NavigationPolicy:
        """Reads a checkpoint folder; CheckpointError names what is missing.

        Backends and `quantizes` are `load_engine`'s; ConfigError where they cannot be had.
        """
        num_frames = None if history is None else history.num_frames
        notices: list[str] = []

        def note(text: str) -> None:
            _log.warning("%s", text)
            notices.append(text)

        engine, tokenizer = load_engine(
            folder,
            device,
            dtype,
            backend=backend,
            vision_backend=vision_backend,
            num_frames=num_frames,
            quantizes=quantizes,
            on_notice=note,
        )
        policy = cls(engine, tokenizer, history)
        policy.notices = tuple(notices)
        return policy

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Of the tokenizer: an instruction may not hold them."""
        return tuple(self._tokenizer.special_tokens)

    @property
    def num_samples(self) -> int:
        """Frames kept in this episode."""
        return len(self._history)

    def reset(self, instruction: str) -> None:
        """Begins an episode: checks the instruction, forgets all frames."""
        config = self._engine.config
        prompt = navigation_prompt(
            instruction, self._history.config.num_frames - 1, self._tokenizer.special_tokens
        )
        prompt_ids = self._tokenizer.encode(user_prompt(prompt, config.chat_template))
        with self._lock:
            self._prompt_ids = prompt_ids
            self._history.clear()
            self._restraint.clear()

    def observe(
        self, rgb: np.ndarray, x_m: float, y_m: float, yaw_rad: float, stamp_s: float
    ) -> bool:
        """Takes a (H, W, 3) uint8 image and its pose; True when it became a sample."""
        with self._lock:
            return self._history.append(rgb, x_m, y_m, yaw_rad, stamp_s)

    def decide(self) -> Decision:
        """Chooses the next action from what was observed up to now."""
        begin_s = time.perf_counter()
        with self._lock:
            prompt_ids, selected = self._prompt_ids, self._history.select()
        if prompt_ids is None:
            raise InstructionError("there is no instruction yet; call reset(instruction) first")
        if selected[-1] is None:
            raise ImageError("there is no image yet; call observe(...) before decide()")
        shown = [frame or self._black for frame in selected]
        num_encoded = self._encode(shown)
        blocks = [frame.features for frame in shown]
        pose = (shown[-1].x_m, shown[-1].y_m, shown[-1].yaw_rad)
        choice = self._engine.choose(prompt_ids, blocks, self._trie, self._restraint.allowed(*pose))
        self._shown, self._sentence = shown, ACTIONS[choice.index].sentence
        return Decision(
            action=ACTIONS[choice.index],
            confidence=choice.confidence,
            probabilities=choice.probabilities,
            latency_s=time.perf_counter() - begin_s,
            num_encoded_frames=num_encoded,
            frame_indices=tuple(None if frame is None else frame.index for frame in selected),
            stamp_s=shown[-1].stamp_s,
            pose=pose,
        )

    def answers(self, sentences: Sequence[str]) -> TokenTrie:
        """A finite set of answers for `ask`, in this order."""
        return TokenTrie([self._tokenizer.encode(sentence) for sentence in sentences])

    def ask(self, question: str, answers: TokenTrie) -> Choice:
        """Which answer fits the last decision's newest picture; its features are there already.

        The question is the caller's, or made of an instruction that `reset` has checked.
        """
        if not self._shown:
            raise ImageError("nothing was decided on yet; call decide() before ask(...)")
        text = user_prompt(f"{IMAGE_TOKEN}\n{question}", self._engine.config.chat_template)
        return self._engine.choose(
            self._tokenizer.encode(text), [self._shown[-1].features], answers
        )

    def tried(self, decision: Decision) -> None:
        """Notes that the last decision's motion was carried out, or tried until it failed.

        What led nowhere is not offered again (see `Restraint`); a decision that was never tried
        leaves no trace.
        """
        assert decision.pose is not None
        self._restraint.tried(decision.index, *decision.pose)

    def strip(self) -> bytes | None:
        """JPEG of the frames exactly as the last decision saw them, with its answer."""
        if not self._shown:
            return None
        tiles = [frame_pixels(frame.rgb, self._engine.config) for frame in self._shown]
        pixels = torch.stack(tiles).permute(0, 2, 3, 1)  # (F, S, S, 3) in [-1, 1]
        rgb = ((pixels + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return strip_jpeg(rgb.numpy(), self._sentence)

    def prepare(self) -> int:
        """Encodes sampled frames that no decision has shown yet; returns how many."""
        with self._lock:
            frames = self._history.without_features()
        num_encoded = self._encode(frames)
        self._engine.catch_up()
        return num_encoded

    @torch.inference_mode()
    def _encode(self, frames: Sequence[Frame]) -> int:
        """Fills missing features in one batch; returns how many frames were encoded."""
        missing = [frame for frame in dict.fromkeys(frames) if frame.features is None]
        if not missing:
            return 0
        pixels = torch.stack([frame_pixels(frame.rgb, self._engine.config) for frame in missing])
        features = self._engine.encode_frames(pixels.to(self._engine.device, self._engine.dtype))
        for frame, block in zip(missing, features, strict=True):  # (T, D)
            frame.features = block
        return len(missing)
