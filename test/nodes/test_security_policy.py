# SPDX-License-Identifier: Apache-2.0
"""The SROS 2 policy names exactly what the running nodes use: nothing less, nothing more."""

import xml.etree.ElementTree as ElementTree

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here: source one, or x86_64 for the wheels")

from stand_ins import wait_for

from nvila_ros.nodes.dashboard_node import DashboardNode
from nvila_ros.ros_environment import share_folder

pytestmark = pytest.mark.ros
POLICY = share_folder() / "config" / "sros2" / "policy.xml"
# Only with other parameters or other packages than this test has.
OPTIONAL = {
    ("subscribe", "image/compressed"),
    ("subscribe", "collision_monitor_state"),
    ("subscribe", "/clock"),
    ("subscribe", "/parameter_events"),
    ("publish", "bond"),
    ("publish", "/tf"),
    ("publish", "/tf_static"),
    ("reply", "~/get_type_description"),
}


def allowed(node):
    """{(kind, name)} of one node's profile; actions are left out, they need Nav2."""
    (profile,) = ElementTree.parse(POLICY).getroot().iterfind(f".//profile[@node='{node}']")
    return {
        (kind, entry.text)
        for group in profile
        for kind in ("subscribe", "publish", "reply", "request")
        if group.get(kind) == "ALLOW"
        for entry in group
    }


def used(node, ros, name):
    """The same of a running node, with its own names made relative again."""
    own, space = f"/{ros.namespace}/{name}/", f"/{ros.namespace}/"

    def short(full):
        return full.replace(own, "~/", 1) if full.startswith(own) else full.replace(space, "", 1)

    arguments = (name, f"/{ros.namespace}")
    return {
        *(
            ("subscribe", short(n))
            for n, _ in node.get_subscriber_names_and_types_by_node(*arguments)
        ),
        *(("publish", short(n)) for n, _ in node.get_publisher_names_and_types_by_node(*arguments)),
        *(("reply", short(n)) for n, _ in node.get_service_names_and_types_by_node(*arguments)),
        *(("request", short(n)) for n, _ in node.get_client_names_and_types_by_node(*arguments)),
    }


def test_the_navigator_may_do_what_it_does_and_nothing_else(ros, robot, policy):
    ros.navigator(policy)
    robot.wait_for_state("idle")
    permitted = allowed("navigator")

    def agree():
        found = used(robot.node, ros, "navigator")
        return not found - permitted and not permitted - found - OPTIONAL

    wait_for(
        agree,
        f"agreement; missing {sorted(used(robot.node, ros, 'navigator') - permitted)}, too much "
        f"{sorted(permitted - used(robot.node, ros, 'navigator') - OPTIONAL)}",
    )


def test_the_simulator_may_do_what_it_does_and_nothing_else(ros, robot_free, start_node):
    start_node(ros, "simulator", "-p", "image_width_px:=64", "-p", "image_height_px:=48")
    node = robot_free.node
    wait_for(lambda: node.count_publishers("simulator/episode"), "the simulator", 40.0)
    permitted = allowed("simulator")

    def agree():
        found = used(node, ros, "simulator")
        return not found - permitted and not permitted - found - OPTIONAL

    wait_for(agree, "agreement of the policy and the simulator", 10.0)


def test_the_dashboard_may_do_what_it_does_and_nothing_else(ros, robot_free):
    dashboard = ros.add(DashboardNode(context=ros.context, namespace=ros.namespace))
    dashboard.state.watch("a page", True)
    permitted = allowed("dashboard")

    def agree():
        found = used(robot_free.node, ros, "dashboard")
        return not found - permitted and not permitted - found - OPTIONAL

    wait_for(agree, "agreement of the policy and the dashboard", 10.0)
