"""`python -m nas` is the `nas` command, so that launchers such as torchrun can start it as a module."""

from nas.cli import main

if __name__ == "__main__":
    main()
