# SPDX-License-Identifier: Apache-2.0
"""The engine: a network with its weights packed, its shapes fixed and its passes captured.

It answers as `models/generate.py` does, from the same prompts and features, and keeps what it read:
a prompt that begins as the last one did costs only its new rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from nvila_ros.errors import ConfigError
from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.footprint import num_prompt_tokens
from nvila_ros.models.generate import Choice, weigh
from nvila_ros.models.nvila import Nvila, without_skipped
from nvila_ros.models.runtime_cache import FixedCache, Sequence1D, fuse, on_device
from nvila_ros.models.runtime_decoder import Decoder
from nvila_ros.models.runtime_graphs import GraphPool, Graphs
from nvila_ros.models.runtime_memory import (
    EngineMemory,
    check_room,
    default_places,
    num_bytes,
    out_of_memory,
)
from nvila_ros.models.runtime_vision import make_encoder
from nvila_ros.models.runtime_weights import DecoderWeights, pack_decoder, quantize_tower
from nvila_ros.models.trie import TokenTrie

_log = logging.getLogger(__name__)

PLACES_MULTIPLE = 64
MAX_FRAMES = 8
ROWS_AT_ONCE = 4096  # of a long prompt: bounds what lies between two layers to half a gigabyte
WARM_UP_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # kernels differ by how many rows there are
WARM_UP_TREE = TokenTrie([(first, second) for first in range(8) for second in range(2)])


class Engine:
    """One network on one device, for one prompt at a time and one thread.

    On a CUDA GPU it runs the kernels and replays graphs; anywhere else the kernels' slow twins.
    """

    name = "kernels"

    def __init__(
        self,
        config: NvilaConfig,
        weights: DecoderWeights,
        encode: Callable[[Tensor], Tensor],
        *,
        encode_tiles: Callable[[Tensor, tuple[int, int]], Tensor] | None = None,
        media_token_ids: Collection[int] = (),
        newline_token_ids: Sequence[int] = (),
        skipped_token_ids: Collection[int] = (),
        max_tokens: int | None = None,
        max_frames: int = MAX_FRAMES,
        other_bytes: int = 0,
    ) -> None:
        """`encode` is the tower and projector; `other_bytes` their weights, for the report."""
        self.config = config
        self.max_frames = max_frames
        self.media_token_ids = frozenset(media_token_ids)
        self.newline_token_ids = tuple(newline_token_ids)
        self.skipped_token_ids = frozenset(skipped_token_ids)
        self._weights = weights
        self._encode_tiles = encode_tiles
        self._pool = GraphPool(weights.device)
        self._encode = encode
        self._vision_graphs = Graphs(self._pool)
        self._other_bytes = other_bytes
        self._make_decoder(max_tokens or default_places(config, weights.device, max_frames))

    @classmethod
    def from_model(
        cls,
        model: Nvila,
        device: torch.device | str | None = None,
        *,
        max_tokens: int | None = None,
        max_frames: int = MAX_FRAMES,
        quantizes: bool = False,
        releases: bool = False,
    ) -> Engine:
        """Packs a loaded network, warms up and captures; ConfigError if it does not fit.

        `quantizes` rounds float weights to W8A8 (tower) and W4A16 (decoder) without calibration.
        `releases` empties the model while packing: half the memory, and the model is used up.
        """
        device = torch.device(device or model.device)
        check_room(model.config, device, model, max_frames)
        with torch.inference_mode(), out_of_memory(model.config, device, max_frames):
            model.to(device)
            weights = pack_decoder(model.llm, quantizes=quantizes, releases=releases)
            if quantizes:
                quantize_tower(model.vision_tower)
            other_bytes = num_bytes(model.vision_tower) + num_bytes(model.mm_projector)
            encode, tiles = make_encoder(model, max_frames, releases=releases)
            engine = cls(
                model.config,
                weights,
                encode,
                encode_tiles=tiles,
                media_token_ids=model.media_token_ids,
                newline_token_ids=model.newline_token_ids,
                skipped_token_ids=model.skipped_token_ids,
                max_tokens=max_tokens,
                max_frames=max_frames,
                other_bytes=other_bytes,
            )
            engine.warm_up()
        return engine

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._weights.device

    @property
    def dtype(self) -> torch.dtype:
        """What activations are."""
        return self._weights.dtype

    @property
    def max_tokens(self) -> int:
        """Places of the cache."""
        return self._cache.max_tokens

    def warm_up(self) -> None:
        """Compiles kernels and captures the graphs of one frame, of all frames, and of a step."""
        self.warm_up_decoder()
        self.warm_up_vision()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what packing and warming up left behind

    @torch.inference_mode()
    def warm_up_vision(self) -> None:
        """Off CUDA there is nothing to do."""
        vision = self.config.vision
        shape = (vision.num_channels, vision.image_size, vision.image_size)
        for count in dict.fromkeys((1, self.max_frames)):
            pixels = torch.zeros(count, *shape, device=self.device, dtype=self.dtype)
            self._vision_graphs.prepare(count, self._encode, pixels)

    @torch.inference_mode()
    def warm_up_decoder(self) -> None:
        """Forgets what the cache holds."""
        self._decoder.prepare()
        if self.device.type == "cuda":
            for count in WARM_UP_ROWS:
                self._read(Sequence1D((0,) * min(count, self.max_tokens)))
                self._cache.hold(Sequence1D(()))
            longest = min(num_prompt_tokens(self.config, self.max_frames), self.max_tokens - 8)
            self._read(Sequence1D((0,) * longest), WARM_UP_TREE, (0, 1))
            self._decoder.forget_layouts()
        self._cache.hold(Sequence1D(()))

    @torch.inference_mode()
    def catch_up(self) -> None:
        """Captures what was met once, while nobody waits: the robot moves."""
        num_captured = self._vision_graphs.catch_up() + self._decoder.catch_up()
        if num_captured and self.device.type == "cuda":
            torch.cuda.empty_cache()  # what they took before they were captured, stream by stream

    @torch.inference_mode()
    def encode_frames(self, pixels: Tensor) -> Tensor:
        """(F, 3, S, S) in [-1, 1] -> (F, T, D) features of frames that are one tile each."""
        with out_of_memory(self.config, self.device, self.max_frames):
            pixels = pixels.to(self.device, self.dtype, non_blocking=True)
            parts = [
                self._vision_graphs.run(len(part), lambda: self._encode, part)
                for part in pixels.split(self.max_frames)
            ]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

    @torch.inference_mode()
    def encode_tiles(self, pixels: Tensor, block: tuple[int, int]) -> Tensor:
        """All tiles of one picture at all scales (N, 3, S, S) -> (T, D), for dynamic_s2 only."""
        assert self._encode_tiles is not None, "this engine was made without tiles"
        with out_of_memory(self.config, self.device, self.max_frames):
            return self._encode_tiles(pixels.to(self.device, self.dtype), block)

    @torch.inference_mode()
    def embed_text(self, ids: Sequence[int]) -> Tensor:
        """(N,) token ids -> (N, D)."""
        return self._weights.table[on_device(ids, torch.long, self.device)]

    @torch.inference_mode()
    def generate_greedy(
        self,
        input_ids: Sequence[int] | Tensor,
        media: Sequence[Tensor] | Tensor = (),
        *,
        max_new_tokens: int = 32,
        stop_ids: Collection[int] = (),
    ) -> list[int]:
        """The most likely next token, again and again; the stop token is not part of the answer."""
        prompt = self._fuse(input_ids, media)
        self._make_room(len(prompt) + max_new_tokens)
        answer: list[int] = []
        for tokens in self._decoder.answer(self._read(prompt), len(prompt), max_new_tokens):
            ends = [index for index, token in enumerate(tokens) if token in stop_ids]
            answer += tokens[: ends[0]] if ends else tokens
            if ends:
                break
        self._cache.hold(prompt.followed_by(answer[:-1]))
        return answer

    @torch.inference_mode()
    def choose(
        self,
        input_ids: Sequence[int] | Tensor,
        media: Sequence[Tensor] | Tensor,
        trie: TokenTrie,
        allowed: Collection[int] | None = None,
    ) -> Choice:
        """Pick one answer after a prompt, in one pass over what is new of it and all branches."""
        tail = trie.tail
        if not tail.branches:
            return weigh(tail, (), allowed)  # one answer alone: nothing to ask
        prompt = self._fuse(input_ids, media).followed_by(trie.prefix)
        self._make_room(len(prompt) + len(tail.tokens))
        tokens = sorted({token for branch in tail.branches for token in branch.tokens})
        scores = self._read(prompt, tail, tokens).cpu()  # (branches, A)
        rows = [
            row[[tokens.index(token) for token in branch.tokens]]
            for branch, row in zip(tail.branches, scores, strict=True)
        ]
        return weigh(tail, rows, allowed, num_forward_passes=1)

    def memory(self) -> EngineMemory:
        """What it takes of the device, in bytes."""
        return EngineMemory.measure(self._weights, self._other_bytes, self._cache.num_bytes)

    def _fuse(
        self, input_ids: Sequence[int] | Tensor, media: Sequence[Tensor] | Tensor
    ) -> Sequence1D:
        ids = input_ids.tolist() if isinstance(input_ids, Tensor) else list(input_ids)
        ids = without_skipped(ids, self.media_token_ids, self.skipped_token_ids)
        return fuse(ids, list(media), self.media_token_ids, self.newline_token_ids)

    def _read(
        self, prompt: Sequence1D, tree: TokenTrie | None = None, tokens: Sequence[int] = ()
    ) -> Tensor:
        """Reads what is new of a prompt and a tree -> scores of the tokens at each branch (W, A).

        Without a tree: the state of the last row (1, D).
        """
        table = self._weights.table
        start = self._cache.reuse(prompt)
        embeds = prompt.embed(table, start)
        while len(embeds) > ROWS_AT_ONCE:
            with out_of_memory(self.config, self.device, self.max_frames):
                self._decoder.read(embeds[:ROWS_AT_ONCE], start, None, [ROWS_AT_ONCE - 1])
            start, embeds = start + ROWS_AT_ONCE, embeds[ROWS_AT_ONCE:]
        num_prompt = len(embeds)
        if tree is not None and tree.tokens:
            embeds = torch.cat((embeds, self.embed_text(tree.tokens)))
        nodes = [-1] if tree is None else [branch.node for branch in tree.branches]
        wanted = [num_prompt + node for node in nodes]
        with out_of_memory(self.config, self.device, self.max_frames):
            found = self._decoder.read(embeds, start, tree, wanted, tokens)
        self._cache.hold(prompt)
        return found

    def _make_decoder(self, num_places: int) -> None:
        places = -(-num_places // PLACES_MULTIPLE) * PLACES_MULTIPLE
        weights = self._weights
        for name in ("_decoder", "_cache"):
            self.__dict__.pop(name, None)  # first, so that there is room
        self._cache = FixedCache(weights.config, places, weights.device, weights.dtype)
        self._decoder = Decoder(weights, self._cache, self._pool)

    def _make_room(self, num_tokens: int) -> None:
        """A larger cache for a prompt that does not fit; the old one is forgotten."""
        longest = self._weights.config.max_position_embeddings
        if num_tokens > longest:
            raise ConfigError(
                f"the prompt and its answer have {num_tokens} tokens, the network was made for "
                f"{longest}; show fewer frames or ask for a shorter answer"
            )
        if num_tokens > self.max_tokens:
            before, problem = self.max_tokens, ""
            _log.warning("%d tokens do not fit the cache of %d: it is made new", num_tokens, before)
            try:
                with out_of_memory(self.config, self.device, self.max_frames):
                    self._make_decoder(num_tokens)
                    self._decoder.prepare()
            except ConfigError as error:
                problem = str(error)
            if problem:  # the error's frames, which held what was made of the cache, are gone
                self._make_decoder(before)  # it fitted, and answers shorter prompts
                self._decoder.prepare()
                raise ConfigError(problem)
