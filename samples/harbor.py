"""The harbor, ray traced: the picture to be painted.

It knows light.  A town is solids that are boxes with pieces cut off; one lamp, a sky and a few hills
light them, and rippled water mirrors them all.  Rays come many at once, as columns.  It does not know
brushes, networks or any file; its random numbers go on from the lattice's, so the first picture that
a run draws is always the same.
"""

import numpy as np
from noise import Array, Index, bytes_of, dot, mix, noise, ramp, rng, unit, vec
from PIL import Image, ImageFilter

Point = tuple[float, float, float]
Cut = tuple[float, float, float, float]

# What stands there.

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


class Place:
    """A corner of the world with its own axes: along, up and back."""

    def __init__(self, at: Array, axes: Array) -> None:
        self.at, self.axes = at, axes

    def moved(self, along: float, up: float, back: float) -> "Place":
        """The place with the same axes that many steps away along each."""
        return Place(self.at + self.axes @ vec(along, up, back), self.axes)

    def turned(self) -> "Place":
        """Along goes where back went, so that what was the side is now the front."""
        return Place(self.at, self.axes @ np.array(((0, 0, -1), (0, 1, 0), (1, 0, 0)), np.float32))


def heading(x: float, y: float, z: float, degrees: float) -> Place:
    """A place at a point of the world, turned about its upright."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return Place(vec(x, y, z), np.array(((c, 0, -s), (0, 1, 0), (s, 0, c)), np.float32))


class Solid:
    """A box less what lies beyond each cut; a cut (a, b, c, d) keeps the points with ax+by+cz < d."""

    def __init__(
        self,
        place: Place,
        low: Point,
        high: Point,
        *cuts: Cut,
        stuff: str,
        color: Array,
        floors: int = 0,
    ) -> None:
        self.place, self.stuff, self.color, self.floors = place, stuff, color, floors
        sides = np.c_[np.r_[np.eye(3), -np.eye(3)], np.r_[high, -np.array(low)]]
        planes = np.r_[sides, np.array(cuts).reshape(-1, 4)].astype(np.float32)
        planes /= np.sqrt((planes[:, :3] ** 2).sum(1, keepdims=True))
        self.faces = planes[:, :3]
        self.facing = self.faces @ place.axes.T
        self.offset = planes[:, 3:] + self.facing @ place.at
        self.middle = place.moved(*(np.array(low) + high) / 2).at
        self.radius = float(np.linalg.norm(np.array(high) - low)) / 2

    def meet(self, origin: Array, ray: Array) -> tuple[Index, Array, Index]:
        """Which rays strike it, how far along, and on which face."""
        gap = self.middle - origin
        ahead = dot(gap, ray)
        at = np.flatnonzero(
            (dot(gap, gap) - ahead * ahead < self.radius**2) & (ahead > -self.radius)
        )
        slope = self.facing @ ray[:, at] + np.float32(
            1e-9
        )  # never zero, so a ray along a face misses it
        far = (
            self.offset - self.facing @ (origin[:, at] if origin.shape[1] > 1 else origin)
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
    place: Place, wide: float, eave: float, deep: float, pitch: float, *, color: Array
) -> list[Solid]:
    """Two slabs that lean on each other over the middle of the width."""
    half, over, slabs = wide / 2, 0.35, []
    for side, left, right in ((-1, -over, half), (1, half, wide + over)):
        top = eave + 0.25 + (1 + side) * pitch * half
        low, high = (left, eave - 1, -over), (right, eave + pitch * half + 1, deep + over)
        cuts = (side * pitch, 1, 0, top), (-side * pitch, -1, 0, 0.28 - top)
        slabs.append(Solid(place, low, high, *cuts, stuff="tiles", color=color))
    return slabs


def house(place: Place, bays: int, floors: int, gable: bool) -> list[Solid]:
    """Walls under a roof with a chimney; without a gable in front it is the same house turned."""
    wide, eave = bays * 2.1, floors * 2.9
    deep, pitch = float(rng.uniform(7, 9)), float(rng.uniform(0.7, 1.1))
    if not gable:
        place, wide, deep = place.moved(wide, 0, 0).turned(), deep, wide
    peak = eave + pitch * wide / 2
    cuts = (-pitch, 1, 0, eave), (pitch, 1, 0, eave + pitch * wide)
    wall, tile = WALLS[rng.integers(len(WALLS))], TILES[rng.integers(len(TILES))]
    x, z = wide * float(rng.uniform(0.25, 0.4)), deep * float(rng.uniform(0.3, 0.8))
    return [
        Solid(
            place, (0, 0, 0), (wide, peak, deep), *cuts, stuff="plaster", color=wall, floors=floors
        ),
        Solid(place, (x, eave, z), (x + 0.7, peak + 1.1, z + 0.9), stuff="brick", color=TILES[0]),
        Solid(
            place,
            (x - 0.1, peak + 1, z - 0.1),
            (x + 0.8, peak + 1.2, z + 1),
            stuff="plain",
            color=STONE,
        ),
        *roof(place, wide, eave, deep, pitch, color=tile),
    ]


def terrace(place: Place, length: float, most: int, gap: float) -> list[Solid]:
    """A row of houses no two alike, most floors high or one fewer, until the length is filled."""
    solids, along = [], 0.0
    while along < length:
        bays = int(rng.integers(2, 5))
        spot = place.moved(along, 0, float(rng.uniform(0, 0.5 + gap)))
        solids += house(spot, bays, int(rng.integers(most - 1, most + 1)), rng.random() < 0.6)
        along += bays * 2.1 + float(rng.uniform(0.02, 0.05 + gap))
    return solids


def church(place: Place) -> list[Solid]:
    """A tower, its ledge, and a spire cut steeply on four sides."""
    tip = 23.5
    spire = [(a * 4, 1, c * 4, tip + 10 * (a + c)) for a, c in ((1, 0), (0, 1))]
    spire += [(-a, b, -c, 2 * tip - d) for a, b, c, d in spire]
    return [
        Solid(place, (0, 0, 0), (5, 13.5, 5), stuff="plaster", color=CREAM, floors=5),
        Solid(place, (-0.3, 13.5, -0.3), (5.3, 14, 5.3), stuff="plain", color=STONE),
        Solid(place, (0, 14, 0), (5, tip, 5), *spire, stuff="tiles", color=TILES[2]),
    ]


def tree(place: Place, size: float) -> list[Solid]:
    """A few round crowns, each cut from its box by planes that touch a ball; leaves come later."""
    crowns = []
    for _ in range(6):
        r, green = (
            size * float(rng.uniform(0.45, 0.8)),
            vec(0.16, 0.20, 0.07) * float(rng.uniform(0.6, 1.2)),
        )
        x, y, z = rng.uniform(-0.9, 0.9, 3) * size
        cuts = [(a, b, c, r) for a, b, c in unit(rng.normal(size=(3, 18))).T]
        spot = place.moved(x, y * 0.8 + size * 1.8, z)
        crowns.append(Solid(spot, (-r, -r, -r), (r, r, r), *cuts, stuff="leaf", color=green))
    return [*crowns, Solid(place, (-0.2, 0, -0.2), (0.2, size * 2, 0.2), stuff="wood", color=WOOD)]


def hull(place: Place, length: float, paint: Array) -> Solid:
    """A boat's body: a box cut to a bow, a stern and flared sides."""
    wide, half = length * 0.16, length / 2
    cuts: list[Cut] = [(-0.07, 1, 0, length * 0.13), (-1, -0.4, 0, length * 0.45)]
    for side in (1, -1):
        cuts += [
            (0, -0.45, side, wide * 0.75),
            (0.3, -0.5, side, wide * 0.95),
            (0.7, -0.6, side, half * 0.6),
        ]
    return Solid(
        place, (-half, -0.3, -wide), (half, length * 0.25, wide), *cuts, stuff="hull", color=paint
    )


def dinghy(place: Place, length: float, paint: Array) -> list[Solid]:
    """A small open boat: a hull with two benches."""
    wide, high = length * 0.1, length * 0.09 + 0.2
    benches = ((x, x + 0.3) for x in (-length / 4, 0.0))
    return [
        hull(place, length, paint),
        *(
            Solid(place, (x, 0, -wide), (end, high, wide), stuff="wood", color=CREAM * 0.5)
            for x, end in benches
        ),
    ]


def yacht(place: Place, length: float, paint: Array, mast: float) -> list[Solid]:
    """A hull with its cabin, mast, furled sail and two stays."""
    half, deck = length / 2, length * 0.13
    cabin, wide, slope = place.moved(0, deck, 0), length * 0.08, mast / (half - 0.6)
    parts = [
        hull(place, length, paint),
        Solid(place, (-0.07, 0, -0.07), (0.07, mast, 0.07), stuff="wood", color=WOOD * 2),
        Solid(
            place,
            (-half * 0.8, deck + 0.9, -0.12),
            (0, deck + 1.2, 0.12),
            stuff="plain",
            color=CREAM,
        ),
        Solid(
            cabin,
            (-half * 0.5, -0.2, -wide),
            (half * 0.4, 0.6, wide),
            (0.9, 1, 0, 0.8),
            (0, 0.4, 1, wide),
            (0, 0.4, -1, wide),
            stuff="cabin",
            color=CREAM,
        ),
    ]
    for side, left, right in ((1, 0.0, half), (-1, -half, 0.0)):
        cuts = (side * slope, 1, 0, mast), (-side * slope, -1, 0, 0.06 * slope - mast)
        parts.append(
            Solid(place, (left, deck, -0.02), (right, mast, 0.02), *cuts, stuff="plain", color=WOOD)
        )
    return parts


def town() -> list[Solid]:
    """All that stands on the quay, on the hill behind it and in the water before it."""
    quay = heading(-22, 0, 31, 37)
    solids = [
        Solid(quay, (-40, -1, -4), (66, 1.5, 60), stuff="stone", color=STONE),
        Solid(
            quay,
            (-40, 0, 8),
            (58, 14, 60),
            (0, 1, -0.5, -1.5),
            stuff="grass",
            color=vec(0.20, 0.20, 0.09),
        ),
    ]
    for up, back, most, gap in ((1.5, 0, 3, 0.0), (7.5, 18, 3, 2.5), (15, 33, 2, 6.0)):
        solids += terrace(quay.moved(-12, up, back), 62 - back / 5, most, gap)
    solids += church(quay.moved(31, 11, 27)) + tree(quay.moved(62, 1.5, 2), 2.1)
    for along in range(-2, 67, 4):
        solids.append(
            Solid(
                quay.moved(along, 0, -4.3), (0, -1, 0), (0.25, 2.1, 0.25), stuff="wood", color=WOOD
            )
        )
    for along, size, paint, mast in (
        (9, 6, 3, 7.5),
        (19, 7, 1, 9.0),
        (36, 8, 2, 10.0),
        (47, 6, 7, 8.0),
    ):
        solids += yacht(quay.moved(along, 0, -6), size, WALLS[paint], mast)
    solids += dinghy(quay.moved(29, 0, -6), 5, CREAM) + dinghy(
        heading(-4.2, 0, 17.5, 20), 4, WALLS[1]
    )
    return solids + yacht(heading(7, 0, 27, 160), 7.5, WALLS[5], 9.5)


# How it looks.

SUN = unit(vec(0.40, 0.075, 0.90))
# The lamp stands further around to the right than the sun in the sky: else every front lay in shadow.
LAMP = unit(vec(0.90, 0.30, -0.05))


def sky(ray: Array) -> Array:
    """The color of the air each way: evening glow, clouds lit from the sun's side, the sun, and the hills."""
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
    """Three ridges before the sky, each nearer, darker and rougher than the one behind."""
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
    """Where a wall is window frame, where glass, and which panes are lit."""
    column, level = np.floor(side / 2.1), np.floor(p[1] / 2.9)
    u, v = side - column * 2.1 - 1.05, p[1] - level * 2.9 - 1.55
    wall = (level < solid.floors).astype(np.float32)
    frame = wall * (abs(u) < 0.56) * (abs(v) < 0.86)
    sill = wall * (abs(u) < 0.68) * (abs(v + 0.90) < 0.07)
    glass = frame * (abs(u) < 0.47) * (abs(v) < 0.77) * (abs(u) > 0.035) * (abs(v - 0.25) > 0.035)
    chance = noise(
        column + np.floor(solid.place.at[0]), level * 7 + np.floor(solid.place.at[2]) + 3
    )
    return np.maximum(frame, sill), glass, glass * (chance > 0.72)


def blocks(u: Array, v: Array, wide: float, high: float) -> Array:
    """Courses of stone, brick or tile: each its own shade, with a darker joint."""
    line = np.floor(v / high)
    u = u / wide + 0.5 * (line % 2)
    joint = np.minimum(0.5 - abs(u % 1 - 0.5), (0.5 - abs(v / high % 1 - 0.5)) * high / wide * 2)
    return (0.72 + 0.5 * noise(np.floor(u), line)) * (0.55 + 0.45 * ramp(joint, 0.0, 0.08))


def surface(solid: Solid, p: Array, n: Array) -> tuple[Array, Array]:
    """The color of the stuff at a point, and the light it gives of its own."""
    side = np.where(abs(n[2]) > abs(n[0]), p[0], p[2])
    rough = 0.7 + 0.6 * noise(side * 1.7 + 31, p[1] * 1.7 + p[2], 5)
    color, glow = solid.color * rough, np.zeros_like(p)
    if solid.stuff == "tiles":
        color = color * blocks(np.where(abs(n[0]) > 0.3, p[2], p[0]), p[1], 0.45, 0.32) * 1.15
    elif solid.stuff in ("brick", "stone"):
        size = 0.9 if solid.stuff == "stone" else 0.24
        course = np.where(abs(n[1]) > 0.5, p[2], p[1])
        color = color * blocks(side, course, size, size / 2) * ramp(p[1], -0.3, 0.5 * size)
    elif solid.stuff in ("leaf", "grass"):
        color = color * (0.3 + 1.5 * noise(side * 4, p[1] * 4 + p[0], 3))
    elif solid.stuff == "hull":
        color = np.where(p[1] < 0.12, TILES[0], np.where(n[1] > 0.5, WOOD * 0.9, color))
    elif solid.stuff == "cabin":
        color = mix(
            color, WOOD * 0.3, (abs(p[1] - 0.3) < 0.13) * (side % 0.8 > 0.25) * (n[1] < 0.6)
        )
    elif solid.stuff == "plaster" and solid.floors:
        color = (
            color * (0.75 + 0.5 * noise(side * 5, p[1] * 0.6, 3)) * (0.7 + 0.3 * ramp(p[1], 0, 1.2))
        )
        frame, glass, lit = windows(p, side, solid)
        pane = mix(vec(0.03, 0.04, 0.06), vec(0.12, 0.13, 0.17), noise(side * 2, p[1] * 2 + 5, 3))
        color = mix(mix(color, CREAM, frame), pane, glass)
        glow = lit * vec(2.0, 0.72, 0.12) * (0.4 + noise(side * 3, p[1] * 3, 2))
        glow += (glass - lit) * vec(0.10, 0.10, 0.14)
    return color, glow


def nearest(solids: list[Solid], origin: Array, ray: Array) -> tuple[Array, Index, Index]:
    """How far each ray goes, which solid stops it (-1 for none) and on which face."""
    count = ray.shape[1]
    depth, which, face = (
        np.full(count, np.inf, np.float32),
        np.full(count, -1),
        np.zeros(count, np.intp),
    )
    for number, solid in enumerate(solids):
        at, far, side = solid.meet(origin, ray)
        if (
            solid.stuff == "leaf" and at.size
        ):  # holes between the leaves make the crown's edge ragged
            p = (origin if origin.shape[1] == 1 else origin[:, at]) + far * ray[:, at]
            keep = noise(p[0] * 2.5 + p[1], p[2] * 2.5 - p[1] * 2, 3) > 0.45
            at, far, side = at[keep], far[keep], side[keep]
        closer = far < depth[at]
        at = at[closer]
        depth[at], which[at], face[at] = far[closer], number, side[closer]
    return depth, which, face


def shade(solids: list[Solid], p: Array, which: Index, face: Index) -> Array:
    """Lamp, sky above and warm ground below, on whatever stuff was struck."""
    normal, color, glow, low = (
        np.empty_like(p),
        np.empty_like(p),
        np.empty_like(p),
        np.empty_like(p[0]),
    )
    for number in np.unique(which):
        solid, at = solids[number], which == number
        local, n = solid.place.axes.T @ (p[:, at] - solid.place.at), solid.faces[face[at]].T
        color[:, at], glow[:, at] = surface(solid, local, n)
        normal[:, at], low[at] = solid.facing[face[at]].T, local[1]
    # The lamp is a little broad, for soft shadows; they start off the surface, or it would shade itself.
    lamp = unit(LAMP + rng.normal(scale=0.0015, size=p.shape).astype(np.float32))
    clear = nearest(solids, p + normal * 0.02, lamp)[0] == np.inf
    direct = vec(3.6, 2.0, 0.9) * (np.maximum(dot(normal, LAMP), 0) * clear)
    above = mix(vec(0.16, 0.13, 0.14), vec(0.26, 0.34, 0.56), 0.5 + 0.5 * normal[1])
    lit: Array = color * (direct + above * (0.55 + 0.45 * ramp(low, 0, 3))) + glow
    return lit


def ripples(p: Array, far: Array) -> Array:
    """The water's normals: long swells and short ripples, calmer in some patches and far away."""
    x, z = p[0], p[2]
    wind = (0.022 + 0.06 * ramp(noise(x * 0.03 + 5, z * 0.06, 2), 0.4, 0.75)) / (1 + far / 120)
    lean = [(noise(x * 0.55 + k, z * 1.5 + k, 4) - 0.5) * wind for k in (0, 57)]
    return unit(np.stack([lean[0], np.ones_like(x), lean[1] * 1.8]))


def radiance(solids: list[Solid], origin: Array, ray: Array, water: bool) -> Array:
    """The light that comes back along each ray; what the water mirrors is looked up without water."""
    depth, which, face = nearest(solids, origin, ray)
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
    """The whole harbor at evening, traced with four rays to each dot."""
    solids, eye = town(), vec(0, 4.6, 0)
    light: Array = np.empty((high * 2, wide * 2, 3), np.float32)
    across = np.linspace(-0.53, 0.53, wide * 2, dtype=np.float32)
    down = np.linspace(0.43, -0.365, high * 2, dtype=np.float32)
    for top in range(0, high * 2, 8):  # in strips, so that the rays at work stay in the cache
        y, x = (a.ravel() for a in np.meshgrid(down[top : top + 8], across, indexing="ij"))
        strip = radiance(solids, eye, unit(np.stack([x, y, np.ones_like(x)])), True)
        light[top : top + 8] = strip.T.reshape(-1, wide * 2, 3)
    return develop(light)


def develop(light: Array) -> Image.Image:
    """What a camera does: glare about the brightest, a film's curve, darker corners, grain."""
    high, wide = light.shape[0] // 2, light.shape[1] // 2
    light = np.minimum(light, 12).reshape(high, 2, wide, 2, 3).mean((1, 3))
    bright = Image.fromarray(bytes_of(light / 6 - 0.12)).filter(ImageFilter.GaussianBlur(14))
    light = 0.42 * light + np.asarray(bright, np.float32) / 255 * 0.6
    film = light * (2.5 * light + 0.03) / (light * (2.4 * light + 0.6) + 0.14)
    y, x = np.mgrid[-1 : 1 : high * 1j, -1 : 1 : wide * 1j]
    film = film ** (1 / 2.2) * (1 - 0.08 * (x * x + y * y))[..., None]
    return Image.fromarray(bytes_of(film + rng.normal(scale=0.010, size=(high, wide, 1))))
