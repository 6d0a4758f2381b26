"""Draws the two sample pictures beside this file: harbor.jpg to be painted, strokes.jpg to paint like.

It knows their names, sizes and quality.  It does not know how either is drawn (harbor.py, strokes.py,
and noise.py under both), nor networks or style transfer.
"""

from pathlib import Path

import harbor
import strokes


def main() -> None:
    """Draws both; the seeds are fixed, so they are always the same two pictures."""
    here = Path(__file__).parent
    harbor.picture(1024, 768).save(here / "harbor.jpg", quality=88)
    strokes.picture(900, 700).save(here / "strokes.jpg", quality=88)


if __name__ == "__main__":
    main()
