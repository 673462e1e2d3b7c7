# SPDX-License-Identifier: Apache-2.0
"""The page in the browser: what the ROS side fed into a plain state, drawn; knows no ROS."""
