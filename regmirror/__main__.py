"""``python -m regmirror``."""

from regmirror.cli import main

if __name__ == "__main__":
    main()
