# SPDX-License-Identifier: Apache-2.0
"""The only room that talks ROS: callbacks store, one worker thinks."""
