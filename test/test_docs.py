# SPDX-License-Identifier: Apache-2.0
"""The documentation names only what there is: files, headings, pages, commands, parameters."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import typer
import yaml

from nvila_ros.cli import app
from nvila_ros.evaluation.typed_goal import with_instruction
from nvila_ros.navigator_config import NavigatorConfig
from nvila_ros.nodes.demo import DEFAULT_SEED
from nvila_ros.sim.episodes import episode_from_seed

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), ROOT / "models/nano/README.md"])
GENERATED = {"benchmarks/figures.md"}
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
COMMAND = typer.main.get_command(app)
SEED = re.compile(r"(?:SEED=|--seed |seed:=)(\d+)")
SENTENCE = re.compile(r"(?:INSTRUCTION=|--instruction )\"([^\"]+)\"|data: '([^']+)'")
GAZEBO_SEED = 900_000  # the apartment that tools/make_gazebo_world.py writes


def name_of(path):
    return str(path.relative_to(ROOT))


def anchors_of(path):
    """Headings as the ids that GitHub and mkdocs give them."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.strip().replace(" ", "-") for title in plain}


def code_of(text):
    """Everything that stands as code: fenced, indented or between backticks."""
    text = text.replace("\\\n", " ")
    blocks = [block.split("\n", 1)[1] for block in FENCE.findall(text)]
    rest = FENCE.sub("", text)
    indented = re.findall(r"^(?:    |\t)(.+)$", rest, re.MULTILINE)
    inline = re.findall(r"`([^`\n]+)`", rest)
    return [line for block in blocks for line in block.splitlines()] + indented + inline


def nav_pages(entry):
    """Every file that mkdocs.yml's `nav` names."""
    if isinstance(entry, str):
        return {entry}
    values = entry.values() if isinstance(entry, dict) else entry
    return set().union(*(nav_pages(value) for value in values))


def parameters(settings, prefix=""):
    """The navigator's parameters as ROS names them."""
    names = set()
    for key, value in vars(settings).items():
        nested = hasattr(value, "__dataclass_fields__")
        names |= parameters(value, f"{prefix}{key}.") if nested else {prefix + key}
    return names


def launch_arguments(name):
    text = (ROOT / "launch" / name).read_text(encoding="utf-8")
    names = set(re.findall(r'^\s*\("(\w+)",', text, re.MULTILINE))
    names |= set(re.findall(r'DeclareLaunchArgument\(\s*"(\w+)"', text))
    return names


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(path):
    for link in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if DOCS in file.parents and str(file.relative_to(DOCS)) in GENERATED:
            continue
        assert file.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors_of(file), f"{link}: no such heading"
        if DOCS in path.parents:
            assert DOCS in file.parents, f"{link}: leaves docs/, which the site cannot show"


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert nav_pages(settings["nav"]) == pages | GENERATED


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_and_their_options_exist(path):
    for line in code_of(path.read_text(encoding="utf-8")):
        for call in re.findall(r"(?:^|[\s/(])nvila ([a-z][^|;&#]*)", line):
            command, words = COMMAND, call.split()
            while hasattr(command, "commands") and words and re.match(r"[a-z]", words[0]):
                word = words.pop(0).rstrip(",.:)")
                assert word in command.commands, f"nvila {call}: no such command"
                command = command.commands[word]
            known = {option for parameter in command.params for option in parameter.opts}
            for option in re.findall(r"(?<!\S)(--[a-z][a-z-]+)", " ".join(words)):
                more = {"--help", *(o for p in command.params for o in p.secondary_opts)}
                assert option in known | more, f"nvila {call}: no option {option}"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_launch_files_and_their_arguments_exist(path):
    shared = launch_arguments("navigate.launch.py")
    for line in code_of(path.read_text(encoding="utf-8")):
        for file, rest in re.findall(r"(\w+\.launch\.py)(.*)", line):
            assert (ROOT / "launch" / file).is_file(), f"{line}: no such launch file"
            known = launch_arguments(file) | shared
            for argument in re.findall(r"(\w+):=", rest):
                assert argument in known, f"{line}: no argument {argument}"


def code_blocks(text):
    """Each stretch of code with the lines that stand together in it; inline code is one line."""
    text = text.replace("\\\n", " ")
    blocks = [block.split("\n", 1)[1] for block in FENCE.findall(text)]
    rest = FENCE.sub("", text)
    indented = re.findall(r"(?:^(?:    |\t).+\n?)+", rest, re.MULTILINE)
    return blocks + indented + re.findall(r"`([^`\n]+)`", rest)


def sentences_with_seeds(text):
    """Sentences that a page has a simulated robot follow, each with its apartment's seed."""
    for block in code_blocks(text):
        seed = GAZEBO_SEED if "gazebo.launch.py" in block else None
        for line in block.splitlines():
            named = SEED.search(line)
            seed = int(named.group(1)) if named else seed
            sentence = SENTENCE.search(line)
            if sentence is None or "nvila record" in line:
                continue
            if re.search(r"make demo|nvila demo", line):
                yield sentence.group(1), int(named.group(1)) if named else DEFAULT_SEED
            elif seed is not None:
                yield sentence.group(2), seed


def test_sentences_and_their_apartments_are_found():
    page = 'Or `make demo INSTRUCTION="Stop."`.\n\n'
    page += "    ros2 launch x seed:=7\n    pub \"{data: 'Go.'}\"\n"
    assert set(sentences_with_seeds(page)) == {("Stop.", DEFAULT_SEED), ("Go.", 7)}
    assert not list(sentences_with_seeds("```bash\npub \"{data: 'Go.'}\"\n```"))  # a real robot


def test_every_sentence_for_the_simulator_names_something_in_its_apartment():
    found = {each for path in PAGES for each in sentences_with_seeds(path.read_text("utf-8"))}
    assert len(found) >= 2
    for sentence, seed in found:
        named = with_instruction(episode_from_seed(seed), sentence)[1]
        assert named, f"{sentence!r}: apartment {seed} has no such thing, or several"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_real_robots_launch_names_its_model_and_does_not_drive_by_itself(path):
    for block in code_blocks(path.read_text(encoding="utf-8")):
        for line in block.splitlines():
            if re.search(r"ros2 launch nvila_ros navigate\.launch\.py(?!.*--show-args)", line):
                assert "model_path:=" in line, f"{line}: would load the shipped model"
                assert "execute:=false" in line, f"{line}: would drive at once"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_are_found_where_pages_say(path):
    """`make` alone prints help; tools of .venv are not on the PATH; nothing is on an index yet."""
    for line in code_of(path.read_text(encoding="utf-8")):
        assert line.strip() != "make", "`make` alone only prints help: say `make setup`"
        assert not re.match(r"\s*(pytest|mkdocs|ruff|hf)\s", line), f"{line}: .venv/bin/..."
        assert "nvila_ros[" not in line, f"{line}: there is no release: -e '.[extra]'"
        for target in re.findall(r"(?:^|\s)make ([a-z][a-z-]*)", line):
            assert target in make_targets(), f"{line}: make has no target {target}"


def make_targets():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))


def test_make_lists_its_targets_and_none_is_taken_for_a_file():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE).group(1)
    assert set(phony.split()) == make_targets()
    told = " ".join(re.findall(r'^\t@echo "make ([a-z| -]+)', text, re.MULTILINE))
    assert set(re.split(r"[ |]+", told.strip())) >= make_targets() - {"help", "demo-setup"}


@pytest.mark.parametrize("name", ["troubleshooting.md", "robot.md"])
def test_parameters_exist(name):
    known = parameters(NavigatorConfig())
    arguments = launch_arguments("navigate.launch.py")
    text = FENCE.sub("", (DOCS / name).read_text(encoding="utf-8"))
    found = 0
    for word in re.findall(r"`([a-z_.]+)(?:: [^`]*)?`", text):
        grouped = word.split(".")[0] in ("thinking", "motion", "safety", "history")
        if grouped or (word.islower() and re.fullmatch(r"[a-z]+(_[a-z]+)+", word)):
            known_word = word in known | arguments or word in ("image_proc", "camera_info")
            assert known_word or word in ("collision_monitor", "nvila_ros", "ros_gz"), word
            found += word in known
    assert found >= 3


def docs_hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "tools" / "docs_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_are_the_files_figures(tmp_path):
    content = {"row": {"p50_ms": 12.3456789, "all": [1.0, 2.5], "gpu_state": {"x": 1}}}
    rows = [{"figure": "a | b", "measured": 5, "target": 4, "met": False}]
    (tmp_path / "one.json").write_text(json.dumps({**content, "summary": rows}))
    page = docs_hooks().figures_page(tmp_path)
    assert "| `row.p50_ms` | 12.35 |" in page and "| `row.all` | 1, 2.5 |" in page
    assert "gpu_state" not in page
    assert "| a \\| b | 5 | 4 | **no** | - |" in page


def test_every_benchmark_file_is_on_the_page_of_figures():
    page = docs_hooks().figures_page(DOCS / "benchmarks")
    for path in (DOCS / "benchmarks").glob("*.json"):
        assert f"## {path.name}" in page
