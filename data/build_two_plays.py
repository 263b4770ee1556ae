"""Cut data/two_plays.txt.gz out of tiny Shakespeare, found or fetched as inflib.lab.downloads does.

python data/build_two_plays.py [PATH]
"""

from __future__ import annotations

import gzip
import hashlib
import sys
from pathlib import Path

from inflib.lab.downloads import TINY_SHAKESPEARE, read
from inflib.lab.shakespeare import TWO_PLAYS, TWO_PLAYS_FILE


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TWO_PLAYS_FILE
    text = read(TINY_SHAKESPEARE)[TWO_PLAYS]
    target.write_bytes(gzip.compress(text, mtime=0))  # no time: the same text is the same file
    print(f"{target.name}: {len(text):,} characters in {target.stat().st_size:,} bytes")
    print(f"SHA-256 of the text {hashlib.sha256(text).hexdigest()}")


if __name__ == "__main__":
    main()
