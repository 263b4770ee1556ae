"""What parts of inflib need beyond torch and numpy, said in one sentence where it is not installed."""

from __future__ import annotations

from importlib.util import find_spec


def require(part: str, *packages: str, extra: str = "course") -> None:
    """Raise ModuleNotFoundError, with what to install, unless every package can be found; none of them is imported."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{part} needs {', '.join(missing)}, which is not installed; inflib itself needs torch and numpy alone. "
            f"Install what the {extra} needs: pip install 'inflib[{extra}]'.",
            name=missing[0],
        )
