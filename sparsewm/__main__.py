"""`python -m sparsewm`: the command line, where its script is not on the path."""

from sparsewm.cli import main

if __name__ == "__main__":
    main()
