# SPDX-License-Identifier: Apache-2.0
"""Settings of the dashboard node; the token is no parameter, since everybody can read those."""

from __future__ import annotations

from dataclasses import dataclass

from nvila_ros.settings import check_settings, setting

TOKEN_VARIABLE = "NVILA_DASHBOARD_TOKEN"
DEFAULT_PORT = 8642


@dataclass(frozen=True, kw_only=True)
class DashboardConfig:
    """Where the page is served, and whom it listens to."""

    host: str = setting("127.0.0.1", "address to listen on; others than loopback need allow_remote")
    port: int = setting(DEFAULT_PORT, "TCP port; 0 takes a free one", at_least=0, at_most=65535)
    allow_remote: bool = setting(False, f"serve the network; needs a token in {TOKEN_VARIABLE}")
    navigator: str = setting("navigator", "name of the navigator node")
    simulator: str = setting("simulator", "name of the simulator node, if there is one")
    image_transport: str = setting(
        "raw", "raw or compressed (<image>/compressed)", one_of=("raw", "compressed")
    )

    def __post_init__(self) -> None:
        check_settings(self)
