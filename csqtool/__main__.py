"""``python -m csqtool``."""

from csqtool.cli import main

if __name__ == "__main__":
    main()
