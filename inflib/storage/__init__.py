"""What is kept on disk: curvatures with their facts, and their checks. How files are written is in ``inflib.files``.

curvatures.py   a curvature to and from a file
wholeness.py    what a file must hold to be believed
"""

from ..files import LOCKS, folder_beside, lock, read_safetensors, remove_strays, seal, write_safetensors
from .curvatures import FORMAT, INDEX_FORMAT, READERS, curvature_parts, load, read, read_curvature, save_curvature
from .wholeness import check_index

__all__ = [
    "FORMAT",
    "INDEX_FORMAT",
    "LOCKS",
    "READERS",
    "check_index",
    "curvature_parts",
    "folder_beside",
    "load",
    "lock",
    "read",
    "read_curvature",
    "read_safetensors",
    "remove_strays",
    "save_curvature",
    "seal",
    "write_safetensors",
]
