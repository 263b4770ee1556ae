"""What is kept on disk: files that are there whole or not at all, curvatures with their facts, and their checks.

files.py        written beside their place and moved there; locks that end with their process
curvatures.py   a curvature to and from a file
wholeness.py    what a file must hold to be believed
"""

from .curvatures import FORMAT, INDEX_FORMAT, READERS, curvature_parts, load, read, read_curvature, save_curvature
from .files import folder_beside, lock, read_safetensors, remove_strays, seal, write_safetensors
from .wholeness import check_index

__all__ = [
    "FORMAT",
    "INDEX_FORMAT",
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
