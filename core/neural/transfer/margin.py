"""The margin of a picture: what the network sees beyond its edges.

Without one, the outermost rows get another texture: the network repeats their pixels, and the
poolings drop what is left over at the bottom and the right. If the margin were mirrored from the
image anew each time, its own border would be painted into the picture, as a line. So a run paints
the margin too; the losses count the picture's own positions, and the margin is cut off at the end.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from core.neural.vgg import Edges
from core.style.spec import GRID_PX, StyleSpec

# On each side at least. A position of the deepest layers then lies half in the margin.
_LEAST_PX = GRID_PX // 2


def edge_mode(spec: StyleSpec) -> Edges:
    """How the network pads the image.

    With zeros for the paper's objective, else by repeating the edge.
    """
    return "zeros" if spec.objective == "gatys" else "repeat"


@dataclass(frozen=True)
class Margin:
    """Rows and columns around a picture (..., H, W), in px, up to multiples of `GRID_PX`."""

    height: int  # of the picture
    width: int
    before: int = 0  # at the top and at the left
    below: int = 0
    right: int = 0

    @classmethod
    def of_painting(cls, height: int, width: int, spec: StyleSpec) -> "Margin":
        """The margin of a painting; none for the paper's objective."""
        if edge_mode(spec) == "zeros":
            return cls(height, width)
        below, right = (_LEAST_PX + -side % GRID_PX for side in (height, width))
        return cls(height, width, _LEAST_PX, below, right)

    @classmethod
    def of_image(cls, height: int, width: int, spec: StyleSpec) -> "Margin":
        """The margin of the image that a run changes; none either for one that repeats."""
        return cls(height, width) if spec.seamless else cls.of_painting(height, width, spec)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width with the margin."""
        return self.before + self.height + self.below, self.before + self.width + self.right

    def mirror(self, picture: Tensor) -> Tensor:
        """The picture (B, C, H, W) with its mirror image as margin."""
        sides = [self.before, self.right, self.before, self.below]
        return functional.pad(picture, sides, mode="reflect") if any(sides) else picture

    def cut(self, image: Tensor) -> Tensor:
        """A view of the image (B, C, H, W) without the margin."""
        rows = slice(self.before, self.before + self.height)
        return image[:, :, rows, self.before : self.before + self.width]

    def layer_size(self, stride: int) -> tuple[int, int]:
        """Height and width of a layer, as far as losses count it.

        A position at the edge that covers part of the picture counts, unless the paper's objective
        drops it, which has no margin.
        """
        first, more = self.before // stride, stride - 1 if self.before else 0
        height, width = (
            (self.before + side + more) // stride - first for side in (self.height, self.width)
        )
        return height, width
