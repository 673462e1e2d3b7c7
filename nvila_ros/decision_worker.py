# SPDX-License-Identifier: Apache-2.0
"""The one thread that thinks: loads the policy, then decides on request; callbacks never wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nvila_ros.decision import Decision


class Policy(Protocol):
    """What the worker needs of nvila_ros.policy.NavigationPolicy."""

    def reset(self, instruction: str) -> None: ...

    def observe(
        self, rgb: np.ndarray, x_m: float, y_m: float, yaw_rad: float, stamp_s: float
    ) -> bool: ...

    def decide(self) -> Decision: ...

    def tried(self, decision: Decision) -> None: ...

    def prepare(self) -> int: ...


@dataclass(frozen=True)
class Answer:
    """The outcome of one request: a decision, or what went wrong."""

    ticket: int
    decision: Decision | None
    error: str


class DecisionWorker:
    """A mailbox with one place: a new request replaces one that was not begun."""

    def __init__(self, load_policy: Callable[[], Policy]) -> None:
        self._load_policy = load_policy
        self._condition = threading.Condition()
        self._request: int | None = None
        self._prepare = False
        self._answer: Answer | None = None
        self._policy: Policy | None = None
        self._load_error = ""
        self._stopping = False
        self._busy = False
        # A model that hangs must not keep the process from ending, so the thread is a daemon.
        self._thread = threading.Thread(target=self._run, name="decisions", daemon=True)

    def start(self) -> None:
        """Begins to load the policy."""
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Asks the thread to end and waits for it a little."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def policy(self) -> Policy | None:
        """The policy once it is loaded."""
        return self._policy

    @property
    def load_error(self) -> str:
        """Why there will be no policy, or ''."""
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

    def _run(self) -> None:
        try:
            self._policy = self._load_policy()
        except Exception as error:
            # Whatever a checkpoint or a driver throws: the node lives on and says so.
            self._load_error = _say(error)
            return
        while (ticket := self._next_ticket()) is not None:
            self._serve(ticket)

    def _next_ticket(self) -> int | None:
        """Waits for a request; -1 means to prepare, None to end."""
        with self._condition:
            self._busy = False
            self._condition.wait_for(
                lambda: self._stopping or self._prepare or self._request is not None
            )
            if self._stopping:
                return None
            self._busy = True
            ticket, self._request = self._request, None
            if ticket is None:
                self._prepare = False
                return -1
            return ticket

    def _serve(self, ticket: int) -> None:
        assert self._policy is not None
        decision, error = None, ""
        try:
            if ticket < 0:
                self._policy.prepare()
                return
            decision = self._policy.decide()
        except Exception as problem:
            error = _say(problem)
        with self._condition:
            # A newer request may have come meanwhile; its answer is the one that counts.
            if self._request is None and ticket >= 0:
                self._answer = Answer(ticket, decision, error)


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
