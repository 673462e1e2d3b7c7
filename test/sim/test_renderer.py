# SPDX-License-Identifier: Apache-2.0
"""The camera: what is drawn, in which order, and that its colours keep their names."""

import math

import numpy as np
import pytest

from nvila_ros.errors import SceneError
from nvila_ros.sim.appearance import Appearance
from nvila_ros.sim.assets import furniture_meshes
from nvila_ros.sim.layout import generate_scene
from nvila_ros.sim.renderer import Renderer
from nvila_ros.sim.scene import CATEGORIES, COLOURS, Door, Furniture, Room, Scene
from nvila_ros.sim.world import World

SIZE = 64


def free_poses(world, count, seed=0):
    rng = np.random.default_rng(seed)
    poses = []
    while len(poses) < count:
        pose = rng.uniform(0, 1, 3) * [world.scene.width_m, world.scene.height_m, 2 * math.pi]
        if not world.collides(pose):
            poses.append(pose)
    return np.array(poses)


@pytest.fixture(scope="module")
def world():
    return World(generate_scene(3))


@pytest.fixture(scope="module")
def renderer(world):
    with Renderer(world, SIZE, SIZE, batch=6) as made:
        yield made


def test_a_batch_equals_single_views(world, renderer):
    poses = free_poses(world, 8)  # more than one bufferful
    batch = renderer.render_batch(poses)
    assert batch.shape == (8, SIZE, SIZE, 3) and batch.dtype == np.uint8
    for pose, view in zip(poses, batch, strict=True):
        difference = abs(renderer.render(pose).astype(int) - view)
        assert (difference > 8).mean() < 0.01  # rounding at edges of other tiles


def test_a_picture_is_a_copy(world, renderer):
    first, second = free_poses(world, 2)
    picture = renderer.render(first)
    before = picture.copy()
    renderer.render(second)
    assert (picture == before).all()


def test_no_poses_give_no_pictures(renderer):
    assert renderer.render_batch(np.empty((0, 3))).shape == (0, SIZE, SIZE, 3)
    assert renderer.segment_batch(np.empty((0, 3))).shape == (0, SIZE, SIZE)


def test_leaving_out_what_is_behind_does_not_change_the_picture(world, monkeypatch):
    look = Appearance(pitch_rad=math.radians(3), hfov_rad=math.radians(95))
    tilted = World(world.scene, look)
    poses = free_poses(tilted, 12, seed=5)
    with Renderer(tilted, 96, 64, batch=12) as renderer:
        culled, labels = renderer.render_batch(poses), renderer.segment_batch(poses)
        monkeypatch.setattr(renderer, "_in_view", lambda pose: renderer._drawn)
        assert (renderer.render_batch(poses) == culled).all()
        assert (renderer.segment_batch(poses) == labels).all()


def facing(category="wardrobe", colour="red", distance_m=2.5, mesh=None):
    """A world with one piece straight ahead of the pose (2, 2, 0)."""
    room = Room(0, "office", 0, 0, 8, 4, "white", (0.9, 0.9, 0.88), "plaster", "tile")
    size = CATEGORIES[category]
    dimensions = (size.depth_m, size.width_m, size.height_m)
    piece = Furniture(
        0, category, colour, 2 + distance_m, 2.0, math.pi, *dimensions, 0, size.solid, mesh
    )
    return World(Scene(0, 8.0, 4.0, (room,), (), (piece,)))


def test_segmentation_names_what_is_ahead():
    world = facing()
    with Renderer(world, SIZE, SIZE) as renderer:
        labels = renderer.segment_batch(np.array([[2.0, 2.0, 0.0]]))[0]
    assert labels.dtype == np.int16
    names = [world.landmarks[index] for index in labels[:, SIZE // 2]]
    assert names[SIZE // 2 + 2] == "furniture:0"
    assert names[0] == "ceiling" and names[-1] == "floor"


def test_visible_gives_shares_and_respects_the_minimum():
    world = facing()
    with Renderer(world, SIZE, SIZE) as renderer:
        ahead, behind = renderer.visible(np.array([[2.0, 2.0, 0.0], [2.0, 2.0, math.pi]]))
        assert sum(ahead.values()) == pytest.approx(1.0)
        assert ahead["furniture:0"] > 0.05
        assert "furniture:0" not in behind
        assert "furniture:0" not in renderer.visible(np.array([[2.0, 2.0, 0.0]]), 0.9)[0]


def test_left_is_left_and_up_is_up():
    world = facing()
    with Renderer(world, SIZE, SIZE) as renderer:
        labels = renderer.segment_batch(np.array([[2.0, 2.0, -0.5]]))[0]  # turned right
    columns = np.flatnonzero((labels == world.landmarks.index("furniture:0")).any(0))
    assert columns.max() < SIZE // 2


def test_the_field_of_view_is_horizontal():
    half_width = {}
    for width in (64, 128):
        world = facing()
        with Renderer(world, width, 64) as renderer:
            labels = renderer.segment_batch(np.array([[2.0, 2.0, 0.0]]))[0]
        seen = (labels == world.landmarks.index("furniture:0")).any(0)
        half_width[width] = seen.mean()
    assert half_width[64] == pytest.approx(half_width[128], abs=0.03)
    assert half_width[64] == pytest.approx(0.6 / (2.5 - 0.29 - 0.05), abs=0.04)  # 90 degrees


def test_a_higher_camera_is_nearer_to_the_ceiling():
    scene = facing().scene
    shares = []
    for height_m in (1.08, 1.28):
        world = World(scene, Appearance(camera_height_m=height_m))
        with Renderer(world, SIZE, SIZE) as renderer:
            top = renderer.segment_batch(np.array([[2.0, 2.0, 0.0]]))[0]
        shares.append((top == world.landmarks.index("ceiling")).mean())
    assert shares[1] > shares[0]


def named(rgb):
    """The colour word nearest to a pixel, whatever the brightness of the light."""
    table = np.array(list(COLOURS.values()))
    gains = np.linspace(0.55, 1.15, 13)[:, None, None]
    distance = np.linalg.norm(np.asarray(rgb) / 255 - gains * table, axis=-1).min(0)
    return list(COLOURS)[int(np.argmin(distance))]


def test_a_closed_renderer_says_so(world):
    renderer = Renderer(world, SIZE, SIZE)
    renderer.close()
    renderer.close()
    with pytest.raises(SceneError, match="closed"):
        renderer.render((1.0, 1.0, 0.0))


def test_a_batch_too_large_for_the_buffer_is_refused(world):
    with pytest.raises(SceneError, match="lower batch"):
        Renderer(world, 4096, 4096, batch=100)


@pytest.mark.parametrize("colour", [name for name in COLOURS if name not in ("white", "gray")])
def test_doors_keep_their_colour_from_both_rooms_in_any_light(colour):
    rooms = tuple(
        Room(index, kind, 4.0 * index, 0, 4.0 * index + 4, 4, 'white', (0.93, 0.92, 0.89),
             'plaster', 'tile')
        for index, kind in enumerate(('office', 'bedroom'))
    )  # fmt: skip
    door = Door(0, 4.0, 2.0, "y", (0, 1), colour, "leaf", 1, 1)
    scene = Scene(0, 8.0, 4.0, rooms, (door,), ())
    poses = np.array([[1.5, 2.0, 0.0], [6.5, 2.0, math.pi]])
    for seed in range(4):
        world = World(scene, Appearance.random(np.random.default_rng(seed)))
        with Renderer(world, SIZE, SIZE, batch=2) as renderer:
            labels, pictures = renderer.segment_batch(poses), renderer.render_batch(poses)
        for label, picture in zip(labels, pictures, strict=True):
            pixels = picture[label == world.landmarks.index("door:0")]
            assert len(pixels) > 0.02 * SIZE * SIZE
            assert named(np.median(pixels, axis=0)) == colour


def test_furniture_shows_its_colour_word():
    """Every category and every mesh, straight ahead: its word is the commonest colour."""
    cases = [(name, None) for name in CATEGORIES if name != "rug"]
    cases += [(mesh.category, mesh.name) for mesh in furniture_meshes().values()]
    wrong = []
    for index, (category, mesh) in enumerate(cases):
        colour = ("red", "blue", "yellow", "purple", "cyan", "orange")[index % 6]
        world = facing(category, colour, 1.8, mesh)
        with Renderer(world, SIZE, SIZE) as renderer:
            pose = np.array([[2.0, 2.0, 0.0]])
            label, picture = renderer.segment_batch(pose)[0], renderer.render(pose[0])
        pixels = picture[label == world.landmarks.index("furniture:0")]
        words = [named(pixel) for pixel in pixels]
        if max(set(words), key=words.count) != colour:
            wrong.append((category, mesh, colour, max(set(words), key=words.count)))
    assert not wrong
