# SPDX-License-Identifier: Apache-2.0
"""Makes nvila_ros/sim/assets/furniture.npz from the CC0 models of Debian's sweethome3d-furniture.

    apt-get download sweethome3d-furniture && dpkg -x sweethome3d-furniture_*.deb unpacked
    pip install fast-simplification
    python tools/build_furniture_assets.py unpacked/usr/share/sweethome3d/furniture

Every model is turned so that its front faces +x, scaled to a unit box, decimated, and cut into
a 'main' part, which takes the colour of the piece, and the rest, which keeps muted own colours.
What is 'main' is decided by looking: the largest visible materials until they fill two thirds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import zipfile
from collections import defaultdict
from pathlib import Path

import fast_simplification
import numpy as np

os.environ.setdefault("MUJOCO_GL", "egl")
import mujoco

CATALOGUE = "BlendSwap-CC-0.sh3f"
NUM_TRIANGLES = 1600  # per model: more is not seen at 224 px
MAIN_SHARE = 0.66
OUTPUT = Path(__file__).parents[1] / "nvila_ros/sim/assets"

# model folder -> (category, height as a share of the category's height). Left out after looking:
# models that decimation breaks, that pass for another category or that show too little colour.
MODELS: dict[str, tuple[str, float]] = {
    "couch": ("sofa", 1.0),
    "winchesterSofa": ("sofa", 1.0),
    "sofa2": ("sofa", 1.0),
    "armchair2": ("armchair", 1.0),
    "winchesterArmchair": ("armchair", 1.0),
    "bed2": ("bed", 1.0),
    "bed3": ("bed", 1.0),
    "bedWithTexture": ("bed", 0.8),
    "bedsideTable2": ("nightstand", 0.62),
    "wardrobeWithSlidingDoors": ("wardrobe", 1.0),
    "chair": ("chair", 1.0),
    "chair2": ("chair", 1.0),
    "plasticChair": ("chair", 1.0),
    "sillaBlanca": ("chair", 1.0),
    "osakaChair": ("chair", 1.0),
    "antiqueChair": ("chair", 1.0),
    "largeFridge": ("fridge", 1.0),
    "refrigerator": ("fridge", 1.0),
    "doubleOven": ("stove", 1.0),
    "oven": ("stove", 1.0),
    "table": ("dining table", 1.0),
    "oakTable": ("dining table", 1.0),
    "toiletsUnit": ("toilet", 1.0),
    "washbasin": ("sink", 0.6),
    "dustbin": ("trash bin", 1.0),
    "stool2": ("stool", 1.0),
    "silla2": ("stool", 1.0),
    "crate": ("box", 1.0),
}


def read_catalogue(archive: zipfile.ZipFile) -> dict[str, dict[str, str]]:
    """Model folder -> properties."""
    entries: dict[str, dict[str, str]] = defaultdict(dict)
    text = archive.read("PluginFurnitureCatalog.properties").decode("latin1")
    for key, index, value in re.findall(r"^(\w+)#(\d+)=(.*)$", text, re.MULTILINE):
        entries[index][key] = value.strip()
    return {entry["model"].split("/")[-2]: entry for entry in entries.values() if "model" in entry}


def read_object(archive: zipfile.ZipFile, path: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Wavefront file -> (V, 3) vertices, material name -> (F, 3) faces."""
    vertices, faces, material = [], defaultdict(list), ""
    for line in archive.read(path).decode("latin1").splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] == "v":
            vertices.append([float(word) for word in words[1:4]])
        elif words[0] == "usemtl":
            material = words[1] if len(words) > 1 else ""
        elif words[0] == "f":
            corner = [int(word.split("/")[0]) for word in words[1:]]
            corner = [index - 1 if index > 0 else len(vertices) + index for index in corner]
            faces[material] += [(corner[0], b, c) for b, c in itertools.pairwise(corner[1:])]
    return np.array(vertices), {name: np.array(rows) for name, rows in faces.items()}


def read_colours(archive: zipfile.ZipFile, folder: str) -> dict[str, np.ndarray]:
    """Material name -> diffuse RGB, from every material file beside the model."""
    colours, material = {}, ""
    for name in archive.namelist():
        if name.startswith(folder + "/") and name.lower().endswith(".mtl"):
            for line in archive.read(name).decode("latin1").splitlines():
                words = line.split()
                if words[:1] == ["newmtl"]:
                    material = words[1] if len(words) > 1 else ""
                elif words[:1] == ["Kd"]:
                    colours[material] = np.array([float(word) for word in words[1:4]])
    return colours


def simplify(vertices: np.ndarray, faces: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Weld, decimate to a number of triangles, drop what nothing uses."""
    welded, inverse = np.unique(
        vertices[faces].reshape(-1, 3).round(4), axis=0, return_inverse=True
    )
    faces = inverse.reshape(-1, 3)
    faces = faces[
        (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 0] != faces[:, 2])
    ]
    if len(faces) > budget:
        welded, faces = fast_simplification.simplify(
            welded.astype("f4"), faces.astype("i4"), target_count=budget, agg=7
        )
    if len(faces) == 0:
        return np.empty((0, 3)), np.empty((0, 3), int)
    used, inverse = np.unique(faces, return_inverse=True)
    return np.asarray(welded)[used], inverse.reshape(-1, 3)


def visible_pixels(parts: list[tuple[np.ndarray, np.ndarray]], size_m: np.ndarray) -> np.ndarray:
    """Pixels of each part, seen from half around the front at the height of the robot's camera."""
    spec = mujoco.MjSpec()
    spec.visual.global_.offwidth = spec.visual.global_.offheight = 200
    for index, (vertices, faces) in enumerate(parts):
        spec.add_mesh(
            name=str(index),
            uservert=(vertices * size_m).ravel(),
            userface=faces.ravel(),
            inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,
        )
        spec.worldbody.add_geom(
            type=mujoco.mjtGeom.mjGEOM_MESH, meshname=str(index), contype=0, conaffinity=0
        )
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera = mujoco.MjvCamera()
    camera.distance, camera.elevation = 2.5, -12
    camera.lookat[:] = 0, 0, size_m[2] / 2
    counts = np.zeros(len(parts))
    with mujoco.Renderer(model, 200, 200) as renderer:
        renderer.enable_segmentation_rendering()
        for azimuth in (-240, -210, -180, -180, -150, -120):
            camera.azimuth = azimuth
            renderer.update_scene(data, camera)
            drawn = renderer.render()[..., 0]
            counts += np.bincount(drawn[drawn >= 0], minlength=len(parts))
    return counts


def convert(archive: zipfile.ZipFile, entry: dict[str, str], category: str) -> list[dict]:
    """Parts of one model: {'main', 'rgb', 'vertices' (unit box), 'faces'}."""
    path = entry["model"].lstrip("/")
    vertices, faces_of = read_object(archive, path)
    colours = read_colours(archive, str(Path(path).parent))
    if "modelRotation" in entry:
        rotation = np.array([float(word) for word in entry["modelRotation"].split()]).reshape(3, 3)
        vertices = vertices @ rotation.T
    used = np.unique(np.concatenate([faces.ravel() for faces in faces_of.values()]))
    low, high = vertices[used].min(0), vertices[used].max(0)
    unit = (vertices - (low + high) / 2) / np.maximum(high - low, 1e-9)
    unit = np.stack([unit[:, 2], unit[:, 0], unit[:, 1] + 0.5], 1)  # their y is up and z the front
    total = sum(len(faces) for faces in faces_of.values())
    made = []
    for material, faces in faces_of.items():
        budget = max(40, int(NUM_TRIANGLES * len(faces) / total))
        part_vertices, part_faces = simplify(unit, faces, budget)
        if len(part_faces) > 8:
            made.append((colours.get(material, np.full(3, 0.6)), part_vertices, part_faces))
    size_m = np.array([float(entry[name]) / 100 for name in ("depth", "width", "height")])
    pixels = visible_pixels([part[1:] for part in made], size_m)
    return merge(made, pixels, category)


def merge(made: list[tuple], pixels: np.ndarray, category: str) -> list[dict]:
    """One main part and at most two others, by lightness, in muted colours."""
    order = np.argsort(-pixels)
    main, share = [], 0.0
    for index in order:
        green = made[index][0][1] > 1.15 * max(made[index][0][0], made[index][0][2])
        if share < MAIN_SHARE and not (category == "plant" and green):
            main.append(int(index))
            share += pixels[index] / pixels.sum()
    groups: dict[str, list[int]] = {"main": main, "dark": [], "light": []}
    for index in range(len(made)):
        if index not in main and pixels[index] > 0:
            groups["dark" if made[index][0].mean() < 0.45 else "light"].append(index)
    parts = []
    for name, members in groups.items():
        if not members:
            continue
        offsets = np.cumsum([0] + [len(made[index][1]) for index in members])
        weights = pixels[members] + 1e-6
        rgb = np.average([made[index][0] for index in members], axis=0, weights=weights)
        muted = rgb if category == "plant" else 0.3 * rgb + 0.7 * rgb.mean()
        parts.append(
            {
                "main": name == "main",
                "rgb": muted,
                "share": pixels[members].sum() / pixels.sum(),
                "vertices": np.concatenate([made[index][1] for index in members]),
                "faces": np.concatenate(
                    [
                        made[index][2] + offset
                        for index, offset in zip(members, offsets, strict=False)
                    ]
                ),
            }
        )
    return parts


def main() -> None:
    """Convert every model, write the asset file and its attribution."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("furniture", type=Path, help="unpacked usr/share/sweethome3d/furniture")
    archive = zipfile.ZipFile(parser.parse_args().furniture / CATALOGUE)
    catalogue, arrays, credits = read_catalogue(archive), {}, []
    for name, (category, height_share) in MODELS.items():
        parts = convert(archive, catalogue[name], category)
        size = [float(catalogue[name][key]) for key in ("depth", "width", "height")]
        for index, part in enumerate(parts):
            key = f"{name}/{index}"
            arrays[f"{key}/vertices"] = np.round(part["vertices"] * 4095).astype(np.int16)
            arrays[f"{key}/faces"] = part["faces"].astype(np.uint16)
            arrays[f"{key}/rgb"] = np.append(part["rgb"], float(part["main"])).astype(np.float32)
        arrays[f"{name}/info"] = np.array([category, f"{height_share}", f"{len(parts)}"])
        credits.append(
            f"| {name} | {category} | {catalogue[name]['name']} | {catalogue[name]['creator']} |"
        )
        shares = " ".join(f"{part['share']:.2f}{'*' if part['main'] else ''}" for part in parts)
        print(
            f"{name:26s} {category:14s} {sum(len(part['faces']) for part in parts):5d} triangles, "
            f"seen: {shares}, size cm {size}"
        )
    OUTPUT.mkdir(exist_ok=True)
    np.savez_compressed(OUTPUT / "furniture.npz", **arrays)
    header = (
        "# Furniture meshes\n\n"
        "`furniture.npz` is made by `tools/build_furniture_assets.py` from the catalogue "
        "`BlendSwap-CC-0` of the Debian\npackage `sweethome3d-furniture` 1.8 (Sweet Home 3D, "
        "models contributed through Blend Swap). The models are dedicated\nto the public domain "
        "under CC0 1.0 (<https://creativecommons.org/publicdomain/zero/1.0/>). They were "
        "decimated,\nscaled to a unit box, and their textures left out. With thanks to the "
        "authors:\n\n| model | used as | name in the catalogue | author |\n|---|---|---|---|\n"
    )
    (OUTPUT / "ATTRIBUTION.md").write_text(header + "\n".join(credits) + "\n")
    print(f"{(OUTPUT / 'furniture.npz').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
