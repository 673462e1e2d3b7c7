# SPDX-License-Identifier: Apache-2.0
"""Package nvila_ros for colcon (ament_python), pip and editable installs alike."""

from glob import glob

from setuptools import find_packages, setup

PACKAGE = "nvila_ros"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="Vision-and-language navigation for ROS 2 with NVILA",
    license="Apache-2.0",
    maintainer="nvila_ros maintainers",
    maintainer_email="maintainers@nvila-ros.example.org",
    python_requires=">=3.10,<3.13",
    # nvila_ros/{models,kernels,training} are links to the folders at the top, and are followed.
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={
        PACKAGE: ["py.typed"],
        f"{PACKAGE}.evaluation": ["templates/*"],
        f"{PACKAGE}.kernels": ["csrc/*"],
        f"{PACKAGE}.models": ["nano/*", "nano/*/*"],
        f"{PACKAGE}.sim": ["assets/*"],
        f"{PACKAGE}.training": ["recipes/*.yaml", "recipes/*/*.yaml", "launch/*"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", glob("launch/*.launch.py")),
        (f"share/{PACKAGE}/config", glob("config/*.*")),
        (f"share/{PACKAGE}/config/sros2", glob("config/sros2/*")),
        (f"share/{PACKAGE}/config/gazebo", glob("config/gazebo/*")),
        # A wheel puts console scripts into bin/ only; ros2 run and launch look into lib/<package>/.
        (f"lib/{PACKAGE}", glob("libexec/*")),
    ],
    install_requires=[
        "av",
        "jinja2",
        "matplotlib",
        "mujoco>=3.3",
        "numpy",
        "opencv-python-headless",
        "pillow",
        "pyyaml",
        "rich",
        "safetensors",
        "scipy",
        "setuptools",
        "tokenizers",
        "torch>=2.11",
        "typer",
    ],
    extras_require={
        # ROS 2 Jazzy from pip's wheels, for machines with no ROS installation (x86_64 only).
        "ros": [
            "ros-jazzy-common-interfaces; platform_machine == 'x86_64'",
            "ros-jazzy-rclpy; platform_machine == 'x86_64'",
            "ros-jazzy-rmw-fastrtps-cpp; platform_machine == 'x86_64'",
        ],
        # `nvila dashboard`: a page in the browser (70 MB).
        "dashboard": ["nicegui>=3.18"],
        # Every stage of training; `make test` trains at toy size with these (60 MB).
        "train": ["accelerate", "peft", "tensorboard", "torchao", "webdataset"],
        # Fused losses need Triton, 1 GB where torch did not bring it: CUDA builds of torch do.
        "train-gpu": ["liger-kernel"],
        # 4-bit base weights under LoRA, on a CUDA GPU (165 MB).
        "qlora": ["bitsandbytes"],
        # ZeRO beside FSDP2: builds from source against the installed torch.
        "deepspeed": ["deepspeed"],
        # Episodes, scores and evaluations on many machines (250 MB).
        "scale": ["ray"],
        # Drives the system's Chromium over the dashboard; slow tests only (165 MB).
        "browser-test": ["playwright"],
        # MCAP recordings where rosbag2 is missing: record, replay, train on them (30 MB).
        "record": ["mcap", "mcap-ros2-support"],
        # The bridge to a Habitat server.
        "habitat": ["pyzmq"],
        # The tower for other engines, and ONNX Runtime to run it on a CPU (110 MB).
        "export": ["onnx", "onnxruntime"],
        # Engines for GeForce and RTX cards, built without a GPU (240 MB).
        "tensorrt-rtx": ["tensorrt-rtx-cu13; platform_machine == 'x86_64'"],
        # The documentation site, `make docs` (145 MB); its packages need Python 3.11.
        "docs": ["mkdocs", "mkdocs-material", "mkdocstrings[python]"],
        # transformers is the oracle that the network's tests compare with.
        "test": ["hypothesis", "mypy", "pytest", "ruff", "transformers", "types-PyYAML"],
    },
    entry_points={
        "console_scripts": [
            f"nvila = {PACKAGE}.cli:main",
            f"dashboard_node = {PACKAGE}.nodes.dashboard_node:main",
            f"navigator_node = {PACKAGE}.nodes.navigator_node:main",
            f"recorder_node = {PACKAGE}.nodes.recorder_node:main",
            f"simulator_node = {PACKAGE}.nodes.simulator_node:main",
            f"habitat_node = {PACKAGE}.nodes.habitat_node:main",
        ],
    },
    zip_safe=False,
)
