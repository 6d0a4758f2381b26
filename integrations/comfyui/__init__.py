"""ComfyUI nodes that run jobs on an Impasto service. Uses impasto.Client alone."""

from .nodes import ImpastoFrames, ImpastoPaint

NODE_CLASS_MAPPINGS = {"ImpastoPaint": ImpastoPaint, "ImpastoFrames": ImpastoFrames}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ImpastoPaint": "Paint in a style (Impasto)",
    "ImpastoFrames": "Frames of a job (Impasto)",
}
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
