# SPDX-License-Identifier: Apache-2.0
"""A person says where to go, a camera sees, NVILA decides, the robot moves."""

__version__ = "0.1.0"
