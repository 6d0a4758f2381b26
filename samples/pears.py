"""Draws three pears and a bowl on a table by a window: the second sample photo.

The solids are signed distance fields. A ray advances by the distance to the nearest solid until it
hits one (sphere tracing). One lamp from the left lights them.
"""

import numpy as np
from noise import Array, dot, mix, noise, ramp, to_bytes, unit, vec
from PIL import Image

LAMP = unit(vec(-0.62, 0.66, -0.62))
# Position (x, z), size, lean, and color of the skin.
PEARS = (
    ((-0.62, 0.05), 0.50, 0.10, (0.86, 0.70, 0.16)),
    ((0.26, -0.34), 0.43, -0.35, (0.56, 0.68, 0.18)),
    ((0.70, 0.42), 0.52, 0.12, (0.80, 0.40, 0.15)),
)
BOWL = (-1.50, 0.62)


def pear(p: Array, at: tuple[float, float], size: float, lean: float) -> Array:
    """Distance to a pear: a smooth union of two spheres."""
    x, y, z = (
        p[0] - at[0] - lean * 0.6 * np.maximum(p[1] - size, 0),
        p[1] - size * 0.98,
        p[2] - at[1],
    )
    low = np.sqrt(x * x + y * y * 1.06 + z * z) - size
    high = np.sqrt(x * x + (y - size * 1.02) ** 2 + z * z) - size * 0.46
    h = np.clip(0.5 + 0.5 * (high - low) / (size * 0.75), 0, 1)
    return high + (low - high) * h - size * 0.75 * h * (1 - h)


def stem(p: Array, at: tuple[float, float], size: float, lean: float) -> Array:
    """Distance to the stem: a thin bent rod."""
    up = np.clip(p[1], size * 2.3, size * 2.85)
    sway = at[0] + lean * 0.6 * (up - size) + 0.10 * (up - size * 2.3)
    return np.sqrt((p[0] - sway) ** 2 + (p[1] - up) ** 2 + (p[2] - at[1]) ** 2) - 0.018


def bowl(p: Array) -> Array:
    """Distance to the bowl: a wall and a floor."""
    far = np.hypot(p[0] - BOWL[0], p[2] - BOWL[1])
    belly = 0.40 + 0.16 * np.sqrt(np.clip(p[1] / 0.78, 0, 1))
    wall = np.maximum(np.abs(far - belly) - 0.028, np.abs(p[1] - 0.42) - 0.40)
    floor = np.maximum(far - belly, np.abs(p[1] - 0.06) - 0.04)
    return np.minimum(wall, floor) * 0.8


def distances(p: Array) -> Array:
    """Distances to all solids, shape (solids, n): table, wall, bowl, pears, stems."""
    solids = [p[1], 2.4 - p[2], bowl(p)]
    solids += [pear(p, *shape[:3]) for shape in PEARS] + [stem(p, *shape[:3]) for shape in PEARS]
    return np.stack(solids)


def march(origin: Array, ray: Array, reach: float, steps: int) -> tuple[Array, Array]:
    """Return each ray's distance, and how closely it passed a solid (for soft shadows)."""
    far, near = np.full(ray.shape[1], 0.02, np.float32), np.ones(ray.shape[1], np.float32)
    for _ in range(steps):
        gap = distances(origin + ray * far).min(0)
        near = np.minimum(near, np.maximum(gap, 0) * 16 / far)
        far = np.minimum(far + np.where(gap > 0.0005, gap * 0.9, 0), reach)
    return far, near


def colors(p: Array, which: Array) -> Array:
    """Return the color of the solid `which` at each point."""
    x, y, z = p
    plank = np.floor(x * 1.1 + 40)
    grain = noise(x * 2 + plank * 7, z * 26 + 3 * noise(x * 2, z * 3), 3)
    wood = mix(vec(0.26, 0.13, 0.07), vec(0.52, 0.30, 0.16), grain + 0.12 * np.sin(plank * 2.3))
    wood = wood * (1 - 0.6 * (np.abs((x * 1.1) % 1 - 0.5) > 0.492))
    wall = mix(vec(0.09, 0.13, 0.17), vec(0.20, 0.26, 0.28), noise(x * 1.4, y * 1.4, 4))
    glaze = np.where(
        (np.abs(y - 0.66) < 0.035) | (np.abs(y - 0.55) < 0.012),
        vec(0.10, 0.20, 0.48),
        vec(0.88, 0.85, 0.78),
    )
    layers = [wood, wall, glaze]
    for k, (at, size, _, skin) in enumerate(PEARS):
        turn = np.arctan2(z - at[1], x - at[0])
        blush = ramp(noise(turn * 0.9 + 5 * k, y * 1.2 + k, 3), 0.42, 0.68)[None]
        flesh = mix(vec(*skin), vec(0.74, 0.20, 0.10), 0.65 * blush * ramp(y / size, 0.3, 1.5))
        freckles = ramp(noise(turn * 22 * size, y * 26, 2), 0.66, 0.74)
        layers.append(flesh * (1 - 0.35 * freckles) * (1 + 0.2 * (noise(turn * 6, y * 6, 2) - 0.5)))
    layers += [vec(0.07, 0.04, 0.02) + 0 * p] * len(PEARS)
    return np.take_along_axis(np.stack(layers), which[None, None], 0)[0]


def trace_light(origin: Array, ray: Array) -> Array:
    """Return the light along each ray: lamp with soft shadows, ambient light, highlights."""
    far, _ = march(origin, ray, 12, 90)
    p = origin + ray * far
    which = distances(p).argmin(0)
    e = 0.004
    around = [
        distances(p + np.roll(vec(e, 0, 0), k, 0)).min(0)
        - distances(p - np.roll(vec(e, 0, 0), k, 0)).min(0)
        for k in range(3)
    ]
    normal = unit(np.stack(around) + 1e-9)
    lifted = p + normal * 0.02
    _, open_ = march(lifted, LAMP + 0 * p, 5, 44)
    room = np.mean(
        [
            np.clip(distances(lifted + normal * step).min(0) / step, 0, 1)
            for step in (0.06, 0.16, 0.34)
        ],
        0,
    )
    window = ramp(p[0] - 0.4 * p[1], 2.6, -1.6)
    lamp = np.maximum(dot(normal, LAMP), 0) * open_ * (0.35 + 0.65 * window)
    light = vec(1.65, 1.4, 1.1) * lamp + vec(0.26, 0.30, 0.38) * room * (0.65 + 0.35 * normal[1])
    light = light + vec(0.16, 0.10, 0.05) * np.maximum(-normal[1], 0) * room
    half = unit(LAMP - ray)
    gloss = np.where(which == 2, 0.9, np.where((which > 2) & (which < 6), 0.34, 0.05))
    shine = np.maximum(dot(normal, half), 0) ** np.where(which == 2, 140, 38) * open_ * gloss
    return colors(p, which) * light + shine * vec(1, 0.96, 0.88)


def picture(wide: int, high: int) -> Image.Image:
    """Draw the table with four rays per pixel and a camera's tone curve."""
    eye, forward = vec(-0.25, 1.62, -4.6), unit(vec(-0.02, -0.20, 1))
    right = unit(np.cross(vec(0, 1, 0)[:, 0], forward[:, 0])[:, None].astype(np.float32))
    above = np.cross(forward[:, 0], right[:, 0])[:, None].astype(np.float32)
    rows = []
    for top in np.array_split(np.linspace(0.345, -0.345, high * 2, dtype=np.float32), high // 16):
        across = np.linspace(-0.46, 0.46, wide * 2, dtype=np.float32)
        y, x = (a.ravel() for a in np.meshgrid(top, across, indexing="ij"))
        rows.append(
            trace_light(eye, unit(forward + right * x + above * y)).T.reshape(len(top), wide * 2, 3)
        )
    light = np.concatenate(rows).reshape(high, 2, wide, 2, 3).mean((1, 3))
    film = light * (2.3 * light + 0.05) / (light * (2.1 * light + 0.55) + 0.12)
    y, x = np.mgrid[-1 : 1 : high * 1j, -1 : 1 : wide * 1j]
    film = np.clip(film, 0, 1) ** (1 / 2.2) * (1 - 0.10 * (x * x + y * y))[..., None]
    return Image.fromarray(to_bytes(film.astype(np.float32)))
