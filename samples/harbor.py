"""Draws the harbor by ray tracing: the sample photo.

The town consists of solids: boxes cut by planes. One lamp, a sky and a few hills light them, and
rippled water reflects them. Rays are traced in batches, as columns of arrays of shape (3, n). The
random numbers continue the sequence of noise.py, so the first picture of a run is always the same.
"""

import numpy as np
from noise import Array, Index, dot, mix, noise, ramp, rng, to_bytes, unit, vec
from PIL import Image, ImageFilter

Point = tuple[float, float, float]
Cut = tuple[float, float, float, float]

# ---------------------------------------------------------------------- the solids

WALLS = [
    vec(*c)
    for c in (
        (0.80, 0.50, 0.20),
        (0.62, 0.19, 0.13),
        (0.82, 0.74, 0.58),
        (0.30, 0.42, 0.50),
        (0.78, 0.42, 0.34),
        (0.86, 0.82, 0.76),
        (0.36, 0.46, 0.32),
        (0.85, 0.62, 0.26),
    )
]
TILES = [vec(*c) for c in ((0.44, 0.17, 0.09), (0.32, 0.15, 0.10), (0.20, 0.19, 0.21))]
WOOD, STONE, CREAM = vec(0.22, 0.14, 0.08), vec(0.42, 0.37, 0.32), vec(0.85, 0.80, 0.70)


class Frame:
    """A coordinate frame: an origin and three axes (along, up, back)."""

    def __init__(self, at: Array, axes: Array) -> None:
        self.at, self.axes = at, axes

    def translate(self, along: float, up: float, back: float) -> "Frame":
        """Return the frame moved by these distances along its own axes."""
        return Frame(self.at + self.axes @ vec(along, up, back), self.axes)

    def rotate_to_side(self) -> "Frame":
        """Return the frame turned by 90 degrees, so that the side becomes the front."""
        return Frame(self.at, self.axes @ np.array(((0, 0, -1), (0, 1, 0), (1, 0, 0)), np.float32))


def make_frame(x: float, y: float, z: float, degrees: float) -> Frame:
    """Return a frame at a point of the world, rotated about the vertical axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return Frame(vec(x, y, z), np.array(((c, 0, -s), (0, 1, 0), (s, 0, c)), np.float32))


class Solid:
    """A box cut by planes; a cut (a, b, c, d) keeps the points with ax + by + cz < d."""

    def __init__(
        self,
        frame: Frame,
        low: Point,
        high: Point,
        *cuts: Cut,
        material: str,
        color: Array,
        floors: int = 0,
    ) -> None:
        self.frame, self.material, self.color, self.floors = frame, material, color, floors
        sides = np.c_[np.r_[np.eye(3), -np.eye(3)], np.r_[high, -np.array(low)]]
        planes = np.r_[sides, np.array(cuts).reshape(-1, 4)].astype(np.float32)
        planes /= np.sqrt((planes[:, :3] ** 2).sum(1, keepdims=True))
        self.normals = planes[:, :3]
        self.world_normals = self.normals @ frame.axes.T
        self.offset = planes[:, 3:] + self.world_normals @ frame.at
        self.middle = frame.translate(*(np.array(low) + high) / 2).at
        self.radius = float(np.linalg.norm(np.array(high) - low)) / 2

    def intersect(self, origin: Array, ray: Array) -> tuple[Index, Array, Index]:
        """Return the indices of the rays that hit the solid, their distances and the faces hit."""
        gap = self.middle - origin
        ahead = dot(gap, ray)
        at = np.flatnonzero(
            (dot(gap, gap) - ahead * ahead < self.radius**2) & (ahead > -self.radius)
        )
        # Never zero, so that a ray parallel to a face misses it.
        slope = self.world_normals @ ray[:, at] + np.float32(1e-9)
        far = (
            self.offset - self.world_normals @ (origin[:, at] if origin.shape[1] > 1 else origin)
        ) / slope
        entries = np.where(slope < 0, far, -np.inf)
        face, enter, leave = (
            entries.argmax(0),
            entries.max(0),
            np.where(slope > 0, far, np.inf).min(0),
        )
        hit = (enter < leave) & (enter > 1e-3)
        return at[hit], enter[hit], face[hit]


def roof(
    frame: Frame, wide: float, eave: float, deep: float, pitch: float, *, color: Array
) -> list[Solid]:
    """Two slabs that meet at the ridge over the middle of the width."""
    half, over, slabs = wide / 2, 0.35, []
    for side, left, right in ((-1, -over, half), (1, half, wide + over)):
        top = eave + 0.25 + (1 + side) * pitch * half
        low, high = (left, eave - 1, -over), (right, eave + pitch * half + 1, deep + over)
        cuts = (side * pitch, 1, 0, top), (-side * pitch, -1, 0, 0.28 - top)
        slabs.append(Solid(frame, low, high, *cuts, material="tiles", color=color))
    return slabs


def house(frame: Frame, bays: int, floors: int, gable: bool) -> list[Solid]:
    """Walls, a roof and a chimney. Without a front gable, the house is turned by 90 degrees."""
    wide, eave = bays * 2.1, floors * 2.9
    deep, pitch = float(rng.uniform(7, 9)), float(rng.uniform(0.7, 1.1))
    if not gable:
        frame, wide, deep = frame.translate(wide, 0, 0).rotate_to_side(), deep, wide
    peak = eave + pitch * wide / 2
    cuts = (-pitch, 1, 0, eave), (pitch, 1, 0, eave + pitch * wide)
    wall, tile = WALLS[rng.integers(len(WALLS))], TILES[rng.integers(len(TILES))]
    x, z = wide * float(rng.uniform(0.25, 0.4)), deep * float(rng.uniform(0.3, 0.8))
    return [
        Solid(
            frame,
            (0, 0, 0),
            (wide, peak, deep),
            *cuts,
            material="plaster",
            color=wall,
            floors=floors,
        ),
        Solid(
            frame, (x, eave, z), (x + 0.7, peak + 1.1, z + 0.9), material="brick", color=TILES[0]
        ),
        Solid(
            frame,
            (x - 0.1, peak + 1, z - 0.1),
            (x + 0.8, peak + 1.2, z + 1),
            material="plain",
            color=STONE,
        ),
        *roof(frame, wide, eave, deep, pitch, color=tile),
    ]


def terrace(frame: Frame, length: float, most: int, gap: float) -> list[Solid]:
    """A row of random houses along the length, with `most` floors or one fewer."""
    solids, along = [], 0.0
    while along < length:
        bays = int(rng.integers(2, 5))
        position = frame.translate(along, 0, float(rng.uniform(0, 0.5 + gap)))
        solids += house(position, bays, int(rng.integers(most - 1, most + 1)), rng.random() < 0.6)
        along += bays * 2.1 + float(rng.uniform(0.02, 0.05 + gap))
    return solids


def church(frame: Frame) -> list[Solid]:
    """A tower, its ledge, and a four-sided spire."""
    tip = 23.5
    spire = [(a * 4, 1, c * 4, tip + 10 * (a + c)) for a, c in ((1, 0), (0, 1))]
    spire += [(-a, b, -c, 2 * tip - d) for a, b, c, d in spire]
    return [
        Solid(frame, (0, 0, 0), (5, 13.5, 5), material="plaster", color=CREAM, floors=5),
        Solid(frame, (-0.3, 13.5, -0.3), (5.3, 14, 5.3), material="plain", color=STONE),
        Solid(frame, (0, 14, 0), (5, tip, 5), *spire, material="tiles", color=TILES[2]),
    ]


def tree(frame: Frame, size: float) -> list[Solid]:
    """A trunk and a few round crowns: boxes cut by random planes that touch a sphere."""
    crowns = []
    for _ in range(6):
        r, green = (
            size * float(rng.uniform(0.45, 0.8)),
            vec(0.16, 0.20, 0.07) * float(rng.uniform(0.6, 1.2)),
        )
        x, y, z = rng.uniform(-0.9, 0.9, 3) * size
        cuts = [(a, b, c, r) for a, b, c in unit(rng.normal(size=(3, 18))).T]
        position = frame.translate(x, y * 0.8 + size * 1.8, z)
        crowns.append(Solid(position, (-r, -r, -r), (r, r, r), *cuts, material="leaf", color=green))
    return [
        *crowns,
        Solid(frame, (-0.2, 0, -0.2), (0.2, size * 2, 0.2), material="wood", color=WOOD),
    ]


def hull(frame: Frame, length: float, paint: Array) -> Solid:
    """A boat's hull: a box cut to a bow, a stern and flared sides."""
    wide, half = length * 0.16, length / 2
    cuts: list[Cut] = [(-0.07, 1, 0, length * 0.13), (-1, -0.4, 0, length * 0.45)]
    for side in (1, -1):
        cuts += [
            (0, -0.45, side, wide * 0.75),
            (0.3, -0.5, side, wide * 0.95),
            (0.7, -0.6, side, half * 0.6),
        ]
    return Solid(
        frame,
        (-half, -0.3, -wide),
        (half, length * 0.25, wide),
        *cuts,
        material="hull",
        color=paint,
    )


def dinghy(frame: Frame, length: float, paint: Array) -> list[Solid]:
    """A small open boat: a hull with two benches."""
    wide, high = length * 0.1, length * 0.09 + 0.2
    benches = ((x, x + 0.3) for x in (-length / 4, 0.0))
    return [
        hull(frame, length, paint),
        *(
            Solid(frame, (x, 0, -wide), (end, high, wide), material="wood", color=CREAM * 0.5)
            for x, end in benches
        ),
    ]


def yacht(frame: Frame, length: float, paint: Array, mast: float) -> list[Solid]:
    """A hull with cabin, mast, furled sail and two stays."""
    half, deck = length / 2, length * 0.13
    cabin, wide, slope = frame.translate(0, deck, 0), length * 0.08, mast / (half - 0.6)
    parts = [
        hull(frame, length, paint),
        Solid(frame, (-0.07, 0, -0.07), (0.07, mast, 0.07), material="wood", color=WOOD * 2),
        Solid(
            frame,
            (-half * 0.8, deck + 0.9, -0.12),
            (0, deck + 1.2, 0.12),
            material="plain",
            color=CREAM,
        ),
        Solid(
            cabin,
            (-half * 0.5, -0.2, -wide),
            (half * 0.4, 0.6, wide),
            (0.9, 1, 0, 0.8),
            (0, 0.4, 1, wide),
            (0, 0.4, -1, wide),
            material="cabin",
            color=CREAM,
        ),
    ]
    for side, left, right in ((1, 0.0, half), (-1, -half, 0.0)):
        cuts = (side * slope, 1, 0, mast), (-side * slope, -1, 0, 0.06 * slope - mast)
        parts.append(
            Solid(
                frame, (left, deck, -0.02), (right, mast, 0.02), *cuts, material="plain", color=WOOD
            )
        )
    return parts


def town() -> list[Solid]:
    """All solids on the quay, on the hill behind it and in the water before it."""
    quay = make_frame(-22, 0, 31, 37)
    solids = [
        Solid(quay, (-40, -1, -4), (66, 1.5, 60), material="stone", color=STONE),
        Solid(
            quay,
            (-40, 0, 8),
            (58, 14, 60),
            (0, 1, -0.5, -1.5),
            material="grass",
            color=vec(0.20, 0.20, 0.09),
        ),
    ]
    for up, back, most, gap in ((1.5, 0, 3, 0.0), (7.5, 18, 3, 2.5), (15, 33, 2, 6.0)):
        solids += terrace(quay.translate(-12, up, back), 62 - back / 5, most, gap)
    solids += church(quay.translate(31, 11, 27)) + tree(quay.translate(62, 1.5, 2), 2.1)
    for along in range(-2, 67, 4):
        solids.append(
            Solid(
                quay.translate(along, 0, -4.3),
                (0, -1, 0),
                (0.25, 2.1, 0.25),
                material="wood",
                color=WOOD,
            )
        )
    for along, size, paint, mast in (
        (9, 6, 3, 7.5),
        (19, 7, 1, 9.0),
        (36, 8, 2, 10.0),
        (47, 6, 7, 8.0),
    ):
        solids += yacht(quay.translate(along, 0, -6), size, WALLS[paint], mast)
    solids += dinghy(quay.translate(29, 0, -6), 5, CREAM) + dinghy(
        make_frame(-4.2, 0, 17.5, 20), 4, WALLS[1]
    )
    return solids + yacht(make_frame(7, 0, 27, 160), 7.5, WALLS[5], 9.5)


# ---------------------------------------------------------------------- light and materials

SUN = unit(vec(0.40, 0.075, 0.90))
# The lamp is further right than the sun in the sky; otherwise every front would be in shadow.
LAMP = unit(vec(0.90, 0.30, -0.05))


def sky(ray: Array) -> Array:
    """Return the sky's color in each direction: evening glow, lit clouds, the sun and the hills."""
    x, y, z = ray
    near = dot(ray, SUN)
    color = mix(vec(0.95, 0.60, 0.42), vec(0.10, 0.21, 0.46), ramp(y, -0.08, 0.42))
    color = color + vec(0.9, 0.42, 0.12) * (
        0.8 * np.exp((near - 1) * 60) + 0.35 * np.exp((near - 1) * 7)
    )
    u, w = x / (abs(y) + 0.10) + 3, z / (abs(y) + 0.10)
    thick = noise(u, w, 7)
    lit = np.clip(0.45 + 5 * (thick - noise(u + 0.18, w + 0.1, 5)), 0, 1)
    cloud = mix(vec(0.44, 0.36, 0.46), vec(1.15, 0.80, 0.58), lit)
    cloud = cloud + vec(0.7, 0.3, 0.05) * np.exp((near - 1) * 20)
    color = mix(color, cloud, 0.9 * ramp(thick, 0.47, 0.66) * ramp(y, 0.0, 0.12))
    color += vec(26, 17, 8) * ramp(near, 0.99985, 0.99992)
    return hills(np.arctan2(x, z), y, color, near)


def hills(turn: Array, y: Array, color: Array, near: Array) -> Array:
    """Add three ridges, each nearer, darker and rougher than the one behind it."""
    haze = mix(vec(0.62, 0.50, 0.50), vec(1.15, 0.72, 0.42), np.exp((near - 1) * 12))
    for step, (height, rough, clear) in enumerate(
        ((0.085, 3, 0.18), (0.06, 5, 0.38), (0.035, 9, 0.58))
    ):
        ridge = height * (0.25 + 1.5 * noise(turn * rough + 9.1 * step, turn * 0 + step, 3))
        ridge += 0.004 * noise(turn * 160, turn * 0 + step, 3)
        wood = vec(0.13, 0.17, 0.13) * (0.4 + 1.2 * noise(turn * 150, y * 420 + 7 * step, 4))
        color = mix(color, mix(haze, wood, clear), ramp(ridge - y, -0.0005, 0.0008))
    return color


def windows(p: Array, side: Array, solid: Solid) -> tuple[Array, Array, Array]:
    """Return masks of the window frames, the glass and the lit panes of a wall."""
    column, level = np.floor(side / 2.1), np.floor(p[1] / 2.9)
    u, v = side - column * 2.1 - 1.05, p[1] - level * 2.9 - 1.55
    wall = (level < solid.floors).astype(np.float32)
    frame = wall * (abs(u) < 0.56) * (abs(v) < 0.86)
    sill = wall * (abs(u) < 0.68) * (abs(v + 0.90) < 0.07)
    glass = frame * (abs(u) < 0.47) * (abs(v) < 0.77) * (abs(u) > 0.035) * (abs(v - 0.25) > 0.035)
    lit_chance = noise(
        column + np.floor(solid.frame.at[0]), level * 7 + np.floor(solid.frame.at[2]) + 3
    )
    return np.maximum(frame, sill), glass, glass * (lit_chance > 0.72)


def blocks(u: Array, v: Array, wide: float, high: float) -> Array:
    """Return the brightness of courses of stones, bricks or tiles with dark joints."""
    line = np.floor(v / high)
    u = u / wide + 0.5 * (line % 2)
    joint = np.minimum(0.5 - abs(u % 1 - 0.5), (0.5 - abs(v / high % 1 - 0.5)) * high / wide * 2)
    return (0.72 + 0.5 * noise(np.floor(u), line)) * (0.55 + 0.45 * ramp(joint, 0.0, 0.08))


def surface(solid: Solid, p: Array, n: Array) -> tuple[Array, Array]:
    """Return the color of the solid's material at points p with normals n, and its own light."""
    side = np.where(abs(n[2]) > abs(n[0]), p[0], p[2])
    rough = 0.7 + 0.6 * noise(side * 1.7 + 31, p[1] * 1.7 + p[2], 5)
    color, glow = solid.color * rough, np.zeros_like(p)
    if solid.material == "tiles":
        color = color * blocks(np.where(abs(n[0]) > 0.3, p[2], p[0]), p[1], 0.45, 0.32) * 1.15
    elif solid.material in ("brick", "stone"):
        size = 0.9 if solid.material == "stone" else 0.24
        course = np.where(abs(n[1]) > 0.5, p[2], p[1])
        color = color * blocks(side, course, size, size / 2) * ramp(p[1], -0.3, 0.5 * size)
    elif solid.material in ("leaf", "grass"):
        color = color * (0.3 + 1.5 * noise(side * 4, p[1] * 4 + p[0], 3))
    elif solid.material == "hull":
        color = np.where(p[1] < 0.12, TILES[0], np.where(n[1] > 0.5, WOOD * 0.9, color))
    elif solid.material == "cabin":
        color = mix(
            color, WOOD * 0.3, (abs(p[1] - 0.3) < 0.13) * (side % 0.8 > 0.25) * (n[1] < 0.6)
        )
    elif solid.material == "plaster" and solid.floors:
        color = (
            color * (0.75 + 0.5 * noise(side * 5, p[1] * 0.6, 3)) * (0.7 + 0.3 * ramp(p[1], 0, 1.2))
        )
        frame, glass, lit = windows(p, side, solid)
        pane = mix(vec(0.03, 0.04, 0.06), vec(0.12, 0.13, 0.17), noise(side * 2, p[1] * 2 + 5, 3))
        color = mix(mix(color, CREAM, frame), pane, glass)
        glow = lit * vec(2.0, 0.72, 0.12) * (0.4 + noise(side * 3, p[1] * 3, 2))
        glow += (glass - lit) * vec(0.10, 0.10, 0.14)
    return color, glow


def find_nearest(solids: list[Solid], origin: Array, ray: Array) -> tuple[Array, Index, Index]:
    """Return each ray's distance, the solid that it hits (-1 for none) and the face."""
    count = ray.shape[1]
    depth, which, face = (
        np.full(count, np.inf, np.float32),
        np.full(count, -1),
        np.zeros(count, np.intp),
    )
    for number, solid in enumerate(solids):
        at, far, side = solid.intersect(origin, ray)
        if solid.material == "leaf" and at.size:
            # Holes between the leaves make the edge of the crown ragged.
            p = (origin if origin.shape[1] == 1 else origin[:, at]) + far * ray[:, at]
            keep = noise(p[0] * 2.5 + p[1], p[2] * 2.5 - p[1] * 2, 3) > 0.45
            at, far, side = at[keep], far[keep], side[keep]
        closer = far < depth[at]
        at = at[closer]
        depth[at], which[at], face[at] = far[closer], number, side[closer]
    return depth, which, face


def shade(solids: list[Solid], p: Array, which: Index, face: Index) -> Array:
    """Return the light from hit points: lamp with shadows, sky from above, warm ground below."""
    normal, color, glow, low = (
        np.empty_like(p),
        np.empty_like(p),
        np.empty_like(p),
        np.empty_like(p[0]),
    )
    for number in np.unique(which):
        solid, at = solids[number], which == number
        local, n = solid.frame.axes.T @ (p[:, at] - solid.frame.at), solid.normals[face[at]].T
        color[:, at], glow[:, at] = surface(solid, local, n)
        normal[:, at], low[at] = solid.world_normals[face[at]].T, local[1]
    # The lamp has some width, for soft shadows. Shadow rays start above the surface; otherwise the
    # surface would shade itself.
    lamp = unit(LAMP + rng.normal(scale=0.0015, size=p.shape).astype(np.float32))
    clear = find_nearest(solids, p + normal * 0.02, lamp)[0] == np.inf
    direct = vec(3.6, 2.0, 0.9) * (np.maximum(dot(normal, LAMP), 0) * clear)
    above = mix(vec(0.16, 0.13, 0.14), vec(0.26, 0.34, 0.56), 0.5 + 0.5 * normal[1])
    lit: Array = color * (direct + above * (0.55 + 0.45 * ramp(low, 0, 3))) + glow
    return lit


def ripples(p: Array, far: Array) -> Array:
    """Return the water's normals: swells and ripples, calmer in some patches and far away."""
    x, z = p[0], p[2]
    wind = (0.022 + 0.06 * ramp(noise(x * 0.03 + 5, z * 0.06, 2), 0.4, 0.75)) / (1 + far / 120)
    lean = [(noise(x * 0.55 + k, z * 1.5 + k, 4) - 0.5) * wind for k in (0, 57)]
    return unit(np.stack([lean[0], np.ones_like(x), lean[1] * 1.8]))


def radiance(solids: list[Solid], origin: Array, ray: Array, water: bool) -> Array:
    """Return the light along each ray. Reflections are traced with water=False."""
    depth, which, face = find_nearest(solids, origin, ray)
    level = (
        np.where(ray[1] < 0, -origin[1] / np.minimum(ray[1], -1e-6), np.inf) if water else np.inf
    )
    wet = level < depth
    struck = (which >= 0) & ~wet
    far = np.where(wet, level, np.where(struck, depth, 0))
    color, point, air = np.empty_like(ray), origin + ray * far, far == 0
    color[:, air] = sky(ray[:, air])
    if struck.any():
        color[:, struck] = shade(solids, point[:, struck], which[struck], face[struck])
    if wet.any():
        normal = ripples(point[:, wet], far[wet])
        slant = np.maximum(-dot(ray[:, wet], normal), 0.01)
        bounce = ray[:, wet] + 2 * slant * normal
        bounce[1] = abs(bounce[1])
        seen = radiance(solids, point[:, wet], unit(bounce), False)
        color[:, wet] = mix(vec(0.03, 0.07, 0.08), seen, 0.06 + 0.88 * (1 - slant) ** 4)
    haze = mix(vec(0.55, 0.47, 0.50), vec(1.05, 0.66, 0.42), np.exp((dot(ray, SUN) - 1) * 12))
    return mix(color, haze, 1 - np.exp(-far / 520))


def picture(wide: int, high: int) -> Image.Image:
    """Draw the harbor at evening with four rays per pixel."""
    solids, eye = town(), vec(0, 4.6, 0)
    light: Array = np.empty((high * 2, wide * 2, 3), np.float32)
    across = np.linspace(-0.53, 0.53, wide * 2, dtype=np.float32)
    down = np.linspace(0.43, -0.365, high * 2, dtype=np.float32)
    for top in range(0, high * 2, 8):  # strips of 8 rows fit the CPU cache
        y, x = (a.ravel() for a in np.meshgrid(down[top : top + 8], across, indexing="ij"))
        strip = radiance(solids, eye, unit(np.stack([x, y, np.ones_like(x)])), True)
        light[top : top + 8] = strip.T.reshape(-1, wide * 2, 3)
    return develop(light)


def develop(light: Array) -> Image.Image:
    """Simulate a camera: glare, the curve of a film, dark corners, grain."""
    high, wide = light.shape[0] // 2, light.shape[1] // 2
    light = np.minimum(light, 12).reshape(high, 2, wide, 2, 3).mean((1, 3))
    bright = Image.fromarray(to_bytes(light / 6 - 0.12)).filter(ImageFilter.GaussianBlur(14))
    light = 0.42 * light + np.asarray(bright, np.float32) / 255 * 0.6
    film = light * (2.5 * light + 0.03) / (light * (2.4 * light + 0.6) + 0.14)
    y, x = np.mgrid[-1 : 1 : high * 1j, -1 : 1 : wide * 1j]
    film = film ** (1 / 2.2) * (1 - 0.08 * (x * x + y * y))[..., None]
    return Image.fromarray(to_bytes(film + rng.normal(scale=0.010, size=(high, wide, 1))))
