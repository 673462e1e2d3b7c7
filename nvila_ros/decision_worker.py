# SPDX-License-Identifier: Apache-2.0
"""The one thread that thinks: loads the policy, then decides on request; callbacks never wait."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from nvila_ros.decision import Decision, Policy
from nvila_ros.errors import ActionParseError

_log = logging.getLogger(__name__)

__all__ = ["Answer", "DecisionWorker", "Policy"]


@dataclass(frozen=True)
class Answer:
    """The outcome of one request: a decision, or what went wrong."""

    ticket: int
    decision: Decision | None
    error: str
    is_refusal: bool = False  # the model answered, but not with an action


class DecisionWorker:
    """A mailbox with one place: a new request replaces one that was not begun.

    A policy whose process has ended, or was killed because it hung, is loaded again.
    """

    def __init__(
        self, load_policy: Callable[[], Policy], on_answer: Callable[[], None] | None = None
    ) -> None:
        self._load_policy = load_policy
        self._on_answer = on_answer or (lambda: None)
        self._condition = threading.Condition()
        self._request: int | None = None
        self._prepare = False
        self._answer: Answer | None = None
        self._strip: bytes | None = None
        self.wants_strip = False  # a picture of what each decision saw
        self._policy: Policy | None = None
        self._load_error = ""
        self._stopping = self._reload = False
        self._busy = False
        self.loading_since_s = time.monotonic()
        self.num_loads = 0
        # A model that hangs must not keep the process from ending, so the thread is a daemon.
        self._thread = threading.Thread(target=self._run, name="decisions", daemon=True)

    def start(self) -> None:
        """Begins to load the policy."""
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Ends the thread and the policy's process; a thread that hangs is left behind."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        cancel = getattr(self._load_policy, "cancel", None)
        if cancel is not None:
            cancel()
        self._kill()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._policy = None

    @property
    def policy(self) -> Policy | None:
        """The policy once it is loaded."""
        return self._policy

    @property
    def load_error(self) -> str:
        """Why there is no policy, or ''."""
        return self._load_error

    @property
    def busy(self) -> bool:
        """Whether the thread is thinking, perhaps about a question nobody waits for any more."""
        return self._busy

    def ask(self, ticket: int) -> None:
        """Wants a decision from what was observed; its answer carries the ticket."""
        with self._condition:
            self._request, self._answer = ticket, None
            self._condition.notify()

    def ask_to_prepare(self) -> None:
        """Wants frames encoded in advance, when there is nothing better to do."""
        with self._condition:
            self._prepare = True
            self._condition.notify()

    def drop(self) -> None:
        """Forgets a request and an answer that are not wanted any more."""
        with self._condition:
            self._request, self._answer, self._prepare = None, None, False

    def take_answer(self, ticket: int) -> Answer | None:
        """The answer to this ticket, once; None while there is none."""
        with self._condition:
            answer = self._answer
            if answer is None or answer.ticket != ticket:
                return None
            self._answer = None
            return answer

    def take_strip(self) -> bytes | None:
        """JPEG of what the last decision saw, once."""
        with self._condition:
            strip, self._strip = self._strip, None
            return strip

    def lost(self) -> str:
        """Whether the policy's process has ended by itself: why, or ''; it is loaded again."""
        policy = self._policy
        if policy is None or _is_alive(policy):
            return ""
        self._begin_reload(policy)
        return "the model process has ended by itself"

    def give_up(self) -> bool:
        """Kills a policy that hangs, where that is possible, and loads it again."""
        policy = self._policy
        if policy is None or not hasattr(policy, "kill"):
            return False
        self._kill()
        self._begin_reload(policy)
        return True

    def progress(self) -> str:
        """What loading is at."""
        tell = getattr(self._load_policy, "progress", None)
        return str(tell()) if tell is not None else "loading the model"

    def memory_bytes(self) -> int:
        """Of the model on its GPU, 0 where it has none or does not tell."""
        measure = getattr(self._policy, "memory_bytes", None)
        return int(measure()) if measure is not None else 0

    def notices(self) -> tuple[str, ...]:
        """What the model did not use at loading, and why."""
        return getattr(self._policy, "notices", ())

    def _kill(self) -> None:
        kill = getattr(self._policy, "kill", None)
        if kill is not None:
            kill()

    def _begin_reload(self, policy: Policy) -> None:
        with self._condition:
            if self._policy is policy:
                self._policy, self._reload = None, True
                self._request = self._answer = None
                self.loading_since_s = time.monotonic()
            self._condition.notify()

    def _run(self) -> None:
        while not self._stopping:
            self._reload = False
            self.num_loads += 1
            try:
                policy = self._load_policy()
            except Exception as error:
                if self._stopping:
                    return
                # Whatever a checkpoint or a driver throws: the node lives on and says so.
                self._load_error = _say(error)
                return
            self._policy = policy
            if self._stopping:
                self._kill()
                return
            while (ticket := self._next_ticket()) is not None:
                self._serve(policy, ticket)

    def _next_ticket(self) -> int | None:
        """Waits for a request; -1 means to prepare, None to end or to load again."""
        with self._condition:
            self._busy = False
            self._condition.wait_for(
                lambda: self._stopping or self._reload or self._prepare or self._request is not None
            )
            if self._stopping or self._reload:
                return None
            self._busy = True
            ticket, self._request = self._request, None
            if ticket is None:
                self._prepare = False
                return -1
            return ticket

    def _serve(self, policy: Policy, ticket: int) -> None:
        decision, error, is_refusal = None, "", False
        try:
            if ticket < 0:
                policy.prepare()
                return
            decision = policy.decide()
        except ActionParseError as problem:
            error, is_refusal = str(problem), True
        except Exception as problem:
            error = _say(problem)
        with self._condition:
            # A newer request may have come meanwhile; its answer is the one that counts.
            if self._request is None and not self._reload and ticket >= 0:
                self._answer = Answer(ticket, decision, error, is_refusal)
        self._on_answer()
        if decision is not None and self.wants_strip:
            self._make_strip(policy)

    def _make_strip(self, policy: Policy) -> None:
        try:
            strip = policy.strip() if hasattr(policy, "strip") else None
        except Exception as error:  # a picture for people is never worth an episode
            _log.warning("no picture of what the model saw: %s", _say(error))
            return
        with self._condition:
            self._strip = strip
        self._on_answer()


def _is_alive(policy: Policy) -> bool:
    is_alive = getattr(policy, "is_alive", None)
    return True if is_alive is None else bool(is_alive())


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
