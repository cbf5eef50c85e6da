"""`python -m search COMMAND`, the same as `prunefront COMMAND`."""

from search.cli import main

if __name__ == "__main__":
    main()
