"""``python -m retrievers``: the command line."""

from __future__ import annotations

from retrievers.cli import main

if __name__ == "__main__":
    main()
