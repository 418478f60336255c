"""Draws dermoscopy: skin, lesion structures and artefacts, as functions of a pixel's coordinates on the skin.

Coordinates are in units of the lesion's mean radius, with the origin at its centre, so that all photographs of a lesion
show the same structures. Images are (S, S, 3) float32 RGB in 0..1; a Field is (S, S) float32, one value per pixel.
Pigment darkens an image by absorption (Beer-Lambert law).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, map_coordinates

Field = NDArray[np.float32]
Structure = Literal[
    "shape", "tone", "patches", "net", "globules", "veil", "white", "vessels", "cysts", "scale", "lacunae", "skin"
]
StructureRng = Callable[[Structure], np.random.Generator]
"""Returns a separate generator per structure, so that changing one structure does not move the others."""

# Absorption per unit of density (first four and INK_ABSORPTION) and colours, as RGB. Chosen by eye to look like
# dermoscopy; melanin absorbs blue most, haemoglobin green most.
MELANIN = np.array([0.60, 1.00, 1.34], np.float32)
HAEMOGLOBIN = np.array([0.13, 0.80, 0.62], np.float32)
VESSEL = np.array([0.28, 1.00, 0.80], np.float32)
OLD_BLOOD = np.array([0.90, 1.00, 0.60], np.float32)
PALE_SKIN = np.array([0.93, 0.76, 0.68], np.float32)
BLUE_GREY = np.array([0.37, 0.41, 0.49], np.float32)
SCAR = np.array([0.91, 0.80, 0.76], np.float32)
KERATIN = np.array([0.92, 0.86, 0.70], np.float32)
INK_ABSORPTION = np.array([0.23, 0.12, 0.42], np.float32)


@dataclass(frozen=True)
class View:
    """The position of a photograph on the skin.

    u, v: (S, S) coordinates of each pixel. centre: of the lesion, (x, y) in pixels. turn: rotation in radians.
    """

    u: Field
    v: Field
    centre: tuple[float, float]
    turn: float
    pixels_per_unit: float

    @property
    def size(self) -> int:
        """Side S of the photograph, in pixels."""
        return len(self.u)

    def pixels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return pixel positions (N, 2), as x and y, of points (N, 2) on the skin."""
        cosine, sine = np.cos(self.turn), np.sin(self.turn)
        rotated_points = points @ np.array([[cosine, sine], [-sine, cosine]])
        return np.asarray(rotated_points * self.pixels_per_unit + np.asarray(self.centre), np.float64)


def make_view(size: int, *, turn: float, radius: float, shift: tuple[float, float]) -> View:
    """Return a view of a lesion. radius, shift: as fractions of the image width. turn: rotation in radians."""
    scale = radius * size
    centre = (size * (0.5 + shift[0]), size * (0.5 + shift[1]))
    grid = np.arange(size, dtype=np.float32) + np.float32(0.5)
    x, y = (grid - centre[0])[None, :] / scale, (grid - centre[1])[:, None] / scale
    cosine, sine = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u, v = cosine * x + sine * y, cosine * y - sine * x
    return View(u.astype(np.float32), v.astype(np.float32), centre, turn, scale)


# Noise


def cloud_noise(rng: np.random.Generator, u: Field, v: Field, frequency: float, octaves: int = 2) -> Field:
    """Return smooth noise with mean 0 and standard deviation near 1. frequency: cells per unit of length."""
    total = np.zeros(u.shape, np.float32)
    for octave in range(octaves):
        grid = rng.standard_normal((48, 48)).astype(np.float32)
        offset, step = rng.uniform(0, 48, 2), frequency * 2**octave
        coordinates = np.stack([v * step + offset[0], u * step + offset[1]])
        total += map_coordinates(grid, coordinates, order=2, mode="grid-wrap", prefilter=False) * 0.5**octave
    return np.asarray(total * 2.0, np.float32)  # quadratic B-splines halve the standard deviation of white noise


def cell_noise(
    rng: np.random.Generator, u: Field, v: Field, frequency: float, jitter: float
) -> tuple[Field, Field, Field]:
    """Return the distances to the nearest and second nearest cell centre (in cells), and a value 0..1 of the nearest.

    frequency: cells per unit of length. jitter: 0 = a regular lattice of offset rows, 1 = random centres.
    """
    table_side = 64
    shift = (0.5 + jitter * (rng.random((table_side, table_side, 2)) - 0.5)).astype(np.float32)
    shift[1::2, :, 0] += np.float32(0.5 * (1 - jitter))  # rows offset, so that cells look like a honeycomb
    cell_values = rng.random((table_side, table_side)).astype(np.float32)
    x, y = u * np.float32(frequency), v * np.float32(frequency * 1.1)
    column, row = np.floor(x), np.floor(y)
    across, along = x - column, y - row
    home_cell = (row.astype(np.int32) % table_side) * table_side + column.astype(np.int32) % table_side
    nearest_distance = np.full(x.shape, np.inf, np.float32)  # squared, until the end
    second_distance, nearest_cell = nearest_distance.copy(), home_cell
    for dy in (-1, 0, 1):
        for dx in (-2, -1, 0, 1):
            cell_index = _neighbour(home_cell, dy, dx, table_side)
            offset = shift.reshape(-1, 2)[cell_index]
            distance = (offset[..., 0] + dx - across) ** 2 + (offset[..., 1] + dy - along) ** 2
            np.minimum(second_distance, np.maximum(nearest_distance, distance), out=second_distance)
            nearest_cell = np.where(distance < nearest_distance, cell_index, nearest_cell)
            np.minimum(nearest_distance, distance, out=nearest_distance)
    return np.sqrt(nearest_distance), np.sqrt(second_distance), cell_values.reshape(-1)[nearest_cell]


def _neighbour(cell_index: NDArray[np.int32], dy: int, dx: int, table_side: int) -> NDArray[np.int32]:
    """Return the index of a neighbour in a flattened square table that wraps around; its side is a power of 2."""
    row = (cell_index + dy * table_side) & (table_side * table_side - 1)
    return (row & ~(table_side - 1)) | ((row + dx) & (table_side - 1))


def soft_step(values: Field, width: float | Field) -> Field:
    """Return the logistic function of values / width: a soft step from 0 to 1 at 0."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values / width, -30, 30))), np.float32)


def blend(image: Field, colour: NDArray[np.float32], mask: Field) -> Field:
    """Blend a colour (3,) into an image with the opacity `mask`, (S, S) in 0..1."""
    opacity = np.clip(mask, 0, 1)[..., None]
    return image * (1 - opacity) + colour * opacity


def absorb(image: Field, density: Field, absorption: NDArray[np.float32]) -> Field:
    """Darken an image by a pigment. density: (S, S); absorption: (3,) per unit of density."""
    return image * np.exp(-np.maximum(density, 0)[..., None] * absorption)


# Skin and lesion


def draw_skin(structure_rng: StructureRng, view: View, tone: float) -> Field:
    """Return an image of skin. tone: 0 (pale) to 1 (dark brown)."""
    rng = structure_rng("skin")
    furrows_near, furrows_second, _ = cell_noise(rng, view.u, view.v, 7.0, 0.85)
    furrows = np.exp(-(((furrows_second - furrows_near) / 0.10) ** 2))
    mottle = cloud_noise(rng, view.u, view.v, 1.4)
    melanin = 0.05 + 0.85 * tone + 0.025 * mottle + 0.035 * (1 + tone) * furrows
    image = absorb(np.broadcast_to(PALE_SKIN, (*view.u.shape, 3)), melanin, MELANIN)
    return absorb(image, 0.10 + 0.05 * cloud_noise(rng, view.u, view.v, 2.0), HAEMOGLOBIN)


def lesion_border(
    structure_rng: StructureRng, view: View, *, asymmetry: float, irregularity: float, streaks: float
) -> tuple[Field, Field]:
    """Return the depth of each pixel inside the border (in radii, negative outside), with and without streaks."""
    rng = structure_rng("shape")
    angle = np.arctan2(view.v, view.u)
    reach = 1 + 0.10 * np.cos(2 * (angle - rng.uniform(0, np.pi)))
    for wave in (1, 2, 3):
        reach += 0.16 * asymmetry * rng.normal() / wave**0.5 * np.cos(wave * angle + rng.uniform(0, 6.3))
    for wave in range(4, 12):
        reach += 0.11 * irregularity * rng.normal() / wave**0.6 * np.cos(wave * angle + rng.uniform(0, 6.3))
    radius = np.hypot(view.u, view.v)
    raggedness = 0.09 * (0.3 + irregularity) * cloud_noise(rng, view.u, view.v, 3.2)
    border_depth = reach - radius + raggedness
    spikes = np.zeros_like(angle)
    for _ in range(round(26 * streaks)):
        bend = angle - rng.uniform(0, 6.3) + 0.15 * rng.normal() * (radius - 1)
        spikes += (
            rng.uniform(0.4, 1)
            * np.exp(-((np.sin(bend / 2) / rng.uniform(0.012, 0.03)) ** 2))
            * (np.cos(bend / 2) > 0)
        )
    return np.asarray(border_depth + 0.20 * streaks**0.5 * np.minimum(spikes, 1.2), np.float32), np.asarray(
        border_depth, np.float32
    )


def melanin_density(
    structure_rng: StructureRng,
    view: View,
    border_depth: Field,
    *,
    pigment: float,
    variegation: float,
    asymmetry: float,
) -> Field:
    """Return the density of melanin: uniform brown for low variegation, patches of tan to black for high."""
    rng = structure_rng("tone")
    islands = np.tanh(1.2 * cloud_noise(rng, view.u, view.v, 0.75, 3))
    fine = cloud_noise(rng, view.u, view.v, 6.0)
    direction = rng.uniform(0, 6.3)
    gradient = np.cos(direction) * view.u + np.sin(direction) * view.v
    level = 1 + 0.75 * variegation * islands + 0.10 * fine + 0.45 * asymmetry * gradient
    centre = 0.75 + 0.40 * soft_step(border_depth - 0.35, 0.15)
    return np.asarray(2.1 * pigment * np.clip(level, 0.12, 2.0) * centre, np.float32)


def network_density(
    structure_rng: StructureRng, view: View, border_depth: Field, *, strength: float, atypia: float
) -> Field:
    """Return the relative density of a pigment network, about -0.3 (holes) to 1 (lines)."""
    rng = structure_rng("net")
    bent_u = view.u + 0.03 * cloud_noise(rng, view.u, view.v, 2.0)
    bent_v = view.v + 0.03 * cloud_noise(rng, view.u, view.v, 2.0)
    nearest, second_nearest, _ = cell_noise(rng, bent_u, bent_v, 9.0 - 2.0 * atypia, 0.45 + 0.5 * atypia)
    width = 0.16 * (1 + 0.6 * atypia * cloud_noise(rng, view.u, view.v, 1.5))
    lines = np.exp(-(((second_nearest - nearest) / np.maximum(width, 0.06)) ** 2))
    patches = soft_step(cloud_noise(rng, view.u, view.v, 0.9) + 1.2 - 1.6 * atypia, 0.4)
    rim = soft_step(border_depth - 0.02, 0.05) * (0.45 + 0.55 * soft_step(0.55 - border_depth, 0.12))
    return np.asarray(strength * patches * rim * (1.25 * lines - 0.30), np.float32)


def add_network(pigment: Field, net: Field) -> Field:
    """Return a pigment density with a network: darker lines, paler holes."""
    return np.asarray(pigment * (1 + 0.8 * net) + 0.55 * np.maximum(net, 0), np.float32)


def globule_density(
    structure_rng: StructureRng, view: View, border_depth: Field, *, strength: float, atypia: float
) -> Field:
    """Return the density of globules; atypia makes their sizes and positions irregular."""
    rng = structure_rng("globules")
    nearest, _, cell_value = cell_noise(rng, view.u, view.v, 6.5, 0.5 + 0.5 * atypia)
    clusters = soft_step(cloud_noise(rng, view.u, view.v, 0.8) + 0.9 - 1.3 * atypia, 0.3)
    radius = 0.22 + 0.16 * (cell_value * 7 % 1 - 0.5) * (0.5 + atypia)
    dots = soft_step(radius - nearest, 0.045) * (cell_value < 0.25 + 0.6 * strength)
    return np.asarray(
        dots * clusters * soft_step(border_depth - 0.06, 0.04) * min(1.0, 1.6 * strength), np.float32
    )


def patch_mask(
    structure_rng: StructureRng, structure: Structure, view: View, coverage: float, frequency: float = 0.8
) -> Field:
    """Return a mask of irregular patches, 0..1, that covers about the fraction `coverage` of the plane."""
    rng = structure_rng(structure)
    direction = rng.uniform(0, 6.3)
    field = cloud_noise(rng, view.u, view.v, frequency, 3) + 0.8 * (
        np.cos(direction) * view.u + np.sin(direction) * view.v
    )
    return soft_step(field - 2.6 * (0.5 - coverage), 0.22)


def scale_mask(structure_rng: StructureRng, view: View, strength: float) -> Field:
    """Return a mask of scale, 0..1: patches broken into small flakes."""
    texture = cloud_noise(structure_rng("skin"), view.u, view.v, 8.0)
    return patch_mask(structure_rng, "scale", view, 0.10 + 0.35 * strength, 1.8) * soft_step(texture + 0.3, 0.5)


def lacunae_masks(structure_rng: StructureRng, view: View, border_depth: Field) -> tuple[Field, Field]:
    """Return masks of lacunae (blood-filled lakes), 0..1, and of the darker ones among them."""
    nearest, second_nearest, cell_value = cell_noise(structure_rng("lacunae"), view.u, view.v, 2.6, 0.9)
    lakes = soft_step(second_nearest - nearest - 0.20, 0.09) * soft_step(border_depth - 0.03, 0.04)
    return lakes, np.asarray(lakes * (cell_value > 0.6), np.float32)


def spot_masks(
    structure_rng: StructureRng,
    structure: Structure,
    view: View,
    border_depth: Field,
    *,
    fraction: float,
    frequency: float,
) -> tuple[Field, Field]:
    """Return masks of pale and of dark small round spots, 0..1; a third of the spots are dark."""
    nearest, _, cell_value = cell_noise(structure_rng(structure), view.u, view.v, frequency, 1.0)
    dots = soft_step(0.13 + 0.12 * (cell_value * 13 % 1) - nearest, 0.035) * soft_step(border_depth - 0.08, 0.04)
    return np.asarray(dots * (cell_value < fraction), np.float32), np.asarray(
        dots * (cell_value > 1 - fraction / 2), np.float32
    )


def vessel_mask(structure_rng: StructureRng, view: View, strength: float) -> Field:
    """Return a mask of branching vessels, 0..1."""
    rng = structure_rng("vessels")
    strokes: list[tuple[NDArray[np.float64], float]] = []
    for _ in range(1 + round(3 * strength)):
        start_angle = rng.uniform(0, 6.3)
        _grow_vessel(
            rng,
            np.array([np.cos(start_angle), np.sin(start_angle)]) * rng.uniform(0.6, 1.0),
            start_angle + np.pi,
            0.042,
            strokes,
        )
    return strokes_mask(view, strokes)


def _grow_vessel(
    rng: np.random.Generator,
    start_point: NDArray[np.float64],
    heading: float,
    width: float,
    strokes: list[tuple[NDArray[np.float64], float]],
) -> None:
    """Add a winding vessel and its thinner branches to `strokes`, as (points (N, 2), width)."""
    points = [start_point]
    turn = 0.0
    for _ in range(int(rng.integers(7, 15))):
        turn = 0.6 * turn + 0.28 * rng.normal()
        heading += turn
        points.append(points[-1] + 0.075 * np.array([np.cos(heading), np.sin(heading)]))
        if width > 0.016 and rng.random() < 0.17:
            _grow_vessel(
                rng, points[-1], heading + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1), width * 0.6, strokes
            )
    strokes.append((np.array(points), width))


def strokes_mask(view: View, strokes: Sequence[tuple[NDArray[np.float64], float]]) -> Field:
    """Return a mask 0..1 of antialiased lines. strokes: (points (N, 2) on the skin, width in radii)."""
    fine = 3
    canvas = Image.new("L", (view.size * fine, view.size * fine))
    pen = ImageDraw.Draw(canvas)
    for points, width in strokes:
        thick = max(1, round(width * view.pixels_per_unit * fine))
        path = [tuple(point) for point in (view.pixels(points) * fine).tolist()]
        pen.line(path, fill=255, width=thick, joint="curve")
    resized = canvas.resize((view.size, view.size), Image.Resampling.BOX)
    return np.asarray(resized, np.float32) / np.float32(255)


# Artefacts: in coordinates of the photograph, not of the skin


def frame_view(size: int) -> View:
    """Return a view with coordinates of the photograph: -1..1 from edge to edge."""
    return make_view(size, turn=0.0, radius=0.5, shift=(0.0, 0.0))


def draw_hair(rng: np.random.Generator, image: Field, n_hairs: int) -> Field:
    """Draw dark hairs with soft shadows across an image."""
    frame = frame_view(len(image))
    strokes = []
    main_angle = rng.uniform(0, np.pi)
    for _ in range(n_hairs):
        heading, along = main_angle + 0.5 * rng.normal(), np.linspace(-0.5, 0.5, 24) * rng.uniform(0.8, 2.6)
        centre, bow = rng.uniform(-0.9, 0.9, 2), rng.normal() * 0.25
        direction, normal = (
            np.array([np.cos(heading), np.sin(heading)]),
            np.array([-np.sin(heading), np.cos(heading)]),
        )
        points = centre + along[:, None] * direction + (bow * along**2)[:, None] * normal
        strokes.append((points, rng.uniform(0.008, 0.022)))
    mask = strokes_mask(frame, strokes)
    shade = gaussian_filter(np.roll(mask, 1, axis=0), 1.0)
    brown = np.array([0.17, 0.11, 0.09], np.float32) * np.float32(rng.uniform(0.6, 1.5))
    return blend(image * (1 - 0.25 * shade[..., None]), brown, 0.92 * mask)


def draw_ruler(rng: np.random.Generator, image: Field) -> Field:
    """Draw a millimetre scale along one edge of an image."""
    frame = frame_view(len(image))
    strokes = []
    for n, position in enumerate(np.arange(-0.98, 1, 0.078)):
        length = 0.17 if n % 5 == 0 else 0.09
        strokes.append((np.array([[position, 0.98], [position, 0.98 - length]]), 0.013))
    mask = np.rot90(strokes_mask(frame, strokes), int(rng.integers(4)))
    return blend(image, np.array([0.08, 0.08, 0.09], np.float32), 0.9 * mask)


def draw_bubbles(rng: np.random.Generator, image: Field, n_bubbles: int) -> Field:
    """Draw gel bubbles: a bright rim, a darker inner edge, a reflection."""
    frame = frame_view(len(image))
    for _ in range(n_bubbles):
        x, y = rng.uniform(-1, 1, 2)
        radius = rng.uniform(0.03, 0.13)
        distance = np.hypot(frame.u - x, frame.v - y) / radius
        rim = np.exp(-(((distance - 1) / 0.12) ** 2))
        inner_edge = np.exp(-(((distance - 0.78) / 0.15) ** 2))
        glint = np.exp(
            -((np.hypot(frame.u - x + 0.4 * radius, frame.v - y + 0.4 * radius) / (0.18 * radius)) ** 2)
        )
        image = blend(
            image * (1 - 0.14 * inner_edge[..., None]), np.ones(3, np.float32), 0.38 * rim + 0.85 * glint
        )
    return image


def draw_ink(rng: np.random.Generator, image: Field) -> Field:
    """Draw a stroke of a surgical marker near the edge of an image."""
    frame = frame_view(len(image))
    start = rng.uniform(0, 6.3)
    arc = start + np.linspace(0, rng.uniform(0.3, 0.8), 20)
    points = np.stack([np.cos(arc), np.sin(arc)], 1) * rng.uniform(0.98, 1.15)
    mask = gaussian_filter(strokes_mask(frame, [(points, rng.uniform(0.06, 0.12))]), 1.2)
    streaky = 0.75 + 0.2 * cloud_noise(rng, frame.u, frame.v, 9.0)
    return image * (1 - np.clip(mask * streaky, 0, 1)[..., None] * (1 - INK_ABSORPTION))


def draw_dark_corners(rng: np.random.Generator, image: Field) -> Field:
    """Darken the corners outside the round field of view of a dermatoscope."""
    frame = frame_view(len(image))
    edge = rng.uniform(1.0, 1.18) - np.hypot(frame.u - rng.normal() * 0.04, frame.v - rng.normal() * 0.04)
    return image * (0.03 + 0.97 * soft_step(np.asarray(edge, np.float32), 0.018))[..., None]


def expose(rng: np.random.Generator, image: Field) -> NDArray[np.uint8]:
    """Return a photograph, (S, S, 3) uint8 RGB, of an image: adds uneven light, blur, noise and gamma."""
    frame = frame_view(len(image))
    direction = rng.uniform(0, 6.3)
    slope = 1 + 0.06 * rng.normal() * (np.cos(direction) * frame.u + np.sin(direction) * frame.v)
    fall_off = 1 - rng.uniform(0.02, 0.14) * (frame.u**2 + frame.v**2)
    gain = rng.uniform(0.90, 1.08) * (1 + 0.03 * rng.normal(size=3))
    lit_image = image * (slope * fall_off)[..., None] * gain
    blurred_image = gaussian_filter(lit_image, (s := rng.uniform(0.25, 0.75) * len(image) / 160, s, 0))
    noisy_image = blurred_image + rng.normal(0, rng.uniform(0.004, 0.012), blurred_image.shape)
    return np.asarray(np.clip(noisy_image, 0, 1) ** rng.uniform(0.92, 1.08) * 255 + 0.5, np.uint8)
